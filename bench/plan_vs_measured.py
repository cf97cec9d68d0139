#!/usr/bin/env python3
"""What fathom plan predicts for this machine beside what fathom bench and fathom train then measure.

usage: plan_vs_measured.py PROGRAM [--threads N] [--rounds N] [--weights FORMAT] [--json]

Each round of a model measures the machine, the model and the machine again, so that what other guests of the host take is the same for both; the prediction is
made from the mean of the two machine measurements. Printed: the medians of the rounds and the error of the prediction. Wants an idle machine.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ["models/shakespeare.config.json", "bench/peers/micro.json", "bench/peers/small.json"]
PROMPT, GEN, SEQ_LEN, BATCH, STEPS = 512, 64, 256, 8, 6


def run(*command, timeout=600):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def mean_of(first, second):
    """Of two measurements of the machine, number by number; lines are numbers of threads."""
    def mean(a, b):
        return {key: (value + b[key]) / 2 if isinstance(value, float) else value for key, value in a.items()}

    return [mean(a, b) for a, b in zip(first, second)]


class Round:
    def __init__(self, options, config, folder):
        self.options, self.config, self.folder = options, config, pathlib.Path(folder)
        self.common = [options.program] if options.threads is None else [options.program, "--threads", options.threads]

    def machine(self):
        return run(*self.common, "bench", "--machine", "--json")

    def plan(self, kind, machine, *arguments):
        file = self.folder / "machine.json"
        file.write_text("".join(json.dumps(line) + "\n" for line in machine))
        (told,) = run(self.options.program, "plan", kind, "--hardware", file, "--model-config", self.config, "--json", *arguments)
        return {name: line["value"] for name, line in told["lines"].items()}

    def inference(self):
        before = self.machine()
        tests = run(*self.common, "bench", "--model-config", self.config, "--weights", self.options.weights, "--prompt", PROMPT, "--gen", GEN, "--reps", 3, "--json")
        machine = mean_of(before, self.machine())
        measured = {test["test"]: statistics.median(test["samples_ts"]) for test in tests}
        prefill = self.plan("serve", machine, "--weights", self.options.weights, "--kv-type", "f32", "--prompt", PROMPT, "--context", PROMPT)
        # bench writes from an empty cache on.
        decode = self.plan("serve", machine, "--weights", self.options.weights, "--kv-type", "f32", "--prompt", PROMPT, "--context", GEN // 2)
        return [("prefill", prefill["prefill_gpu"], measured[f"pp{PROMPT}"]), ("decode", decode["user_tokens_s"], measured[f"tg{GEN}"])]

    def training(self):
        before = self.machine()
        out = self.folder / "run"
        run(*self.common, "train", "--model-config", self.config, "--tokenizer", "bytes", "--data", ROOT / "data/tinyshakespeare-train.txt", "--out", out,
            "--steps", STEPS, "--seq-len", SEQ_LEN, "--batch-size", BATCH, "--micro-batch", BATCH, "--lr", "1e-3", "--warmup", 2, "--precision", "f32")
        machine = mean_of(before, self.machine())
        steps = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
        measured = statistics.median([step["tokens_per_s"] for step in steps if "tokens_per_s" in step][1:])  # the first one warms up
        told = self.plan("train", machine, "--seq-len", SEQ_LEN, "--batch-size", BATCH, "--micro-batch", BATCH, "--precision", "f32")
        return [("training", told["tokens_per_s"], measured)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", default="q8_0")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.program = pathlib.Path(options.program).resolve()
    if not options.json:
        print("| model | what | predicted tokens/s | measured tokens/s | error |\n| --- | --- | --- | --- | --- |", flush=True)
    for model in MODELS:
        results = {}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                each = Round(options, ROOT / model, folder)
                for what, predicted, measured in each.inference() + each.training():
                    results.setdefault(what, []).append((predicted, measured))
        for what, rounds in results.items():
            predicted, measured = (statistics.median(column) for column in zip(*rounds))
            error = statistics.median(p / m - 1 for p, m in rounds)
            if options.json:
                print(json.dumps({"model": model, "what": what, "predicted": predicted, "measured": measured, "error": error}), flush=True)
            else:
                print(f"| {pathlib.Path(model).name} | {what} | {predicted:,.1f} | {measured:,.1f} | {100 * error:+.1f} % |", flush=True)


if __name__ == "__main__":
    main()
