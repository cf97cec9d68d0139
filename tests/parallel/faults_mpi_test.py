#!/usr/bin/env python3
"""Processes of a training that are killed (SIGKILL) or stopped (SIGSTOP) at random moments: all are gone in time, a stopped one is named, and the run, resumed
each time, comes to the same losses, bit for bit. usage: faults_mpi_test.py PROGRAM MODEL_CONFIG TEXT [--full]

Without --full two kills and one stop; with it 100 and 20, the figures of docs/parallel.md."""
import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from ranks import ENVIRONMENT, MPIRUN, end_of, ranks_of

STEPS, SAVE_EVERY, HANG_S = 40, 2, 2


def command(o, out, *options):
    return [*MPIRUN, "4", o.program, "train", "--model-config", o.model_config, "--tokenizer", "bytes", "--data", o.text,
            "--seq-len", "64", "--batch-size", "8", "--micro-batch", "1", "--lr", "4e-3", "--schedule", "constant", "--threads", "1", "--steps", str(STEPS), "--save-every",
            str(SAVE_EVERY), "--keep", "2", "--pp", "2", "--ep", "2", "--pp-schedule", "dualpipe", "--hang-timeout", str(HANG_S), "--quiet", "--out", str(out), *options]


def start(o, out, save_mode="sync"):
    return subprocess.Popen(command(o, out, "--resume", "--save-mode", save_mode), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def losses(out):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in map(json.loads, (out / "train.jsonl").read_text().splitlines())]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "model_config", "text"):
        parser.add_argument(name, type=os.path.abspath)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()
    signals = ([signal.SIGKILL] * 100 + [signal.SIGSTOP] * 20) if o.full else ([signal.SIGKILL] * 2 + [signal.SIGSTOP])
    rng = random.Random(o.seed)
    rng.shuffle(signals)
    slowest = {signal.SIGKILL: 0.0, signal.SIGSTOP: 0.0}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with start(o, folder / "calm") as job:
            _, told = job.communicate(timeout=300)
            assert job.returncode == 0, told
        calm = losses(folder / "calm")
        runs, n_done = 0, 0
        while signals:
            out = folder / f"disturbed-{runs}"
            runs += 1
            while signals:
                with start(o, out, rng.choice(("sync", "async"))) as job:
                    time.sleep(rng.uniform(0.2, 2.0))
                    ranks = ranks_of(job)
                    if job.poll() is None and len(ranks) == 4:
                        kind = signals.pop()
                        victim = rng.randrange(4)
                        os.kill(ranks[victim], kind)
                        told, took = end_of(job, ranks.values(), timeout=120)
                        # It may have been at its end already.
                        if job.returncode != 0:
                            slowest[kind] = max(slowest[kind], took)
                            most = 5 + (HANG_S + 1 if kind == signal.SIGSTOP else 0)
                            assert took < most, f"{took:.1f} s after {kind.name} of rank {victim}:\n{told}"
                            assert kind == signal.SIGKILL or f"rank {victim} has not been heard of" in told or "have not all come together" in told or "have not all left together" in told, told
                            n_done += 1
                    else:
                        _, told = job.communicate(timeout=300)
                        assert job.returncode == 0, told
                    if job.returncode == 0:
                        break
            with start(o, out) as job:
                _, told = job.communicate(timeout=300)
                assert job.returncode == 0, told
            assert losses(out) == calm, "the run that was disturbed came to other losses"
    print(json.dumps({"disturbed": n_done, "runs": runs, "slowest_end_after_kill_s": round(slowest[signal.SIGKILL], 2),
                      "slowest_end_after_stop_s": round(slowest[signal.SIGSTOP], 2), "hang_timeout_s": HANG_S}))


main()
