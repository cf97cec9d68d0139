#!/usr/bin/env python3
"""Schedules run by real processes over MPI. usage: mpi_test.py PROBE [--full]

Stages compute by waiting (programs/pipeline_probe.cc), so that ranks behave like devices of their own. Measured: how long ranks wait beside what the
formulas say, and how much of the messages' time hides behind nothing. --full: 8 ranks, all schedules, the figures of docs/parallel.md."""
import argparse
import json
import subprocess
import sys

from ranks import ENVIRONMENT, MPIRUN

FORMULAS = {"gpipe": lambda p, f, b, w, fb: (p - 1) * (f + b), "1f1b": lambda p, f, b, w, fb: (p - 1) * (f + b),
            "zb1p": lambda p, f, b, w, fb: (p - 1) * (f + b - 2 * w), "dualpipe": lambda p, f, b, w, fb: (p // 2 - 1) * (fb + b - 3 * w),
            "dualpipev": lambda p, f, b, w, fb: (p - 1) * (fb + b - 3 * w)}


def run(probe, kind, ranks, chunks, f, b, w, communication=0, size=1 << 16, overlap=True):
    command = [*MPIRUN, str(ranks), probe, "--kind", kind, "--chunks", str(chunks), "--f", str(f), "--b", str(b), "--w", str(w), "--messages", str(communication),
               "--handover", str(size), *([] if overlap else ["--no-overlap"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def bubble(probe, kind, ranks, chunks, unit):
    """Share of the time in which a rank computes nothing, measured and by formula. F = I = W, B = 2, F&B = F + B, in ms."""
    f, b, w = unit, 2 * unit, unit
    told = run(probe, kind, ranks, chunks, f, b, w)
    measured = 1 - sum(told["computed"]) / ranks / told["makespan"]
    wait = FORMULAS[kind](ranks, f, b, w, f + b)
    expected = wait / (wait + (f + b) * chunks * (2 if kind == "dualpipev" else 1))
    print(json.dumps({"schedule": kind, "ranks": ranks, "chunks": chunks, "makespan_s": round(told["makespan"], 3), "bubble_measured": round(measured, 4),
                      "bubble_by_formula": round(expected, 4)}), flush=True)
    return measured, expected


def exposed(probe, kind, ranks, chunks, unit, overlap):
    """Share of the time in which a rank waits for messages of its passes, which take as long as computing them does."""
    told = run(probe, kind, ranks, chunks, unit, 2 * unit, unit, communication=unit, overlap=overlap)
    share = sum(told["exposed"]) / ranks / told["makespan"]
    print(json.dumps({"schedule": kind, "ranks": ranks, "chunks": chunks, "overlap": overlap, "makespan_s": round(told["makespan"], 3), "exposed": round(share, 4)}), flush=True)
    return share


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("probe")
    parser.add_argument("--full", action="store_true")
    o = parser.parse_args()
    wrong = []
    ranks, chunks, unit = (8, 32, 40) if o.full else (4, 8, 10)
    for kind in FORMULAS if o.full else ("zb1p", "dualpipe", "dualpipev"):
        measured, expected = bubble(o.probe, kind, ranks, chunks, unit)
        # Shortened, it is only looked at whether chunks come whole and in order, which the probe does: times are those of the machine's other work too.
        if o.full and abs(measured - expected) > 0.1 * expected:
            wrong.append(f"{kind}: ranks wait for {measured:.4f} of the time, by formula {expected:.4f}")
    for kind, overlap, most in (("1f1b", False, 1), ("dualpipe", True, 0.05)):
        # What has nothing beside it at both ends of a step weighs less in a longer one.
        share = exposed(o.probe, kind, ranks, 4 * chunks if o.full else chunks, unit, overlap)
        if o.full and share > most:
            wrong.append(f"{kind}: {share:.4f} of the time ranks wait for messages that hide behind nothing")
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
