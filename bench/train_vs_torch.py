#!/usr/bin/env python3
"""Training speed and memory beside PyTorch (transformers' DeepseekV3ForCausalLM), turn about in one run.

    bench/train_vs_torch.py --fathom build/release/src/fathom --python VENV/bin/python --data data/tinyshakespeare.txt \
        [--config bench/peers/micro.json] [--impl hf] [--compile] [--batch-size 8] [--seq-len 256] [--steps 12] [--rounds 3] [--threads 2]

Prints a table: tokens/s (median over the steps after the third) and peak resident memory of each round, and the ratios of the medians.
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile

BYTE_IDS = 258  # of fathom's bytes with begin and end; a smaller vocabulary becomes so large, for both
HERE = pathlib.Path(__file__).parent


def run_measured(command):
    """stdout, and the peak resident megabytes of the process."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed with status {status}")
    return output, usage.ru_maxrss / 1024


def run_fathom(options, folder):
    log = folder / "log.jsonl"
    log.unlink(missing_ok=True)
    shutil.rmtree(folder / "out", ignore_errors=True)  # a run would continue what it finds there
    _, peak = run_measured([options.fathom, "train", "--quiet", "--threads", str(options.threads), "--model-config",
                            options.config, "--tokenizer", "bytes", "--data", options.data, "--out", str(folder / "out"),
                            "--steps", str(options.steps), "--seq-len", str(options.seq_len), "--batch-size",
                            str(options.batch_size), "--micro-batch", str(options.batch_size), "--lr", "1e-3", "--log",
                            str(log)])
    speeds = [json.loads(line)["tokens_per_s"] for line in log.read_text().splitlines()]
    return statistics.median(speeds[3:]), peak


def run_torch(options):
    output, peak = run_measured([options.python, HERE / "peers/torch_train.py", "--config", options.config, "--data",
                                 options.data, "--seq-len", str(options.seq_len), "--batch-size", str(options.batch_size),
                                 "--steps", str(options.steps), "--impl", options.impl, "--threads", str(options.threads),
                                 *(["--compile"] if options.compile else [])])
    return json.loads(output.strip().splitlines()[-1])["tokens_per_s"], peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fathom", required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--config", default=str(HERE / "peers/micro.json"))
    parser.add_argument("--impl", default="hf", choices=["hf", "batched"])
    parser.add_argument("--compile", action="store_true", help="torch.compile for the peer")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads(pathlib.Path(options.config).read_text())
        config["vocab_size"] = max(config["vocab_size"], BYTE_IDS)
        options.config = str(pathlib.Path(folder) / "config.json")
        pathlib.Path(options.config).write_text(json.dumps(config))
        for i in range(options.rounds):
            rows.append((*run_fathom(options, pathlib.Path(folder)), *run_torch(options)))
            print("round %d: fathom %.0f tokens/s %.0f MB, torch %.0f tokens/s %.0f MB" % (i + 1, *rows[-1]), flush=True)
    ours, our_peak, theirs, their_peak = (statistics.median(column) for column in zip(*rows))
    print(f"speed: {ours:.0f} / {theirs:.0f} tokens/s = {ours / theirs:.2f} x")
    print(f"peak memory: {our_peak:.0f} / {their_peak:.0f} MB = {our_peak / their_peak:.0%}")


if __name__ == "__main__":
    main()
