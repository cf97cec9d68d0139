#!/usr/bin/env python3
"""The tables of docs/planner.md: what fathom plan says beside what was published. usage: plan_tables.py PROGRAM > tables.md

Every row: figure, source, published value or range, how the plan's value comes about, and what its basis is:
  exact       follows from the architecture
  fitted      a constant of src/plan/formulas.toml was fitted to it
  same run    another figure of the run that a constant was fitted to
  blind       no constant was fitted to it
"""
import functools
import json
import subprocess
import sys

PROGRAM = sys.argv[1]
GIB, GB = 2**30, 1e9


@functools.lru_cache(maxsize=None)
def plan(command):
    done = subprocess.run([PROGRAM, "plan", *command.split(), "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command}: {done.stderr}")
    return {name: line["value"] for name, line in json.loads(done.stdout)["lines"].items()}


def of(command, name, scale=1.0):
    return command, lambda: plan(command)[name] * scale


V3 = "train --model-config deepseek-v3"
LONG = "--tokens 62914560000"
SGLANG = "serve --gpu h100 --gpus 32 --redundant-experts 32 --batch 16"
SERVICE = ("serve --model-config deepseek-r1 --gpu h800 --gpus 144 --redundant-experts 32 --prefill-ep 32 --context 4989 --batch 128 --cache-hits 56.3% "
           "--utilization 64.5% --input-tokens-a-day 608B --output-tokens-a-day 168B")
L405 = "train --model-config llama-3.1-405b --gpu h100 --precision bf16 --gpus 16384 --pp 1 --seq-len 8192 --tokens 15.6T"
V2 = "train --model-config deepseek-v2 --precision bf16 --gpus 1024 --pp 16 --ep 8 --batch-size 9216 --pp-schedule zb1p"
D67 = "train --model-config deepseek-67b --precision bf16 --gpus 512 --pp 8 --batch-size 4608 --pp-schedule 1f1b"
LAYOUT = "memory --gpus 2048 --pp 16 --ep 64"
KT = "serve --model-config deepseek-v3 --gpu rtx-4090 --gpus 1 --weights q4_k_m --prompt 500 --context 1000 --batch 1 --ram 512GB --ram-bandwidth"


def memory(model, more=""):
    return f"memory --model-config {model} {more}".strip()


TABLES = {
    "Memory": [
        ("V3, parameters", "V3 abstract: 671B", 671026419200, of(memory("deepseek-v3"), "parameters"), "exact"),
        ("V3, active, with the embedding", "V3 abstract: 37B", 37e9, of(memory("deepseek-v3"), "active_with_embedding"), "exact"),
        ("V3, active, without it", "README_WEIGHTS.md: 36.7B", 36.7e9, of(memory("deepseek-v3"), "active_parameters"), "exact"),
        ("V3, MTP module, its own", "README_WEIGHTS.md: 11.5B", 11.5e9, of(memory("deepseek-v3"), "mtp_parameters"), "exact"),
        ("V3, MTP module as published", "README: 685B = 671B + 14B", 14e9, of(memory("deepseek-v3"), "mtp_stored_parameters"), "exact"),
        ("V2, parameters", "V2 abstract: 236B", 236e9, of(memory("deepseek-v2"), "parameters"), "exact"),
        ("V2, active, with the embedding", "V2 abstract: 21B", 21e9, of(memory("deepseek-v2"), "active_with_embedding"), "exact"),
        ("V2-Lite, parameters", "V2 appendix B: 15.7B", 15.7e9, of(memory("deepseek-v2-lite"), "parameters"), "exact"),
        ("V3.2, parameters", "by hand from its inference/model.py", 671877944064, of(memory("deepseek-v3.2"), "parameters"), "exact"),
        ("Moonlight, parameters", "model card: 16B", 16e9, of(memory("moonlight-16b-a3b"), "parameters"), "exact"),
        ("V3, files in FP8, GiB", "its repository: about 641", 641, of(memory("deepseek-v3"), "published_fp8", 1 / GIB), "exact"),
        ("V3, in BF16 as converted, MTP in it, TB", "widely reported, no single source: about 1.3", 1.3, of(memory("deepseek-v3"), "published_bf16", 1e-12), "exact"),
        ("V3, in 4 bits (q4_0), GB", "widely reported, no single source: 350 to 400", (350, 400), of(memory("deepseek-v3"), "weights_in_q4_0", 1 / GB), "exact"),
        ("V3, cache of a token, KB", "INS table 1: 70.272", 70.272, of(memory("deepseek-v3"), "cache_token_bytes", 1e-3), "exact"),
        ("Qwen-2.5 72B, the same", "INS table 1: 327.680", 327.680, of(memory("qwen2.5-72b"), "cache_token_bytes", 1e-3), "exact"),
        ("LLaMA-3.1 405B, the same", "INS table 1: 516.096", 516.096, of(memory("llama-3.1-405b"), "cache_token_bytes", 1e-3), "exact"),
        ("V3, chunks held in training", "V3 table 2: P + 1 = 17", 17, of(LAYOUT, "chunks_held"), "exact"),
        ("V3, fullest GPU of PP16 EP64 DP128, GiB", "V3 section 3.2: fits 80 without tensor parallelism", (0, 80), of(LAYOUT, "rank_bytes", 1 / GIB), "blind"),
    ],
    "Training": [
        ("V3, GFLOP a token", "INS table 2: 250", 250, of(V3, "flops_token", 1e-9), "exact"),
        ("V2, GFLOP a token", "INS table 2: 155", 155, of(V2, "flops_token", 1e-9), "exact"),
        ("V3, seconds a step", "INS table 4: 19.926", 19.926, of(V3, "step_s"), "fitted"),
        ("V3, TFLOPS a GPU, causal", "INS table 4: 385", 385, of(V3, "achieved_flops", 1e-12), "same run"),
        ("V3, MFU, causal, %", "INS table 4: 38.94", 38.94, of(V3, "mfu", 100), "same run"),
        ("V3, MFU, full square, %", "INS table 4: 43.73", 43.73, of(V3, "mfu_square", 100), "same run"),
        ("V3, tokens a day, 10^9", "INS table 4: 272.80", 272.8, of(V3, "tokens_a_day", 1e-9), "same run"),
        ("V3, bubble, seconds a step", "INS table 4: 2.06, waiting for slower ranks in it", 2.06, of(V3, "bubble_s"), "blind"),
        ("V3, H800 hours of 10^12 tokens", "V3: 180,000", 180e3, of(V3, "hours_a_trillion"), "same run"),
        ("V3, hours of pre-training", "V3 table 1: 2,664,000", 2664e3, of(V3, "gpu_hours"), "same run"),
        ("V3, hours of context extension", "V3 table 1: 119,000", 119e3,
         (f"{V3} --seq-len 32768 {LONG}, and 131072", lambda: sum(plan(f"{V3} --seq-len {n} {LONG}")["gpu_hours"] for n in (32768, 131072))), "blind"),
        ("V3, dollars in all, 10^6", "V3 table 1: 5.576 (5,000 hours of post-training taken as published)", 5.576,
         (V3, lambda: 2e-6 * (5000 + plan(V3)["gpu_hours"] + sum(plan(f"{V3} --seq-len {n} {LONG}")["gpu_hours"] for n in (32768, 131072)))), "same run"),
        ("V2, H800 hours of 10^12 tokens", "V2 section 3.2.3: 172,800 (1,024 GPUs assumed)", 172.8e3, of(V2, "hours_a_trillion"), "fitted"),
        ("DeepSeek 67B, the same", "V2 section 3.2.3: 300,600 (layout assumed)", 300.6e3, of(D67, "hours_a_trillion"), "fitted"),
        ("LLaMA-3.1 405B, MFU, %", "The Llama 3 Herd of Models, table 4: 41", 41, of(L405, "mfu", 100), "blind"),
        ("LLaMA-3.1 405B, H100 hours, 10^6", "its model card: 30.84, restarts and long contexts in it", 30.84, of(L405, "gpu_hours", 1e-6), "blind"),
    ],
    "Serving": [
        ("V3, exchange of 32 tokens at 50 GB/s, us", "INS section 2.3.2: 120.96 (hidden size 7,000)", 120.96, of("serve --network-bandwidth 50GB", "limit_exchange_s", 1e6 * 7000 / 7168), "exact"),
        ("V3, time per token at 50 GB/s, ms", "INS section 2.3.2: 14.76 (hidden size 7,000)", 14.76, of("serve --network-bandwidth 50GB", "limit_network_s", 1e3 * 7000 / 7168), "exact"),
        ("V3, the same, with its 7,168", "INS section 2.3.2: 14.76", 14.76, of("serve --network-bandwidth 50GB", "limit_network_s", 1e3), "exact"),
        ("V3, time per token at 900 GB/s, ms", "INS section 2.3.2: 0.82 (hidden size 7,000)", 0.82, of("serve --network-bandwidth 900GB", "limit_network_s", 1e3 * 7000 / 7168), "exact"),
        ("SGLang on H100, input tokens/s a node, 4K", "lmsys.org, 2025-05-05: 50,302", 50302, of(f"{SGLANG} --prompt 4096", "prefill_node"), "blind"),
        ("SGLang on H100, input tokens/s a node, 2K", "lmsys.org, 2025-05-05: 52,300", 52300, of(f"{SGLANG} --prompt 2000", "prefill_node"), "blind"),
        ("SGLang on H100, output tokens/s a node", "lmsys.org, 2025-05-05: 22,300", 22300, of("serve --gpu h100 --gpus 72 --redundant-experts 32 --prompt 2000 --context 2050 --batch 256", "decode_node"), "fitted"),
        ("DeepSeek's service, input tokens/s a node", "INF: 73,700; gives the utilization", 73700, of(SERVICE, "prefill_node"), "fitted"),
        ("DeepSeek's service, output tokens/s a node", "INF: 14,800", 14800, of(SERVICE, "decode_node"), "blind"),
        ("DeepSeek's service, tokens/s a user", "INF: 20 to 22", (20, 22), of(SERVICE, "user_tokens_s"), "blind"),
        ("DeepSeek's service, nodes", "INF: 226.75", 226.75, of(SERVICE, "day_nodes"), "blind"),
        ("DeepSeek's service, cost, dollars a day", "INF: 87,072", 87072, of(SERVICE, "day_cost"), "blind"),
        ("DeepSeek's service, income, dollars a day", "INF: 562,027", 562027, of(SERVICE, "day_income"), "exact"),
        ("R1 in q8_0 on an EPYC 9135, tokens/s", "xlab.tencent.com, 2025-03-16: 7.17", 7.17, of("serve --model-config deepseek-r1 --gpu epyc-9135 --weights q8_0 --prompt 512", "user_tokens_s"), "fitted"),
        ("V3 in q4_k_m, experts on one Xeon 6454S, rest on a 4090, tokens/s", "KTransformers' tutorial: 8.73", 8.73, of(f"{KT} 307.2GB", "hybrid_tokens_s"), "blind"),
        ("V3 in q4_0 from 400 GB at 51.2 GB/s (2 channels of DDR4-3200), tokens/s", "widely reported, no single source: 1 to 3", (1, 3), of("serve --weights q4_0 --prompt 512 --context 512 --ram 400GB --ram-bandwidth 51.2GB", "host_tokens_s"), "blind"),
        ("V3 in q4_0 from 400 GB at 115 GB/s (6 channels of DDR4-2400), tokens/s", "widely reported, no single source: 1 to 3", (1, 3), of("serve --weights q4_0 --prompt 512 --context 512 --ram 400GB --ram-bandwidth 115GB", "host_tokens_s"), "blind"),
    ],
}


def show(x):
    return f"{x:,.0f}" if abs(x) >= 1e4 else f"{x:.5g}"


def error_of(x, published):
    """A range's error is that to its nearer end."""
    low, high = published if isinstance(published, tuple) else (published, published)
    if isinstance(published, tuple) and low <= x <= high:
        return "within"
    return f"{100 * (x / (high if x > high else low) - 1):+.1f} %"


for title, rows in TABLES.items():
    print(f"### {title}\n\n| figure | published | fathom plan | error | basis |\n| --- | --- | --- | --- | --- |")
    for figure, source, published, (_, value), basis in rows:
        x = value()
        print(f"| {figure} | {source} | {show(x)} | {error_of(x, published)} | {basis} |")
    print()
