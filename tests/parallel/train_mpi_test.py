#!/usr/bin/env python3
"""fathom train on several processes over MPI: losses, checkpoints, errors, a process that dies. usage: train_mpi_test.py PROGRAM MODEL_CONFIG TEXT"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from ranks import ENVIRONMENT, MPIRUN, end_of, ranks_of

PROGRAM, CONFIG, TEXT = (os.path.abspath(path) for path in sys.argv[1:4])


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "train.jsonl").read_text().splitlines()]


class Train(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def command(self, processes, out, *options, steps=4):
        start = MPIRUN + [str(processes)] if processes else []
        return [*start, PROGRAM, "train", "--model-config", CONFIG, "--tokenizer", "bytes", "--data", TEXT, "--seq-len", "32", "--batch-size", "8", "--micro-batch", "1",
                "--lr", "4e-3", "--threads", "1", "--steps", str(steps), "--schedule", "constant", "--out", str(self.folder / out), *options]

    def run_it(self, processes, out, *options, steps=4):
        return subprocess.run(self.command(processes, out, *options, steps=steps), capture_output=True, text=True, timeout=120, env=ENVIRONMENT)

    def test_losses_are_those_of_one_process_whatever_the_layout(self):
        alone = self.run_it(0, "alone")
        self.assertEqual(alone.returncode, 0, alone.stderr)
        expected = losses(self.folder / "alone")
        for out, processes, *options in (("dp", 2), ("dual", 4, "--pp", "2", "--ep", "2", "--pp-schedule", "dualpipe", "--save-every", "2", "--save-mode", "async", "--check-memory",
                                                                                                 "--ema-decay", "0.9", "--recompute", "selective", "--trace", str(self.folder / "trace.json"))):
            done = self.run_it(processes, out, *options)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(done.stdout.count("\n"), 1, "one of them tells the result")
            for ours, theirs in zip(losses(self.folder / out), expected, strict=True):
                self.assertAlmostEqual(ours, theirs, delta=1e-5 * theirs)
        # What each of them did: passes and rows of experts, none of its passes over another.
        events = json.loads((self.folder / "trace.json").read_text())["traceEvents"]
        self.assertEqual({event["pid"] for event in events}, {0, 1, 2, 3})
        for rank in range(4):
            pieces = sorted((event["ts"], event["dur"], event["name"]) for event in events if event["pid"] == rank and event.get("cat") in ("pass", "wait"))
            names = {name for _, _, name in pieces}
            self.assertTrue({"F0", "F1", "B0", "B1"} <= names and names & {"I0", "I1"} and names & {"W0", "W1"}, names)
            for (begin, length, _), (following, _, _) in zip(pieces, pieces[1:]):
                self.assertLessEqual(begin + length, following + 1)
            self.assertLessEqual({"dispatch", "combine"}, {event["name"] for event in events if event["pid"] == rank})
            # Gradients are summed beside passes: the first of each step before the last of these.
            sums = [event for event in events if event["pid"] == rank and event.get("cat") == "sum" and event["ph"] == "b"]
            steps = [event for event in events if event["pid"] == rank and event["name"].startswith("step ")]
            for step in steps:
                begins = [sum["ts"] for sum in sums if step["ts"] <= sum["ts"] <= step["ts"] + step["dur"]]
                last = max(ts for ts, length, name in pieces if name[0] in "BIW" and step["ts"] <= ts <= step["ts"] + step["dur"])
                self.assertLess(min(begins), last)
        drawn = subprocess.run([PROGRAM, "plan", "schedule", "--from-trace", str(self.folder / "trace.json"), "--json"], capture_output=True, text=True, timeout=60)
        self.assertEqual(drawn.returncode, 0, drawn.stderr)
        told = json.loads(drawn.stdout)
        self.assertEqual((told["step"], len(told["ranks"])), (4, 4))
        for rank in told["ranks"]:
            self.assertGreater(rank["computed_s"], 0)
            self.assertLessEqual(sum(s for key, s in rank.items() if key != "sums_beside_s"), 1.001 * told["makespan_s"])
        # Another layout goes on where this one ended.
        done = self.run_it(2, "dual", "--pp", "2", "--ema-decay", "0.9", "--recompute", "full", "--resume", steps=5)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("resuming after step 4", done.stderr)
        self.assertEqual(len(losses(self.folder / "dual")), 5)
        for model in ("dual", "dual/average"):
            inspected = subprocess.run([PROGRAM, "inspect", str(self.folder / model)], capture_output=True, text=True, timeout=60)
            self.assertEqual(inspected.returncode, 0, inspected.stderr)

    def test_what_cannot_be_is_told_once(self):
        for options in (["--pp", "3"], ["--ep", "3", "--dp", "3"], ["--pp", "2", "--dp", "2"], ["--sample-every", "2"]):
            done = self.run_it(2, "wrong", *options)
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual(done.stderr.count("fathom: train: "), 1, done.stderr)
        for option in (["--no-such-option"], ["--init", str(self.folder / "nothing")]):
            done = self.run_it(2, "wrong", *option)
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual(done.stderr.count("fathom: "), 1, done.stderr)

    def test_a_process_that_hangs_is_named(self):
        for victim in (0, 1):
            told, took, _ = self.end_one(f"stopped-{victim}", victim, signal.SIGSTOP, "--hang-timeout", "2")
            self.assertLess(took, 2 + 5 + 1)
            self.assertRegex(told, f"fathom: rank {victim} has not been heard of for [23] s, it was at: ")

    def test_a_process_that_dies_ends_all_and_the_run_goes_on(self):
        _, took, out = self.end_one("killed", 1, signal.SIGKILL)
        self.assertLess(took, 5)
        done = self.run_it(2, "killed", "--pp", "2", "--resume", steps=len(losses(out)) // 5 * 5 + 5)
        self.assertEqual(done.returncode, 0, done.stderr)

    def end_one(self, name, victim, with_signal, *options):
        """What a job says, and how long it lasts, when one of its processes gets a signal."""
        out = self.folder / name
        command = self.command(2, name, "--pp", "2", "--save-every", "5", *options, steps=2000)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as job:
            deadline = time.monotonic() + 60
            while not (out / "checkpoints" / "step-5" / "manifest.json").exists():
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)
            ranks = ranks_of(job)
            self.assertEqual(sorted(ranks), [0, 1])
            os.kill(ranks[victim], with_signal)
            told, took = end_of(job, ranks.values(), timeout=60)
            self.assertNotEqual(job.returncode, 0)
        return told, took, out


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
