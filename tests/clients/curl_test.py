#!/usr/bin/env python3
"""fathom serve asked by curl: streams, connections kept, methods, ways to send a body.

    curl_test.py FATHOM [CASE]...
"""
import json
import shutil
import subprocess
import sys
import time
import unittest

import client_packages

from program import Case
from serve_test import Server

if not shutil.which("curl"):
    print("skipped: there is no curl")
    sys.exit(77)


class Curl(Case):
    def setUp(self):
        super().setUp()
        self.server = self.enterContext(Server(self))

    def curl(self, *arguments, body=None, code=0):
        given = ["--data-binary", "@-"] if body is not None else []
        text = body if body is None or isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        arguments = [a.replace("BASE", self.server.url) for a in arguments]
        result = subprocess.run(["curl", "-sS", "--max-time", "60", *given, *arguments], input=(text or "").encode(), capture_output=True)
        self.assertEqual(result.returncode, code, result.stderr)
        return result.stdout.decode()

    def head_and_body(self, *arguments, **options):
        head, _, body = self.curl("-i", *arguments, **options).partition("\r\n\r\n")
        lines = head.split("\r\n")
        return int(lines[0].split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}, body

    def test_a_stream_comes_in_pieces(self):
        body = json.dumps({"prompt": "ROMEO:", "max_tokens": 450, "n": 16, "ignore_eos": True, "stream": True})  # as docs/serving.md has it: no type told
        process = subprocess.Popen(["curl", "-sSN", "-i", f"{self.server.url}/v1/completions", "-d", body], stdout=subprocess.PIPE)
        begin, times, lines = time.monotonic(), [], []
        for line in process.stdout:
            times.append(time.monotonic() - begin)
            lines.append(line.decode())
        process.stdout.close()
        self.assertEqual(process.wait(), 0)
        self.assertTrue(lines[0].startswith("HTTP/1.1 200"), lines[0])
        head = [line.lower().strip() for line in lines[:lines.index("\r\n")]]
        self.assertIn("content-type: text/event-stream; charset=utf-8", head)
        self.assertIn("cache-control: no-cache", head)
        events = [line for line in lines[len(head) + 1:] if line != "\n"]
        self.assertEqual(events[-1], "data: [DONE]\n")
        self.assertTrue(all(e.startswith("data: {") for e in events[:-1]), events[:3])
        self.assertEqual(len(events) - 1, 16 * 451)
        first = times[len(head) + 1]
        self.assertLess(first, 0.5 * times[-1], "the first event waits for no other")

    def test_connections_are_kept(self):
        nothing = ["-o", "/dev/null"]
        told = self.curl("-w", "%{num_connects} %{response_code}\n", *nothing, "BASE/health", *nothing, "BASE/nowhere", *nothing, "BASE/v1/models")
        self.assertEqual(told, "1 200\n0 404\n0 200\n")
        told = self.curl("-0", "-w", "%{num_connects} %{http_version}\n", *nothing, "BASE/health", *nothing, "BASE/health")
        self.assertEqual([line.split()[0] for line in told.splitlines()], ["1", "1"])
        stream = {"prompt": "O", "max_tokens": 3, "stream": True}
        told = self.curl("-w", "%{num_connects}\n", *nothing, "BASE/v1/completions", *nothing, "BASE/v1/completions", body=stream)
        self.assertEqual(told, "1\n0\n")

    def test_methods(self):
        status, headers, body = self.head_and_body("BASE/v1/models")
        head = self.head_and_body("-I", "BASE/v1/models")
        self.assertEqual((head[0], head[1]["content-length"], head[2]), (200, headers["content-length"], ""))
        self.assertEqual((status, headers["content-type"], len(body.encode())), (200, "application/json", int(headers["content-length"])))
        for path, allow in (("/v1/models", "GET, HEAD, OPTIONS"), ("/v1/completions", "POST, OPTIONS")):
            status, headers, body = self.head_and_body("-X", "OPTIONS", f"BASE{path}")
            self.assertEqual((status, headers["allow"], body), (204, allow, ""))
            status, headers, body = self.head_and_body("-X", "DELETE", f"BASE{path}")
            self.assertEqual((status, headers["allow"], json.loads(body)["error"]["code"]), (405, allow, "method_not_allowed"))
        self.assertEqual(self.head_and_body("-I", "BASE/v1/completions")[0], 405)
        self.curl("-f", "BASE/v1/completions", code=22)

    def test_ways_to_send_a_body(self):
        ask = {"prompt": "Où? " + "x" * 200, "max_tokens": 1, "echo": True}
        headers = ("Content-Type: application/json", "Transfer-Encoding: chunked", "Expect: 100-continue", "Accept: application/json")
        for arguments in ([], *(["-H", header] for header in headers), ["--http2"], ["-0"], ["--compressed"]):
            with self.subTest(arguments=arguments):
                answer = json.loads(self.curl(*arguments, "BASE/v1/completions", body=ask))
                self.assertTrue(answer["choices"][0]["text"].startswith(ask["prompt"]), answer)
        big = self.curl("-w", "%{response_code}", "-o", "/dev/null", "BASE/tokenize", body={"prompt": "a" * 9_000_000})
        self.assertEqual(big, "413")
        status, _, body = self.head_and_body("BASE/v1/completions", body="{\"prompt\": ")
        self.assertEqual((status, json.loads(body)["error"]["code"]), (400, "invalid_json"))

    def test_names_of_models_in_addresses(self):
        for name, quoted in (("deepseek-ai/V3", "deepseek-ai%2FV3"), ("é b", "%C3%A9%20b"), ("50%", "50%25")):
            with Server(self, "--model-name", name) as server:
                self.server, mine = server, self.server
                self.assertEqual(json.loads(self.curl(f"BASE/v1/models/{quoted}"))["id"], name)
                self.assertEqual(self.head_and_body("BASE/v1/models/50%2")[0], 404)
                self.server = mine


if __name__ == "__main__":
    unittest.main()
