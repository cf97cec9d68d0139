#!/usr/bin/env python3
"""Time a token of sparse and of dense attention over contexts, one run of `fathom bench`, and where it is given llama.cpp beside it.

    bench/long_context_speed.py --fathom build/release/src/fathom --model MODEL --out DIR [--depths 0,8192,...] [--prompt-depths 0,4096,...]
        [--prompt 4096] [--gen 16] [--kv-type bf16] [--threads T] [--llama BIN --llama-depths 0,4096,8192]

MODEL: a directory or .gguf file of a deepseek_v32 model, or a config.json for random weights in q4_0 (llama.cpp takes .gguf alone). Writes DIR/speed.json, and
DIR/decode.svg, prefill.svg and bytes.svg: milliseconds a token, and bytes that a token reads.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import plot


def bench(a, prompt, gen, depths):
    model = ["--model-config" if a.model.suffix == ".json" else "--model", a.model]
    command = [a.fathom, "bench", *model, "--threads", a.threads, "--prompt", prompt, "--gen", gen, "--depth", ",".join(map(str, depths)),
               "--attention", "both", "--kv-type", a.kv_type, "--reps", 1, "--json"]
    print("+", *command, file=sys.stderr, flush=True)
    out = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def llama(a):
    """llama-bench tells prompts and answers apart by n_gen."""
    command = [a.llama / "llama-bench", "-m", a.model, "-t", a.threads, "-p", 512, "-n", a.gen, "-d", a.llama_depths, "-fa", 1, "-r", 1, "-o", "jsonl"]
    print("+", *command, file=sys.stderr, flush=True)
    out = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [json.loads(line) for line in out.splitlines()]
    return [{"test": f"{'tg' if r['n_gen'] else 'pp'}@d{r['n_depth']}", "avg_ts": r["avg_ts"], "depth": r["n_depth"]} for r in rows]


def curve(rows, kind, attention):
    points = []
    for row in rows:
        if not row["test"].startswith(kind) or row.get("attention", attention) != attention:
            continue
        depth = int(row["test"].partition("@d")[2].split("+")[0] or 0)
        points.append((depth, 1000 / row["avg_ts"]))
    return points


def bytes_read(a, depths):
    """MB that a generated token reads, of weights and of the cache, by attention."""
    facts = json.loads(subprocess.run([str(a.fathom), "inspect", "--json", str(a.model)], check=True, stdout=subprocess.PIPE, text=True).stdout)
    c, parameters = facts["config"], facts["parameters"]
    weights = parameters["active"] * (facts["bytes"] / parameters["total"] if "bytes" in facts else 4.5 / 8)
    keys = c["num_hidden_layers"] * (4 if a.kv_type == "f32" else 1 + 4 / c["index_head_dim"]) * c["index_head_dim"]
    latents = facts["cache_bytes_per_token"][a.kv_type] - keys
    return {"dense": [(d, (weights + d * latents) / 1e6) for d in depths],
            "sparse": [(d, (weights + (d * keys if d > c["index_topk"] else 0) + min(d, c["index_topk"]) * latents) / 1e6) for d in depths]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fathom", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--depths", default="0,8192,16384,32768,65536,131072")
    parser.add_argument("--prompt-depths", default="0,4096,8192,12288,16384,20480,24576,28672")
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--gen", type=int, default=16)
    parser.add_argument("--kv-type", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", type=pathlib.Path, help="directory of llama-bench")
    parser.add_argument("--llama-depths", default="0,4096,8192")
    parser.add_argument("--plots-only", action="store_true")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    depths = [int(d) for d in a.depths.split(",")]
    results = a.out / "speed.json"
    if not a.plots_only:
        rows = bench(a, 0, a.gen, depths) + bench(a, a.prompt, 0, [int(d) for d in a.prompt_depths.split(",")])
        results.write_text(json.dumps({"rows": rows, "llama.cpp": llama(a) if a.llama else []}, indent=1))
    found = json.loads(results.read_text())
    for kind, name, what in (("tg", "decode", "A generated token"), ("pp", "prefill", f"A token of a prompt, {a.prompt} in a pass")):
        series = {"fathom, sparse": curve(found["rows"], kind, "sparse"), "fathom, dense": curve(found["rows"], kind, "dense"),
                  "llama.cpp, sparse": curve(found["llama.cpp"], kind, "")}
        plot.lines(a.out / f"{name}.svg", what, "tokens in the context before", "ms a token", {k: v for k, v in series.items() if v})
        for key, points in series.items():
            print(f"{what}: {key}: " + ", ".join(f"{plot.short(d)} {ms:.1f}" for d, ms in points))
    plot.lines(a.out / "bytes.svg", "What a generated token reads", "tokens in the context before", "MB", bytes_read(a, depths))


if __name__ == "__main__":
    main()
