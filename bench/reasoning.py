#!/usr/bin/env python3
"""The chain from a pretrained model to a reasoning one and to its students, in small: additions of two numbers.

    bench/reasoning.py --fathom build/release/src/fathom --text FILE --out OUT [--seed 1] [--threads T] [--scale 1]
    bench/reasoning.py --pictures OUT1 OUT2 ... --out OUT    the curves of several runs together

FILE: text to pretrain on beside additions. Stages, each into OUT/STAGE, which go on where they were when the same command is given again:
    lessons  pretraining (`fathom train`): text, and additions, most of which are worked out digit by digit
    base     the same model goes on with additions as they are met: answered at once, or behind thoughts that are empty (60 %), broken off
             (15 %) or worked out (25 %)
    rl       GRPO (`fathom grpo`) on the answer alone: how long to think is left to the model
    traces   what the trained model thinks and answers (`fathom distill traces`), as far as it is right
    hybrid   the base model fine-tuned on these traces with thinking on, and on bare answers with thinking off (`fathom sft`)
    student  a dense model (Qwen2's architecture) that has seen the base's text and then the traces
Then each is asked held-out additions, and OUT/report.json, rewards.svg and lengths.svg are made.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import time

import plot

# As plain text: pretraining never parses text for marks.
USER, ASSISTANT, THINK, DONE = "Q: ", "\nA: ", "<think>", "</think>"
MARKS = ["<bos>", "<eos>"]
VOCAB = 256 + len(MARKS)
SEQ_LEN = 256
MOE = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": VOCAB, "hidden_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 48, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32,
    "v_head_dim": 32, "intermediate_size": 384, "moe_intermediate_size": 96, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 0, "hidden_act": "silu",
    "attention_bias": False, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000.0, "initializer_range": 0.05,
    "bos_token_id": 256, "eos_token_id": 257, "tie_word_embeddings": False, "torch_dtype": "float32"}
DENSE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": VOCAB, "hidden_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 384, "hidden_act": "silu", "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.05, "bos_token_id": 256, "eos_token_id": 257,
    "tie_word_embeddings": True, "torch_dtype": "float32"}
# V3.1's way of telling whether to think: the prompt of an answer ends in <think>, or in </think>.
TEMPLATE = ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ bos_token }}{% for message in messages %}"
            "{% if message['role'] == 'user' %}{{ 'Q: ' + message['content'] }}"
            "{% else %}{{ '\\nA: </think>' + message['content'] + eos_token }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '\\nA: ' }}{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}{% endif %}")


def numbers(rng, low, high):
    n = rng.randint(low, high)
    m = rng.randint(max(n - 2, 1), n)
    a, b = rng.randrange(10 ** (n - 1), 10 ** n), rng.randrange(10 ** (m - 1), 10 ** m)
    return (a, b) if rng.random() < 0.5 else (b, a)


def worked(a, b):
    """Digit by digit from the right: a line has a letter for the place, two digits and the carry, their sum, and the whole sum's digits so
    far. Lines of one place are equally long and have other signs than the question, so that every seed learns where the next digits stand."""
    x, y = str(a)[::-1], str(b)[::-1]
    lines, carry, so_far = [], 0, ""
    for i in range(max(len(x), len(y))):
        d, e = (int(n[i]) if i < len(n) else 0 for n in (x, y))
        total = d + e + carry
        so_far = str(total % 10) + so_far
        lines.append(f"{chr(ord('a') + i)}{d},{e},{carry}:{total:02}>{so_far}")
        carry = total // 10
    return lines


def pretraining_text(text, size, most_digits, rng, at_once, worked_out, broken_off):
    """`at_once` of the additions have no thoughts; of those that have, so many are worked out, so many not to the end, and all others empty."""
    texts = []
    while size > 0:
        if rng.random() < 0.05:
            at = rng.randrange(len(text) - 300)
            texts.append(text[at:at + rng.randint(100, 300)])
        else:
            a, b = numbers(rng, 1, most_digits)
            thoughts = DONE
            if rng.random() >= at_once:
                lines, kind = worked(a, b), rng.random()
                shown = len(lines) if kind < worked_out else rng.randrange(len(lines)) if kind < worked_out + broken_off else 0
                thoughts = THINK + "\n".join(lines[:shown]) + DONE
            texts.append(f"{USER}{a}+{b}={ASSISTANT}{thoughts}{a + b}")
        size -= len(texts[-1]) + 2
    return texts


def questions(n, seed, digits):
    rng = random.Random(seed)
    asked = {}
    for _ in range(20 * n):  # fewer where there are no more
        if len(asked) == n:
            break
        a, b = numbers(rng, *digits)
        asked[f"{a}+{b}="] = str(a + b)
    return [{"question": q, "answer": answer} for q, answer in asked.items()]


def write_lines(path, objects):
    path.write_text("".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects), encoding="utf-8")


def write_tokenizer(folder):
    """A token a byte, and a begin and an end."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    vocab = {chr(b if b in kept else 256 + others.index(b)): b for b in range(256)}
    added = [{"id": 256 + i, "content": mark, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, mark in enumerate(MARKS)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []}}, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": True, "add_eos_token": False, "bos_token": MARKS[0], "eos_token": MARKS[1], "chat_template": TEMPLATE,
        "model_max_length": 512, "tokenizer_class": "LlamaTokenizerFast"}, ensure_ascii=False), encoding="utf-8")


def make_data(data, a):
    text = a.text.read_text(encoding="utf-8")
    held_out = questions(a.held_out, 2, a.digits)
    asked = {q["question"] for q in held_out}
    write_tokenizer(data / "tokenizer")
    for name, size, shares in (("lessons", 9_000_000, (0.1, 1, 0)), ("base", 9_000_000, (0.35, 0.25, 0.15))):
        texts = [t for t in pretraining_text(text, int(size * a.scale), a.digits[1], random.Random(name), *shares)
                 if t.split(ASSISTANT)[0][len(USER):] not in asked]
        write_lines(data / f"{name}.jsonl", [{"text": t} for t in texts])
    write_lines(data / "held-out.jsonl", held_out)
    n = max(100, int(20_000 * a.scale))
    write_lines(data / "rl.jsonl", [q for q in questions(n, 3, (max(1, a.digits[0] - 2), a.digits[1])) if q["question"] not in asked])
    write_lines(data / "to-trace.jsonl", [q for q in questions(n, 4, a.digits) if q["question"] not in asked])


def run(a, *words):
    command = [str(a.fathom), *map(str, words), "--threads", str(a.threads)]
    print("+", " ".join(command), file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def options(values):
    return [word for key, value in values.items() for word in ([f"--{key}"] if value is True else [f"--{key}", value])]


def train(a, command, stage, values):
    out = a.out / stage
    if not (out / "report.html").exists():
        run(a, command, "--out", out, "--resume", "--seed", a.seed, "--beta2", 0.98, "--save-every", 100, "--keep", 1, *options(values))
    return out


def asked(a, stage, thinking, data):
    """Right answers of the held-out questions, greedily, and what an answer took."""
    out = a.out / "asked" / f"{stage}-{thinking}-{data.stem}"
    lines = run(a, "eval", "--model", a.out / stage, "--task", "questions", "--data", data, "--chat", "--thinking", thinking, "--max-tokens", 200,
                "--parallel", 64, "--out", out, "--json")
    told = json.loads(lines.splitlines()[-1])
    right = told["measures"][0]
    return {"right": right["value"], "low": right["low"], "high": right["high"], "n": told["items"], "tokens": told["tokens"] / told["items"]}


def curve(path, key):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(r["step"], r[key]) for r in rows if r.get(key) is not None]


def mix(data, digits):
    """As much without thoughts as there is with them."""
    held_out = {json.loads(line)["question"] for line in (data / "held-out.jsonl").read_text().splitlines()}
    lines = (data / "traces.jsonl").read_text(encoding="utf-8").splitlines()
    lines += [json.dumps({"messages": [{"role": "user", "content": q["question"]}, {"role": "assistant", "content": q["answer"]}],
                          "thinking": False}) for q in questions(len(lines), 5, digits) if q["question"] not in held_out]
    random.Random(6).shuffle(lines)
    (data / "hybrid.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pictures(out, runs):
    """How GRPO went in each of these runs."""
    seeds = {json.loads((run / "report.json").read_text())["seed"]: run / "rl" / "train.jsonl" for run in runs}
    rewards, lengths = {}, {}
    for seed, log in seeds.items():
        rewards |= {f"seed {seed}, sampled": [(s, 100 * v) for s, v in curve(log, "exact")],
                    f"seed {seed}, held out": [(s, 100 * v) for s, v in curve(log, "val_exact")]}
        lengths[f"seed {seed}"] = curve(log, "thought_length")
    plot.lines(out / "rewards.svg", "Answers that are right", "steps of GRPO", "%", rewards)
    plot.lines(out / "lengths.svg", "How long it thinks", "steps of GRPO", "tokens before </think>, mean", lengths)


def chain(a):
    data = a.out / "data"
    if not (data / "to-trace.jsonl").exists():
        make_data(data, a)
    n = lambda steps: max(2, int(steps * a.scale))
    for name, config in (("moe", MOE), ("dense", DENSE)):
        (data / f"{name}.json").write_text(json.dumps(config))
    pretraining = {"seq-len": SEQ_LEN, "batch-size": 32, "mask-documents": True, "lr": 4e-3, "schedule": "wsd", "warmup": n(50)}
    new = {"tokenizer": data / "tokenizer"}
    balance = {"bias-update-speed": 0.01}
    times = {}

    def timed(stage, do):
        begin = time.monotonic()
        result = do()
        times[stage] = time.monotonic() - begin
        return result

    timed("lessons", lambda: train(a, "train", "lessons", {**pretraining, **balance, **new, "model-config": data / "moe.json",
                                                           "data": data / "lessons.jsonl", "schedule": "constant", "steps": n(900)}))
    timed("base", lambda: train(a, "train", "base", {**pretraining, **balance, "init": a.out / "lessons", "data": data / "base.jsonl",
                                                     "decay-fraction": 0.5, "steps": n(500)}))
    timed("rl", lambda: train(a, "grpo", "rl", {
        "init": a.out / "base", "data": data / "rl.jsonl", "thinking": "on", "reward": "exact=1", "questions": 32, "group-size": 16, "max-tokens": 160,
        "mini-batches": 2, "clip-high": 0.28, "lr": 3e-4, "schedule": "cosine", "warmup": n(5), "steps": n(50),
        "val-data": data / "held-out.jsonl", "val-every": n(10), "val-sequences": 200, "max-sequences": 128}))
    to_ask = [("base", "on"), ("base", "off"), ("rl", "on")]
    if a.until == "student":
        traces = data / "traces.jsonl"
        timed("traces", lambda: traces.exists() or run(a, "distill", "traces", "--teacher", a.out / "rl", "--data", data / "to-trace.jsonl", "--out",
                                                      traces, "--teacher-thinking", "on", "--temperature", 0.6, "--max-tokens", 160,
                                                      "--parallel", 128))
        if not (data / "hybrid.jsonl").exists():
            mix(data, a.digits)
        tuning = {"seq-len": SEQ_LEN, "batch-size": 32, "micro-batch": 32, "warmup": n(20), "weight-decay": 0}
        timed("hybrid", lambda: train(a, "sft", "hybrid", {**tuning, "init": a.out / "base", "data": data / "hybrid.jsonl", "lr": 1e-3, "epochs": 2}))
        timed("student base", lambda: train(a, "train", "student-base", {**pretraining, **new, "model-config": data / "dense.json",
                                                                               "data": data / "base.jsonl", "steps": n(800)}))
        timed("student", lambda: train(a, "sft", "student", {**tuning, "init": a.out / "student-base", "data": traces, "lr": 1e-3, "epochs": 4}))
        to_ask += [("hybrid", "on"), ("hybrid", "off"), ("student", "on")]

    answers = {f"{stage}, thinking {thinking}": timed(f"asking {stage}, {thinking}", lambda: asked(a, stage, thinking, data / "held-out.jsonl"))
               for stage, thinking in to_ask}
    result = {"seed": a.seed, "asked": answers, "seconds": times, "total": sum(times.values())}
    (a.out / "report.json").write_text(json.dumps(result, indent=1))
    pictures(a.out, [a.out])
    print(f"{'model':24} {'right':>8} {'95 %':>16} {'tokens':>8}")
    for name, each in result["asked"].items():
        print(f"{name:24} {100 * each['right']:6.1f} % {100 * each['low']:7.1f}-{100 * each['high']:.1f} % {each['tokens']:8.1f}")
    print("seconds: " + ", ".join(f"{stage} {s:.0f}" for stage, s in times.items()) + f"; {result['total'] / 60:.1f} minutes in all")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fathom", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--pictures", type=pathlib.Path, nargs="+", metavar="OUT")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--digits", type=lambda text: tuple(map(int, text.split("-"))), default=(5, 8), metavar="LOW-HIGH",
                        help="of the longer number in the questions that are asked (5-8); pretraining has all shorter ones too, GRPO those of two digits less")
    parser.add_argument("--until", choices=("rl", "student"), default="student", help="the last stage")
    parser.add_argument("--held-out", type=int, default=500, help="questions that each model is asked")
    parser.add_argument("--scale", type=float, default=1, help="of steps and data")
    a = parser.parse_args()
    if not a.pictures and not (a.fathom and a.text):
        parser.error("--fathom and --text say what to run, or --pictures what to draw")
    a.out.mkdir(parents=True, exist_ok=True)
    if a.pictures:
        pictures(a.out, a.pictures)
    else:
        chain(a)


if __name__ == "__main__":
    main()
