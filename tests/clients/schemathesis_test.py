#!/usr/bin/env python3
"""fathom serve answers requests that schemathesis makes up from its own openapi.json as that file says: right ones with an answer of the
published form, wrong ones with a refusal, none with a failure of the server.

    schemathesis_test.py FATHOM [--full] [--seed N]

Each value of the published schemas once, right and wrong, and 25 requests by chance for each route: some 2,600; with --full 20,000, four at a time.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import client_packages

client_packages.need("schemathesis")

import program
from program import TINY, Case
from serve_test import Server

HERE = pathlib.Path(__file__).resolve().parent
ASKED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/apply-template")


class Fuzzed(Case):
    full, seed = False, 1

    def run_schemathesis(self, server, phases, examples, seed):
        report = self.folder / f"report-{seed}.json"
        result = subprocess.run(
            [pathlib.Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json", "--max-examples", str(examples),
             "--exclude-path-regex", "^/(beta|anthropic)/|^/(chat/completions|completions|responses|models)",  # the same under other names
             "--phases", phases, "--seed", str(seed), "--continue-on-failure", "--no-shrink", "--no-color", "--warnings", "off",
             "--generation-database", "none", "--request-timeout", "60", "--report", "json", "--report-json-path", str(report)],
            cwd=self.folder, env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        self.assertEqual(result.returncode, 0, result.stdout[-20000:])
        return json.loads(report.read_text())["test_cases"]

    def test_answers_and_refusals_are_as_published(self):
        model = ("--template", str(client_packages.ROOT / "tests/data/chat/deepseek-v3.1.jinja"), "--ctx", "4096")
        with Server(self, *model, model=TINY) as server:
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                runs = [pool.submit(self.run_schemathesis, server, "coverage,fuzzing", 800 if self.full else 25, self.seed)]
                runs += [pool.submit(self.run_schemathesis, server, "fuzzing", 800, self.seed + i) for i in (1, 2, 3) if self.full]
                cases = {name: sum(run.result()[name] for run in runs) for name in ("generated", "unique_failures")}
            counts = collections.Counter()
            for line in server.logged().splitlines():
                if line.startswith("{"):
                    told = json.loads(line)
                    counts[told["path"] if told["path"] in ASKED else "other", told["status"]] += 1
            self.assertEqual(server.metric("num_requests_running") + server.metric("num_requests_waiting"), 0)
        print(f"{cases['generated']} cases, {cases['unique_failures']} failures; answered:")
        for path in (*ASKED, "other"):
            print(f"  {path}: " + ", ".join(f"{status}: {n}" for (p, status), n in sorted(counts.items()) if p == path))
        self.assertGreater(cases["generated"], 20000 if self.full else 1500)
        self.assertEqual([key for key in counts if key[1] >= 500 and key[1] != 503], [])
        for path in ASKED:  # or nothing has been seen of its answers
            self.assertGreater(counts[path, 200], 0.1 * sum(n for (p, _), n in counts.items() if p == path), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options, rest = parser.parse_known_args()
    Fuzzed.full, Fuzzed.seed = options.full, options.seed
    program.unittest.main(argv=[sys.argv[0], *rest])
