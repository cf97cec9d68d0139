#!/usr/bin/env python3
"""Sparse attention trained from nothing: a small model learns to find strings again in text, is extended to long sequences
by YaRN, gets an indexer, and attends sparsely; beside it the same model goes on densely.

    bench/long_context.py --fathom build/release/src/fathom --text DIR --out OUT [--threads T] [--scale 1]

DIR: .txt files to learn from; the last tenth of each is not learned from. Stages, each a `fathom train` into OUT/STAGE that goes on
where it was when the same command is given again:
    copy      random strings that come again, 128 bytes a sequence: from them a model learns to look back
    short     text with such strings in it, 512 bytes a sequence
    extended  dense, YaRN x 8: 4096 bytes
    warmup    --dsa warmup: indexers alone
    sparse    --dsa sparse, and `dense`: --dsa off, from the same weights with the same text
Then the held-out loss of both, how many strings each finds at every depth, the same of the sparse model by the type of its cache, and
OUT/report.json, recall.svg and found.svg.
"""
import argparse
import json
import math
import pathlib
import random
import struct
import subprocess
import sys
import time
import urllib.request

import plot

COPY, SHORT, LONG = 128, 512, 4096
TOPK = 256
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 258, "hidden_size": 192, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32,
    "v_head_dim": 48, "intermediate_size": 512, "moe_intermediate_size": 96, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 0, "hidden_act": "silu",
    "attention_bias": False, "max_position_embeddings": SHORT, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.05,
    "bos_token_id": 256, "eos_token_id": 257, "tie_word_embeddings": False, "torch_dtype": "float32"}
# --index-topk is a sixteenth of the context, as 2048 of 32K.
INDEXER = {"index-n-heads": 4, "index-head-dim": 32, "index-topk": TOPK}
# Strings are of these, all different, and text is without them: with few symbols the one before says little about which follows, and to look
# back is learned much later or never.
SYMBOLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&()*+/:;<=>?@[]^_{|}~"
GIVEN = 3  # symbols of a string by which it is to be found


def plain(text):
    return "".join(c for c in text.lower() if "a" <= c <= "z" or c in " \n.,'\"-")


def new_string(rng, low=6, high=10):
    return "".join(rng.sample(SYMBOLS, rng.randint(low, high)))


def copies(length, rng):
    """Strings, of which more than every other is one of the last three."""
    out, last, n = [], [], 0
    while n < length:
        if len(last) > 3 and rng.random() < 0.6:
            out.append(rng.choice(last[-3:]))
        else:
            out.append(new_string(rng))
            last.append(out[-1])
        n += len(out[-1])
    return "".join(out)


def with_strings(text, span, every, rng):
    """Text with strings in it, each of which comes again up to `span` bytes behind."""
    out, length, at, due = [], 0, 0, []
    while at < len(text):
        n = rng.randint(every // 2, every * 3 // 2)
        out.append(text[at:at + n])
        at += n
        length += len(out[-1])
        due.sort()
        if due and due[0][0] <= length:
            _, string, left = due.pop(0)
        else:
            string, left = new_string(rng), rng.randint(1, 2)
        out.append(string)
        length += len(string)
        if left > 0:
            due.append((length + int(math.exp(rng.uniform(math.log(8), math.log(span * 0.9)))), string, left - 1))
    return "".join(out)


def make_data(folder, texts, seed):
    parts = {"train": [], "val": []}
    files = sorted(texts.glob("**/*.txt"))
    if not files:
        sys.exit(f"{texts}: has no .txt file to learn from")
    for path in files:
        text = plain(path.read_text(encoding="utf-8", errors="replace"))
        cut = len(text) * 9 // 10
        parts["train"].append(text[:cut])
        parts["val"].append(text[cut:])
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    train, val = "\n".join(parts["train"]), "\n".join(parts["val"])
    (folder / "copy.txt").write_text(copies(6_000_000, random.Random(3)))
    (folder / "short.txt").write_text(with_strings(train, SHORT, 20, rng))
    (folder / "long.txt").write_text(with_strings(train, LONG, 60, rng))
    (folder / "val.txt").write_text(with_strings(val, LONG, 60, rng)[:LONG * 64])
    (folder / "val-short.txt").write_text(with_strings(val, SHORT, 20, rng)[:LONG * 32])
    # A string at a depth, others beside it, and the string again at the end.
    sequences, depths = [], []
    n_depths, each, others, length = 16, 16, 15, 8
    for d in range(n_depths):
        for _ in range(each):
            start = rng.randrange(len(val) - LONG)
            body = val[start:start + LONG - 1 - length * (others + 2)]
            wanted = new_string(rng, length, length)
            places = [(int(d / (n_depths - 1) * (len(body) - 20)), wanted)]
            places += [(rng.randrange(len(body)), new_string(rng, length, length)) for _ in range(others)]
            for place, string in sorted(places, key=lambda p: -p[0]):
                body = body[:place] + string + body[place:]
            sequences.append([256] + list((body + wanted).encode()))
            depths.append(d)
    (folder / "needles.json").write_text(json.dumps(sequences))
    (folder / "depths.json").write_text(json.dumps(depths))


def run(command):
    print("+", " ".join(str(c) for c in command), file=sys.stderr, flush=True)
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def train(a, stage, options):
    out = a.out / stage
    if (out / "report.html").exists():
        return
    command = [a.fathom, "train", "--out", out, "--resume", "--tokenizer", "bytes", "--threads", a.threads, "--json",
               "--beta2", 0.98, "--save-every", 200, "--keep", 1]
    if "val-data" in options:
        command += ["--val-every", 100, "--val-sequences", 16]
    for key, value in options.items():
        command += [f"--{key}", value]
    run(command)


def logits_of(path, name="logits"):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))[name]
        begin, end = header["data_offsets"]
        file.seek(8 + size + begin)
        import array
        values = array.array("f", file.read(end - begin))
    return header["shape"], values


def found_at_depths(a, model, extra=()):
    """Share of the strings whose symbols behind those given are all the likeliest, by depth."""
    sequences, depths = json.loads((a.out / "data/needles.json").read_text()), json.loads((a.out / "data/depths.json").read_text())
    found = {}
    group = 16
    for begin in range(0, len(sequences), group):
        part = sequences[begin:begin + group]
        tokens, out = a.out / "part.json", a.out / "part.safetensors"
        tokens.write_text(json.dumps(part))
        run([a.fathom, "score", "--model", model, "--tokens", tokens, "--out", out, "--threads", a.threads, "--json", *extra])
        (_, vocab), values = logits_of(out)
        row = 0
        for ids, depth in zip(part, depths[begin:begin + group]):
            right = True
            for i in range(len(ids) - 8 + GIVEN, len(ids)):
                logits = values[(row + i - 1) * vocab:(row + i) * vocab]
                right &= max(range(vocab), key=logits.__getitem__) == ids[i]
            row += len(ids)
            found.setdefault(depth, []).append(right)
    for name in ("part.json", "part.safetensors"):
        (a.out / name).unlink(missing_ok=True)
    return [sum(f) / len(f) for _, f in sorted(found.items())]


def held_out(a, model, extra=()):
    return json.loads(run([a.fathom, "score", "--model", model, "--text", a.out / "data/val.txt", "--window", LONG, "--threads", a.threads,
                           "--json", *extra]))["loss"]


def served(a, model, kv_type):
    """Held-out loss and share of strings found where the model reads its cache in this type: what a server tells."""
    port = 18765
    server = subprocess.Popen([str(a.fathom), "serve", "--model", str(model), "--kv-type", kv_type, "--port", str(port), "--threads", str(a.threads)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(body):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["choices"][0]

    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready")
                break
            except OSError:
                time.sleep(0.1)
        sequences = json.loads((a.out / "data/needles.json").read_text())[::8]
        n = 8 - GIVEN
        found = [ask({"prompt": ids[:-n], "max_tokens": n, "temperature": 0})["text"] == bytes(ids[-n:]).decode() for ids in sequences]
        text, loss, n = (a.out / "data/val.txt").read_text(), 0, 0
        for begin in range(0, 16 * LONG, LONG):
            ids = [256] + list(text[begin:begin + LONG - 1].encode())
            told = ask({"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0})["prompt_logprobs"]
            for i, each in enumerate(told):
                if each:
                    loss -= each[str(ids[i])]["logprob"]
                    n += 1
        return {"held_out": loss / n, "found": sum(found) / len(found)}
    finally:
        server.terminate()
        server.wait()


def curve(a, stage, key):
    points = []
    for line in (a.out / stage / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.get(key) is not None:
            points.append((row["step"], row[key]))
    return points


def report(a):
    file = a.out / "report.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    for stage in ("extended", "warmup", "sparse", "dense"):
        if stage in result:
            continue
        attention = ["--attention", "dense"] if stage in ("warmup", "dense") else []
        result[stage] = {"held_out": held_out(a, a.out / stage, attention), "found": found_at_depths(a, a.out / stage, attention)}
        file.write_text(json.dumps(result, indent=1))
    for kv_type in ("f32", "bf16", "fp8", "int8"):
        key = f"sparse, cache in {kv_type}"
        if key not in result:
            result[key] = served(a, a.out / "sparse", kv_type)
            file.write_text(json.dumps(result, indent=1))
    warm = curve(a, "warmup", "indexer_recall")
    steps = warm[-1][0]
    plot.lines(a.out / "recall.svg", f"Attention that the {TOPK} chosen tokens hold, as a part of the best {TOPK}", "steps: warm-up, then sparse", "%",
               {"warm-up": [(s, 100 * r) for s, r in warm], "sparse": [(steps + s, 100 * r) for s, r in curve(a, "sparse", "indexer_recall")]})
    plot.lines(a.out / "found.svg", "Strings found again, by how deep they lie", "bytes before the string", "%",
               {stage: [(i * LONG / 15, 100 * f) for i, f in enumerate(result[stage]["found"])] for stage in ("dense", "sparse")})
    for name, each in result.items():
        found = each["found"]
        print(f"{name:24} held-out loss {each['held_out']:.4f}, found {100 * (sum(found) / len(found) if isinstance(found, list) else found):.1f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fathom", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1, help="of the steps")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    data = a.out / "data"
    if not (data / "depths.json").exists():
        make_data(data, a.text, 1)
    config = a.out / "config.json"
    config.write_text(json.dumps(CONFIG))
    n = lambda steps: max(2, int(steps * a.scale))
    short = {"data": data / "short.txt", "val-data": data / "val-short.txt", "seq-len": SHORT, "batch-size": 8, "warmup": n(50)}
    long = {"data": data / "long.txt", "val-data": data / "val.txt", "seq-len": LONG, "batch-size": 2, "micro-batch": 1}
    train(a, "copy", {"data": data / "copy.txt", "seq-len": COPY, "batch-size": 16, "model-config": config, "steps": n(4000), "lr": 1e-3,
                      "schedule": "constant", "warmup": n(100)})
    train(a, "short", {**short, "init": a.out / "copy", "steps": n(4800), "lr": 1e-3, "min-lr": 2e-4})
    train(a, "extended", {**long, "init": a.out / "short", "yarn-factor": LONG // SHORT, "steps": n(300), "lr": 1e-3, "min-lr": 2e-4,
                          "warmup": n(30)})
    train(a, "warmup", {**long, "init": a.out / "extended", "dsa": "warmup", **INDEXER, "steps": n(150), "lr": 3e-3, "min-lr": 1e-3,
                        "warmup": n(10), "weight-decay": 0})
    for stage, dsa in (("sparse", "sparse"), ("dense", "off")):
        train(a, stage, {**long, "init": a.out / "warmup", "dsa": dsa, "steps": n(200), "lr": 2e-4, "min-lr": 2e-5, "warmup": n(10)})
    report(a)


if __name__ == "__main__":
    main()
