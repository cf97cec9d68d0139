#!/usr/bin/env python3
"""fathom bench --url: a load on fathom serve, whose own counts must be those that are reported; and wrong usage."""
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
import unittest

from program import PROGRAM, TINY, Case, fathom
from server import Server

FIGURES = {"mean", "p50", "p90", "p95", "p99", "max"}


class Bench(Case):
    def bench(self, server, *arguments, **options):
        return fathom("bench", "--url", server.url, *arguments, **options)

    def levels(self, server, *arguments):
        lines = self.assert_done(self.bench(server, "--json", *arguments)).splitlines()
        return [json.loads(line) for line in lines]

    def records(self, name):
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def test_counts_are_the_servers(self):
        with Server(self) as server:
            for endpoint in ("chat", "completions"):
                before = {name: server.metric(name) for name in ("prompt_tokens_total", "generation_tokens_total", "request_success_total")}
                arguments = ["--clients", "1,5", "--requests", "12", "--prompt", "90", "--gen", "17", "--warmup", "0", "--endpoint", endpoint, "--seed", endpoint.replace("chat", "1").replace("completions", "2")]
                levels = self.levels(server, *arguments, "--slo-ttft", "0.001", "--slo-tpot", "60000", "--save", str(self.folder / "save.jsonl"))
                grown = {name: server.metric(name) - value for name, value in before.items()}
                self.assertEqual([level["clients"] for level in levels], [1, 5])
                for level in levels:
                    self.assertEqual((level["test"], level["model"], level["endpoint"]), ("serve", "shakespeare", endpoint))
                    self.assertEqual((level["requests"], level["completed"], level["failed"], level["failures"], level["unfinished"]), (12, 12, 0, {}, 0))
                    self.assertEqual((level["output_tokens"], level["tokens_counted_by"]), (12 * 17, "server"))
                    self.assertLessEqual(abs(level["input_tokens"] / 12 - 90), 3)  # the model reads bytes, a word has four and a space
                    self.assertLess(level["cached_tokens"], 12 * 64)  # nothing but what a template may begin with
                    self.assertEqual(level["peak_concurrency"], level["clients"])
                    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
                        self.assertEqual(set(level[name]), FIGURES)
                        self.assertTrue(all(value >= 0 for value in level[name].values()))
                    self.assertAlmostEqual(level["output_tokens_per_s"], level["output_tokens"] / level["duration_s"])
                    self.assertAlmostEqual(level["requests_per_s"], 12 / level["duration_s"])
                    self.assertEqual((level["goodput"]["requests"], level["goodput"]["percent"], level["goodput"]["slo_e2e_ms"]), (0, 0, None))
                # Two requests more, of one token, tell how many tokens a word has.
                self.assertEqual(grown["request_success_total"], 26)
                self.assertEqual(grown["generation_tokens_total"], sum(level["output_tokens"] for level in levels) + 2)
                in_two = grown["prompt_tokens_total"] - sum(level["input_tokens"] for level in levels)
                self.assertTrue(39 + 199 <= in_two <= 260, in_two)
                records = self.records("save.jsonl")
                self.assertEqual([(r["clients"], r["request"]) for r in records], [(n, i) for n in (1, 5) for i in range(12)])
                for level in levels:
                    mine = [r for r in records if r["clients"] == level["clients"]]
                    self.assertTrue(all((r["end"], r["status"], r["completion_tokens"]) == ("completed", 200, 17) for r in mine), mine)
                    self.assertEqual(sum(r["prompt_tokens"] for r in mine), level["input_tokens"])
                    self.assertEqual(sum(len(r["pieces_ms"]) for r in mine), level["output_pieces"])
                    self.assertAlmostEqual(sum(r["pieces_ms"][0] for r in mine) / 12, level["ttft_ms"]["mean"], delta=0.01)
                    self.assertAlmostEqual(max(r["e2e_ms"] for r in mine), level["e2e_ms"]["max"], delta=0.01)
                    self.assertTrue(all(r["pieces_ms"] == sorted(r["pieces_ms"]) and r["pieces_ms"][-1] <= r["e2e_ms"] for r in mine))

    def test_open_loop(self):
        with Server(self) as server:
            arguments = ["--rate", "100,400", "--requests", "30", "--prompt", "20", "--gen", "4", "--seed", "3"]
            levels = self.levels(server, *arguments, "--save", str(self.folder / "a.jsonl"))
            self.assertEqual([(level["rate"], level["burstiness"], level["completed"]) for level in levels], [(100, 1, 30), (400, 1, 30)])
            self.levels(server, *arguments, "--save", str(self.folder / "b.jsonl"))
            begun = [[(r["rate"], r["begin_ms"]) for r in self.records(name)] for name in ("a.jsonl", "b.jsonl")]
            self.assertEqual(*begun)  # by the seed
            self.assertGreaterEqual(levels[0]["duration_s"], begun[0][29][1] / 1e3)
            for first, last in ((0, 29), (30, 59)):
                self.assertAlmostEqual(begun[0][first][1], 0)
                self.assertAlmostEqual(begun[0][last][1] * begun[0][first][0] / 1e3, 29, delta=25)

    def test_prompts_are_other_ones_but_for_what_is_shared(self):
        with Server(self) as server:
            [level] = self.levels(server, "--requests", "10", "--prompt", "100", "--shared-prefix", "200", "--gen", "2", "--clients", "2")
            self.assertAlmostEqual(level["input_tokens"] / 10, 300, delta=6)
            self.assertEqual(level["cached_tokens"], 10 * 192)  # whole pages of 64; the warm-up has left them there
            again = self.bench(server, "--requests", "10", "--prompt", "250", "--gen", "2", "--json", "--seed", "8")
            self.assertLess(json.loads(self.assert_done(again))["cached_tokens"], 640)
            self.assertNotIn("--seed", again.stderr)
            again = self.bench(server, "--requests", "10", "--prompt", "250", "--gen", "2", "--json", "--seed", "8")
            self.assertEqual(json.loads(self.assert_done(again))["cached_tokens"], 10 * 192)
            self.assertIn("--seed", again.stderr)

    def test_prompts_of_a_file(self):
        prompts = self.write("p.jsonl", '{"prompt": "ROMEO:"}\n{"messages": [{"role": "user", "content": "JULIET:"}], "max_tokens": 3}\n')
        with Server(self) as server:
            before = server.metric("generation_tokens_total")
            result = self.bench(server, "--prompts", prompts, "--requests", "5", "--gen", "9", "--warmup", "2", "--json")
            level = json.loads(self.assert_done(result))
            self.assertEqual((level["output_tokens"], level["prompt"]), (3 * 9 + 2 * 3, None))
            self.assertEqual(server.metric("generation_tokens_total") - before, 33 + 12)
            self.assertIn("2 prompts for 5 requests", result.stderr)
            self.assert_refused(self.bench(server, "--prompts", prompts, "--endpoint", "completions"), 1, "line 2", "chat")
            self.assert_refused(self.bench(server, "--prompts", str(self.folder / "none")), 1, "none")

    def test_what_people_see(self):
        with Server(self) as server:
            result = self.bench(server, "--clients", "1,2", "--requests", "4", "--prompt", "20", "--gen", "3", "--slo-ttft", "60000", "--slo-e2e", "1e6")
            text = self.assert_done(result)
            for words in ("shakespeare at http://127.0.0.1", "1 client: 4 requests in", "2 clients: 4 requests in", "none failed", "tokens/s in", "tokens/s out",
                          "TTFT", "TPOT", "ITL", "E2E", "p99", "100.0 % within TTFT 60000 ms, E2E 1e+06 ms"):
                self.assertIn(words, text)
            self.assertEqual(self.assert_done(self.bench(server, "--requests", "1", "--prompt", "9", "--gen", "1", "--quiet")).count("TPOT"), 0)  # of one token
            self.assertEqual(len(self.levels(server, "--no-keep-alive", "--requests", "3", "--prompt", "9", "--gen", "2", "--temperature", "1", "--stop-at-eos", "--extra-body", '{"top_k": 3}')), 1)
            # A base as clients of OpenAI have it.
            self.assert_done(fathom("bench", "--url", server.url + "/v1/", "--model", "any", "--requests", "1", "--prompt", "9", "--gen", "1"))
            self.assert_refused(fathom("bench", "--url", server.url + "/elsewhere", "--prompt", "9"), 1, "/elsewhere/v1/models", "404", "--model")
            refused = self.bench(server, "--extra-body", '{"temperature": "hot"}')
            self.assert_refused(refused, 1, "a first request fails", "http_400", "temperature")

    def test_keys(self):
        keys = self.write("keys", "# mine\nsk-one\nsk-two\n")
        os.chmod(keys, 0o600)
        few = ["--requests", "2", "--prompt", "9", "--gen", "1", "--quiet", "--json"]
        with Server(self, "--api-key-file", keys) as server:
            self.assert_refused(self.bench(server, *few), 1, "/v1/models", "401")
            self.assert_done(self.bench(server, *few, "--api-key-file", keys))
            self.assert_done(self.bench(server, *few, env={**os.environ, "FATHOM_BENCH_API_KEY": "sk-two"}))
            self.assert_refused(self.bench(server, *few, env={**os.environ, "FATHOM_BENCH_API_KEY": "a b"}), 2, "FATHOM_BENCH_API_KEY")
            os.chmod(keys, 0o644)
            self.assert_refused(self.bench(server, *few, "--api-key-file", keys), 1, "chmod 600")

    def test_failures_are_counted(self):
        with Server(self, "--max-batch", "1", "--max-waiting", "1") as server:
            result = self.bench(server, "--clients", "8", "--requests", "40", "--prompt", "9", "--gen", "40", "--json")
            level = json.loads(self.assert_done(result))
            self.assertEqual(level["completed"] + level["failed"], 40)
            self.assertEqual(level["failures"], {"http_429": level["failed"]})
            self.assertGreater(level["failed"], 0)
            self.assertIn("busy", level["failure_messages"]["http_429"])
            self.assertIn("x http_429", self.assert_done(self.bench(server, "--clients", "8", "--requests", "40", "--prompt", "9", "--gen", "40")))

    def test_what_nobody_answers_ends_with_an_error(self):
        class Refuses(http.server.BaseHTTPRequestHandler):
            left = 3  # of requests that are answered: those of the words and of the warm-up

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                Refuses.left -= 1
                body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n' if Refuses.left >= 0 else b'{"error":{"message":"not now"}}'
                self.send_response(200 if Refuses.left >= 0 else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            result = fathom("bench", "--url", f"http://127.0.0.1:{server.server_port}", "--model", "m", "--requests", "5", "--quiet", "--json")
            server.shutdown()
        self.assertEqual(result.returncode, 1)
        self.assertIn("no request was answered: http_503: not now", result.stderr)
        level = json.loads(result.stdout)
        self.assertEqual((level["failures"], level["ttft_ms"], level["input_tokens"]), ({"http_503": 5}, None, None))

    def test_a_signal_ends_it_with_what_was_measured(self):
        with Server(self) as server:
            save = self.folder / "save.jsonl"
            arguments = [PROGRAM, "bench", "--url", server.url, "--clients", "2,4", "--requests", "100000", "--prompt", "20", "--gen", "8", "--json", "--save", str(save)]
            with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:
                begin = time.monotonic()
                while server.metric("request_success_total") < 20 and time.monotonic() - begin < 60:
                    time.sleep(0.02)
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=60)
                self.assertEqual(process.returncode, 130, errors)
            level = json.loads(output)
            self.assertGreater(level["completed"], 0)
            self.assertEqual((level["clients"], level["failed"]), (2, 0))
            self.assertEqual(level["completed"] + level["unfinished"], 100000)
            ends = [r["end"] for r in self.records("save.jsonl")]
            self.assertEqual(ends.count("completed"), level["completed"])
            self.assertLessEqual(ends.count("unfinished"), 2)
            # Its streams are given up, and the server notices.
            for _ in range(200):
                if server.metric("num_requests_running") == 0:
                    break
                time.sleep(0.05)
            self.assertEqual(server.metric("num_requests_running"), 0)

    def test_a_signal_ends_it_while_nobody_answers(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            for model in ([], ["--model", "m"]):
                with subprocess.Popen([PROGRAM, "bench", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", *model], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                    asked, _ = silent.accept()
                    asked.recv(10)
                    process.send_signal(signal.SIGTERM)
                    output, errors = process.communicate(timeout=60)
                    self.assertEqual((process.returncode, output), (143, b""), errors)
                    asked.close()

    def test_wrong_usage(self):
        def refused(*arguments):
            return fathom("bench", *arguments)
        url = ["--url", "http://127.0.0.1:9"]
        for option in (["--clients", "2"], ["--rate", "2"], ["--requests", "3"], ["--save", "x"], ["--slo-ttft", "5"], ["--no-keep-alive"], ["--timeout", "3"]):
            self.assert_refused(refused("--model", TINY, *option), 2, option[0], "--url")
        for option in (["--depth", "3"], ["--batch", "2"], ["--reps", "2"], ["--machine"], ["--kv-type", "bf16"], ["--draft", "none"], ["--pin"], ["--model-config", "x"]):
            self.assert_refused(refused(*url, *option), 2, option[0], "--url")
        self.assert_refused(refused(*url, "--clients", "2", "--rate", "3"), 2, "--rate", "--clients")
        self.assert_refused(refused(*url, "--burstiness", "2"), 2, "--burstiness", "--rate")
        self.assert_refused(refused(*url, "--prompts", "x", "--prompt", "5"), 2, "--prompts", "--prompt")
        for option, value in (("--clients", "0"), ("--clients", "1,x"), ("--rate", "0"), ("--rate", "nan"), ("--gen", "0"), ("--prompt", "0"), ("--requests", "0"), ("--endpoint", "x"), ("--slo-e2e", "0")):
            self.assert_refused(refused(*url, option, value), 2, option)
        self.assert_refused(refused(*url, "--device", "cuda"), 2, "--device")
        self.assert_refused(refused("--url", "https://127.0.0.1"), 2, "https", "tunnel")
        self.assert_refused(refused("--url", "127.0.0.1:8080"), 2, "http://HOST:PORT")
        self.assert_refused(refused("--url", "http://no.such.host.invalid"), 1, "no.such.host.invalid")
        self.assert_refused(refused(*url), 1, "http://127.0.0.1:9", "cannot connect")
        self.assert_refused(refused(*url, "--extra-body", "[]", "--model", "x"), 1, "--extra-body")
        self.assert_refused(refused(*url, "--save", "/nonexistent/x"), 1, "/nonexistent")
        self.assertFalse(pathlib.Path("x").exists())


if __name__ == "__main__":
    unittest.main()
