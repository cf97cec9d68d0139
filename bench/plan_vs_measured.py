#!/usr/bin/env python3
"""What fathom plan predicts for this machine beside what fathom bench and fathom train then measure.

usage: plan_vs_measured.py PROGRAM [--threads N] [--rounds N] [--weights FORMAT] [--models FILE...] [--json]

A round measures the machine, a model in bench and in training, and the machine again. What counts is the best of all rounds, of the machine's numbers as of the
model's: fathom bench --machine is a best of nine passes itself, and other guests of the host only take away. Wants an idle machine all the same.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = [ROOT / name for name in ("models/shakespeare.config.json", "bench/shapes/shakespeare_256.json", "bench/peers/small.json")]
PROMPT, GEN, SEQ_LEN, BATCH, STEPS = 512, 64, 256, 8, 5


def run(*command, timeout=600):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def best_of(first, second):
    """Of two measurements of the machine, number by number; lines are numbers of threads."""
    def best(a, b):
        return {key: (min if key == "latency_ns" else max)(value, b[key]) if isinstance(value, float) else value for key, value in a.items()}

    return [best(a, b) for a, b in zip(first, second)] if first else second


class Measured:
    """The best of all rounds of a model."""

    def __init__(self, options, config, folder):
        self.options, self.config, self.folder = options, config, pathlib.Path(folder)
        self.common = [options.program, "--threads", options.threads]
        self.machine, self.rates = [], {}

    def measure_machine(self):
        self.machine = best_of(self.machine, run(*self.common, "bench", "--machine", "--json"))

    def better(self, what, rate):
        self.rates[what] = max(rate, self.rates.get(what, 0))

    def round(self):
        self.measure_machine()
        tests = run(*self.common, "bench", "--model-config", self.config, "--weights", self.options.weights, "--prompt", PROMPT, "--gen", GEN, "--reps", 5, "--json")
        for test in tests:
            self.better("prefill" if test["test"].startswith("pp") else "decode", max(test["samples_ts"]))
        with tempfile.TemporaryDirectory() as out:
            run(*self.common, "train", "--model-config", self.config, "--tokenizer", "bytes", "--data", ROOT / "data/tinyshakespeare-train.txt", "--out", f"{out}/run",
                "--steps", STEPS, "--seq-len", SEQ_LEN, "--batch-size", BATCH, "--micro-batch", BATCH, "--lr", "1e-3", "--warmup", 2, "--precision", "f32")
            steps = [json.loads(line) for line in pathlib.Path(f"{out}/run/train.jsonl").read_text().splitlines()]
        self.better("training", max(step["tokens_per_s"] for step in steps if "tokens_per_s" in step))
        self.measure_machine()

    def plan(self, kind, name, *arguments):
        file = self.folder / "machine.json"
        file.write_text("".join(json.dumps(line) + "\n" for line in self.machine))
        (told,) = run(self.options.program, "plan", kind, "--hardware", file, "--model-config", self.config, "--json", *arguments)
        return told["lines"][name]["value"]

    def predicted(self):
        inference = ["--weights", self.options.weights, "--kv-type", "f32", "--prompt", PROMPT]
        return {"prefill": self.plan("serve", "prefill_gpu", *inference),
                "decode": self.plan("serve", "user_tokens_s", *inference, "--context", GEN // 2),  # bench writes from an empty cache on
                "training": self.plan("train", "tokens_per_s", "--seq-len", SEQ_LEN, "--batch-size", BATCH, "--micro-batch", BATCH, "--precision", "f32")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", default="q8_0")
    parser.add_argument("--models", nargs="+", default=MODELS, type=lambda name: pathlib.Path(name).resolve())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.program = pathlib.Path(options.program).resolve()
    if not options.json:
        print("| model | what | predicted tokens/s | measured tokens/s | error |\n| --- | --- | --- | --- | --- |", flush=True)
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            measured = Measured(options, model, folder)
            for _ in range(options.rounds):
                measured.round()
            predicted = measured.predicted()
        for what, rate in measured.rates.items():
            error = predicted[what] / rate - 1
            if options.json:
                print(json.dumps({"model": model.name, "what": what, "predicted": predicted[what], "measured": rate, "error": error, "machine": measured.machine[-1]}), flush=True)
            else:
                print(f"| {model.name} | {what} | {predicted[what]:,.1f} | {rate:,.1f} | {100 * error:+.1f} % |", flush=True)


if __name__ == "__main__":
    main()
