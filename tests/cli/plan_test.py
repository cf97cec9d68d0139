#!/usr/bin/env python3
"""fathom plan. usage: plan_test.py PROGRAM"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

PROGRAM = sys.argv.pop(1)
DATA = pathlib.Path(__file__).resolve().parent.parent / "data" / "parallel"


def plan(*arguments, stdin=""):
    return subprocess.run([PROGRAM, "plan", *arguments], input=stdin, capture_output=True, text=True, timeout=60)


class Schedule(unittest.TestCase):
    def test_is_the_published_one(self):
        for expected in json.loads((DATA / "pipeline.schedules.json").read_text()):
            sim = expected["sim"][1]
            done = plan("schedule", "--kind", expected["schedule"], "--ranks", str(expected["ranks"]), "--chunks", str(expected["chunks"]),
                        "--f", str(sim["F"]), "--b", str(sim["B"]), "--w", str(sim["W"]), "--fb", str(sim["FB"]), "--json")
            self.assertEqual(done.stderr, "")
            told = json.loads(done.stdout)
            self.assertEqual(told["ops"], expected["ops"])
            self.assertEqual({key: told[key] for key in ("makespan", "idle", "peak_live")}, {key: sim[key] for key in ("makespan", "idle", "peak_live")})

    def test_is_drawn(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "schedule.svg"
            done = plan("schedule", "--kind", "1f1b", "--ranks", "4", "--chunks", "8", "--svg", str(file))
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("by formula 9", done.stdout)
            xml.dom.minidom.parse(str(file))

    def test_wrong_use(self):
        for arguments in (["--kind", "dualpipe", "--ranks", "3"], ["--kind", "dualpipev", "--ranks", "8", "--chunks", "15"], ["--ranks", "0"], ["--f", "-1"],
                          ["--f", "nan"], ["--w", "5", "--b", "2"], ["--kind", "zb2p"], ["--ranks", "1024", "--chunks", "65536"]):
            done = plan("schedule", *arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertEqual(done.stderr.count("\n"), 1)
        self.assertEqual(plan().returncode, 2)
        done = plan("schedule", "--svg", "/nowhere/at/all.svg")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr.count("\n"), 1)


class Eplb(unittest.TestCase):
    def test_is_the_published_one(self):
        lines = (DATA / "eplb.vectors.jsonl").read_text().splitlines()
        inputs = [{key: each[key] for key in ("weight", "num_replicas", "num_groups", "num_nodes", "num_gpus")} for each in map(json.loads, lines)]
        done = plan("eplb", "--json", stdin="\n".join(map(json.dumps, inputs)))
        self.assertEqual(done.stderr, "")
        told = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual(len(told), len(lines))
        for ours, theirs in zip(told, map(json.loads, lines)):
            for key in ("physical_to_logical", "logical_to_physical", "expert_count"):
                self.assertEqual(ours[key], theirs[key])

    def test_wrong_input(self):
        good = {"weight": [[1, 2]], "num_replicas": 2, "num_groups": 1, "num_nodes": 1, "num_gpus": 2}
        self.assertIn("GPU by GPU: 0 | 1", plan("eplb", stdin=json.dumps(good)).stdout)
        for change in ({"weight": 5}, {"weight": []}, {"weight": [[]]}, {"weight": [["a"]]}, {"num_gpus": 0}, {"num_gpus": 1.5}, {"num_replicas": 10**9},
                       {"num_nodes": None}, {"weight": [[1, -2]]}, {"num_groups": 3}):
            done = plan("eplb", stdin=json.dumps({**good, **change}))
            self.assertEqual(done.returncode, 1, change)
            self.assertTrue(done.stderr.startswith("fathom: standard input: line 1: "), done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)
        self.assertEqual(plan("eplb", stdin="[" * 100000).returncode, 1)


if __name__ == "__main__":
    unittest.main()
