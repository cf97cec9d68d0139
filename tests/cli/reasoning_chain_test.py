#!/usr/bin/env python3
"""bench/reasoning.py, shortened: pretraining, GRPO, traces, a hybrid model, a dense student, each asked, in one go.

    reasoning_chain_test.py FATHOM

So short a chain teaches little: what it reaches at its full length is in docs/reasoning.md. Here every stage must make what the next one reads,
and the same command must find all of it done.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

FATHOM = sys.argv[1]
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODELS = {"base, thinking on", "base, thinking off", "rl, thinking on", "hybrid, thinking on", "hybrid, thinking off", "student, thinking on"}


def chain(out):
    command = [sys.executable, ROOT / "bench" / "reasoning.py", "--fathom", FATHOM, "--text", ROOT / "data" / "tinyshakespeare-val.txt", "--out", out,
               "--digits", "1-1", "--scale", "0.02", "--held-out", "40"]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    return done


with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder)
    first = chain(out)
    report = json.loads((out / "report.json").read_text())
    assert set(report["asked"]) == MODELS, report
    for name, each in report["asked"].items():
        assert each["n"] == 40 and 0 <= each["low"] <= each["right"] <= each["high"] <= 1 and 1 <= each["tokens"] <= 200, (name, each)
    for picture in ("rewards.svg", "lengths.svg"):
        assert xml.etree.ElementTree.parse(out / picture).getroot().tag.endswith("svg"), picture
    steps = [json.loads(line) for line in (out / "rl" / "train.jsonl").read_text().splitlines()]
    compared = [step["greatest_log_ratio"] for step in steps if step["updates"] > 0]
    assert compared and not any(compared), "sampling and training part"
    assert json.loads((out / "student" / "config.json").read_text())["model_type"] == "qwen2"
    kept = [json.loads(line) for line in (out / "data" / "traces.jsonl").read_text().splitlines()]
    assert kept, "no trace was right"
    for trace in kept:
        a, b = trace["messages"][0]["content"].rstrip("=").split("+")
        assert trace["messages"][1]["content"].endswith(str(int(a) + int(b))), trace
    models = {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    assert len(models) == 6, models
    again = chain(out)
    assert {path: path.stat().st_mtime_ns for path in models} == models, "a stage was made again"
    assert again.stdout.splitlines()[:7] == first.stdout.splitlines()[:7], (first.stdout, again.stdout)
print("the chain goes through, and is not made again")
