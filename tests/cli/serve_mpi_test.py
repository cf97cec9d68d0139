#!/usr/bin/env python3
"""fathom serve on several processes over MPI: answers are those of one, experts move, a process that dies ends all. usage: serve_mpi_test.py PROGRAM"""
import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

from program import PROGRAM, Case, fathom
from server import SHAKESPEARE, Server

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "parallel"))
from ranks import ENVIRONMENT, MPIRUN, are_there, ranks_of  # noqa: E402


class Ranks(Server):
    """Ended by a signal to the first process alone: mpirun would kill its processes a second behind one that it passes on."""

    def __init__(self, case, n, *arguments, **options):
        super().__init__(case, *arguments, start=[*MPIRUN, str(n)], threads=1, env=ENVIRONMENT, **options)
        self.ranks = ranks_of(self.process)

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            os.kill(self.ranks[0], signal.SIGTERM)
            self.process.wait(timeout=60)
        super().__exit__(kind, value, trace)
        self.case.assertEqual(are_there(self.ranks.values()), [])


class ServeOnRanks(Case):
    def test_greedy_answers_are_those_of_generate_whoever_gives_them(self):
        prompts = ["ROMEO:\n", "First Citizen:\nBefore we proceed", "The king", "O", "JULIET:\nO Romeo, Romeo! wherefore art thou Romeo? Deny thy father and refuse thy name"]
        wanted = {}
        for prompt in prompts:
            result = json.loads(self.assert_done(fathom("generate", "--model", SHAKESPEARE, "--prompt", prompt, "--max-tokens", "40", "--json")))
            wanted[prompt] = result["text"]
        for n, *options in ((2,), (3, "--redundant-experts", "2", "--rebalance-every", "0.01", "--draft", "mtp"), (2, "--expert-rows", "bf16")):
            with Ranks(self, n, *options) as server:
                def ask(i):
                    body = {"prompt": prompts[i % len(prompts)], "max_tokens": 40, "temperature": 0}
                    if i % 2:
                        return "".join(e["choices"][0]["text"] for e in server.events("/v1/completions", body))
                    return server.done("/v1/completions", body)["choices"][0]["text"]
                with concurrent.futures.ThreadPoolExecutor(10) as pool:
                    texts = list(pool.map(ask, range(20)))
                if "bf16" in options:
                    self.assertEqual({len(text) for text in texts}, {40})  # whose bits are others
                else:
                    self.assertEqual(texts, [wanted[prompts[i % len(prompts)]] for i in range(20)])
                self.assertEqual(server.metric("generation_tokens_total"), 20 * 40)
                if "--rebalance-every" in options:
                    self.assertIn("experts are dealt out anew", server.logged())
                # Forms of the output hold on all of them.
                body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 30, "n": 6, "guided_choice": ["yes", "no"]}
                self.assertLessEqual({c["message"]["content"] for c in server.done("/v1/chat/completions", body)["choices"]}, {"yes", "no"})

    def test_answers_that_are_begun_end_before_the_processes_do(self):
        with Ranks(self, 2) as server:
            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                begun = [pool.submit(server.done, "/v1/completions", {"prompt": f"{i}", "max_tokens": 150}) for i in range(6)]
                while server.metric("num_requests_running") < 6:
                    time.sleep(0.01)
                os.kill(server.ranks[0], signal.SIGTERM)
                for each in begun:
                    self.assertEqual(each.result()["usage"]["completion_tokens"], 150)
            self.assertEqual(server.process.wait(timeout=60), 0)

    def test_saved_beginnings_are_found_by_who_has_them(self):
        cache = str(self.folder / "cache" / "deep")
        prompts = [chr(ord("a") + i) * 150 for i in range(8)]
        def ask(server, prompt):
            return server.done("/v1/completions", {"prompt": prompt, "max_tokens": 2, "temperature": 0})
        with Ranks(self, 2, "--prefix-cache", cache) as server:
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                first = list(pool.map(lambda prompt: ask(server, prompt), prompts))
        with Ranks(self, 2, "--prefix-cache", cache) as server:
            for prompt, before in zip(prompts, first):
                again = ask(server, prompt)
                self.assertEqual(again["usage"]["prompt_tokens_details"]["cached_tokens"], 128)
                self.assertEqual(again["choices"][0]["text"], before["choices"][0]["text"])

    def test_a_process_that_dies_ends_all(self):
        for victim in (0, 1):
            server = Ranks(self, 2).__enter__()
            begin = time.monotonic()
            os.kill(server.ranks[victim], signal.SIGKILL)
            self.assertNotEqual(server.process.wait(timeout=60), 0)
            while are_there(server.ranks.values()):
                self.assertLess(time.monotonic() - begin, 5)
                time.sleep(0.02)
            server.process.stdout.close()
            server.log.close()

    def test_what_cannot_be_is_told_once(self):
        for words, options in (("--redundant-experts 2 can", ["--redundant-experts", "1"]), ("--mlock is for one process", ["--mlock"]), ("do not fill nodes", ["--ranks-per-node", "3", "--redundant-experts", "0"]),
                               ("nothing", ["--template", str(self.folder / "nothing")])):
            n = 4 if "nodes" in words else 2
            done = subprocess.run([*MPIRUN, str(n), PROGRAM, "serve", "--model", SHAKESPEARE, "--port", "0", *options], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
            self.assertNotEqual(done.returncode, 0)
            told = [line for line in done.stderr.splitlines() if line.startswith("fathom: ")]
            self.assertEqual(len([line for line in told if words in line]), 1, done.stderr)


if __name__ == "__main__":
    unittest.main()
