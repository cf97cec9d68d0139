#!/usr/bin/env python3
"""fathom watch over HTTP: logs read piece by piece beside a training that goes on, who may ask, what is refused. usage: watch_test.py PROGRAM"""
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True
from program import PROGRAM, Case, fathom  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]


def line(step, **more):
    return json.dumps({"step": step, "loss": 1.5, **more}) + "\n"


class Server:
    """Ended by a signal, with a check that it ended well."""

    def __init__(self, case, *arguments, end=signal.SIGTERM):
        self.case, self.end = case, end
        self.process = subprocess.Popen([PROGRAM, "watch", *map(str, arguments), "--port", "0"], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, encoding="utf-8")
        self.address = self.process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.process.send_signal(self.end)
        out, errors = self.process.communicate(timeout=20)
        if kind is None:
            self.case.assertEqual((self.process.returncode, out), (0, ""), errors)

    def request(self, method, path, headers=None):
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=20)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace"), dict(answer.getheaders())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.request("GET", path, {name.replace("_", "-"): value for name, value in headers.items()})

    def runs(self):
        status, text, _ = self.get("/runs")
        self.case.assertEqual(status, 200, text)
        return json.loads(text)["runs"]

    def log(self, run=0, start=0, mark=None):
        """(lines, where they begin, where the next ones do, the mark there)"""
        status, text, headers = self.get(f"/runs/{run}/log?from={start}" + (f"&mark={mark}" if mark else ""))
        self.case.assertEqual(status, 200, text)
        return text, int(headers["X-Log-From"]), int(headers["X-Log-Next"]), headers["X-Log-Mark"]


class Watch(Case):
    def run_directory(self, name, text=None):
        folder = self.folder / name
        folder.mkdir()
        if text is not None:
            (folder / "train.jsonl").write_text(text)
        return folder

    def test_logs_are_read_as_they_grow(self):
        first, later = self.run_directory("first", line(1)), self.run_directory("later")
        with Server(self, first, later, end=signal.SIGINT) as server:
            runs = server.runs()
            self.assertEqual([(run["name"], run["there"], run.get("bytes")) for run in runs],
                             [("first", True, len(line(1))), ("later", False, None)])
            self.assertEqual(server.get("/runs/1/log")[0], 204)
            text, _, at, mark = server.log()
            self.assertEqual(text, line(1))
            with open(first / "train.jsonl", "a") as log:
                log.write(line(2) + line(3)[:10])
            self.assertNotEqual(server.runs()[0]["changed"], runs[0]["changed"])
            text, begin, at, mark = server.log(0, at, mark)
            self.assertEqual((text, begin), (line(2), len(line(1))))
            (later / "train.jsonl").write_text(line(1))
            self.assertTrue(server.runs()[1]["there"])
            self.assertEqual(server.log(1)[0], line(1))
            # Cut back and begun again, as by --resume: told by where the answer begins.
            (first / "new").write_text(line(1) + line(2, other=True) + line(3))
            (first / "new").rename(first / "train.jsonl")
            self.assertEqual(server.log(0, at, mark)[:2], (line(1) + line(2, other=True) + line(3), 0))
            (first / "train.jsonl").unlink()
            self.assertEqual(server.get("/runs/0/log")[0], 204)
            self.assertFalse(server.runs()[0]["there"])

    def test_long_logs_come_in_pieces(self):
        text = "".join(line(step, junk="x" * 200) for step in range(20000)) + "y" * (3 << 20) + "\n" + line(20000)
        path = self.write("long.jsonl", text)
        with Server(self, path) as server:
            read, at, mark, pieces = "", 0, None, 0
            while at < len(text):
                piece, begin, end, mark = server.log(0, at, mark)
                self.assertEqual(begin, at)
                self.assertGreater(end, at)
                self.assertLessEqual(len(piece), 1 << 20)
                read, at, pieces = read + piece, end, pieces + 1
            self.assertGreater(pieces, 4)
            self.assertEqual(read.count("\n"), 20001)
            self.assertTrue(read.endswith(line(20000)))

    def test_beside_a_training_that_is_resumed(self):
        config = self.write("config.json", json.dumps({
            "model_type": "deepseek_v3", "vocab_size": 258, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "n_shared_experts": 1, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "kv_lora_rank": 8, "q_lora_rank": None,
            "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1, "norm_topk_prob": True,
            "scoring_func": "sigmoid", "topk_method": "noaux_tc", "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "hidden_act": "silu", "initializer_range": 0.05, "tie_word_embeddings": False}))
        text = self.write("text.txt", "the quick brown fox jumps over the lazy dog\n" * 40)
        out = self.run_directory("run")
        train = ["train", "--model-config", config, "--data", text, "--tokenizer", "bytes", "--out", str(out), "--seq-len", "16",
                 "--batch-size", "4", "--threads", "1", "--save-every", "10"]
        with Server(self, out) as server:
            self.assertFalse(server.runs()[0]["there"])
            self.assert_done(fathom(*train, "--steps", "20"))
            before, _, at, mark = server.log()
            self.assert_done(fathom(*train, "--steps", "30", "--resume"))
            more, begin, _, _ = server.log(0, at, mark)
            self.assertEqual(begin, at)  # nothing was dropped: what was read still stands
            steps = [json.loads(each) for each in (before + more).splitlines()]
        self.assertEqual([each["step"] for each in steps], list(range(1, 31)))
        self.assertEqual([each["steps"] for each in steps], [20] * 20 + [30] * 10)
        seconds = [each["seconds"] for each in steps]
        self.assertEqual(seconds, sorted(seconds))
        for name in ("loss", "lr", "grad_norm", "tokens", "tokens_per_s", "max_violation"):
            self.assertTrue(all(name in each for each in steps), name)
        for name in ("expert_load", "bias_range"):
            self.assertIn(name, steps[-1])

    def test_the_page_and_what_it_may_do(self):
        with Server(self, self.run_directory("run")) as server:
            status, text, headers = server.get("/")
            if status == 404:
                self.skipTest("built without the page")
            self.assertIn("<title>fathom watch</title>", text)
            policy = headers["Content-Security-Policy"]
            self.assertIn("default-src 'none'", policy)
            self.assertNotIn("unsafe", policy)
            for path in ("/app.js", "/style.css", "/base.css", "/dom.js", "/theme.js"):
                self.assertEqual(server.get(path)[0], 200, path)
            for path in ("/openapi.json", "/markdown.js", "/lib/marked.js", "/watch/app.js", "/../chat/app.js", "/train.jsonl"):
                self.assertEqual(server.get(path)[0], 404, path)

    def test_what_is_refused(self):
        with Server(self, self.run_directory("run", line(1))) as server:
            for path in ("/runs/1/log", "/runs/x/log", "/runs//log", "/runs/-1/log", "/runs/0", "/runs/0/log/", "/runs/log",
                         "/runs/99999999999999999999/log", "/v1/models"):
                self.assertEqual(server.get(path)[0], 404, path)
            for query in ("from=x", "from=-1", "from=1e3", "from=", "from=99999999999999999999", "mark=xyz", "from=1&mark=-"):
                status, text, _ = server.get("/runs/0/log?" + query)
                self.assertEqual(status, 400, query)
                self.assertIn("is no number", json.loads(text)["error"]["message"])
            for query in ("", "from=0", "other=1&from=0", "from=18446744073709551615", "from", "&&"):
                self.assertEqual(server.get("/runs/0/log?" + query)[:2], (200, line(1)), query)
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                status, _, headers = server.request(method, "/runs")
                self.assertEqual((status, headers["Allow"]), (405, "GET, HEAD"))
            self.assertEqual(server.request("HEAD", "/runs")[:2], (200, ""))
            self.assertEqual(server.get("/runs", Host="evil.example")[0], 403)
            self.assertEqual(server.get("/", Host="evil.example:80")[0], 403)
            self.assertEqual(server.get("/runs", Origin="http://evil.example")[0], 403)
            own = server.address.removeprefix("http://")
            self.assertEqual(server.get("/runs", Host=own, Origin=server.address)[0], 200)

    def test_a_log_that_cannot_be_read_is_told(self):
        run = self.run_directory("run", line(1))
        with Server(self, run) as server:
            (run / "train.jsonl").unlink()
            os.mkfifo(run / "train.jsonl")
            self.assertIn("is no regular file", server.runs()[0]["error"])
            status, text, _ = server.get("/runs/0/log")
            self.assertEqual(status, 500)
            self.assertIn("is no regular file", json.loads(text)["error"]["message"])

    def test_names_of_any_bytes(self):
        folder = os.fsencode(self.folder) + b"/a\xff<b>"
        os.mkdir(folder)
        with Server(self, os.fsdecode(folder)) as server:
            self.assertEqual(server.runs()[0]["name"], "a\ufffd<b>")

    def test_keys(self):
        run, keys = self.run_directory("run", line(1)), self.write("keys", "sesame\n")
        os.chmod(keys, 0o600)
        with Server(self, run, "--api-key-file", keys) as server:
            self.assertEqual(server.get("/runs")[0], 401)
            self.assertEqual(server.get("/runs/0/log", Authorization="Bearer wrong")[0], 401)
            self.assertEqual(server.get("/runs/0/log", Authorization="Bearer sesame")[:2], (200, line(1)))
            self.assertIn(server.get("/")[0], (200, 404))  # the page asks for the key

    def test_other_machines_only_where_that_is_meant(self):
        run = self.run_directory("run", line(1))
        self.assert_refused(fathom("watch", str(run), "--host", "0.0.0.0", "--port", "0"), 2, "watch: --host 0.0.0.0", "--api-key-file", "--no-key")
        with Server(self, run, "--host", "0.0.0.0", "--no-key") as server:
            server.address = server.address.replace("0.0.0.0", "127.0.0.1")
            self.assertEqual(server.get("/runs", Host="192.0.2.7")[0], 200)
            self.assertEqual(server.get("/runs", Host="any.example")[0], 403, "no page whose name was made to lead here")

    def test_a_socket_in_the_file_system(self):
        path = str(self.folder / "socket")
        with Server(self, self.run_directory("run", line(1)), "--host", "unix:" + path) as server:
            self.assertEqual(server.address, "unix:" + path)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.sendall(b"GET /runs/0/log HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: client.recv(65536), b""))
            self.assertTrue(answer.endswith(line(1).encode()))

    def test_ends_though_a_client_stays(self):
        with Server(self, self.run_directory("run", line(1))) as server:
            host, port = server.address.removeprefix("http://").split(":")
            idle, busy = (socket.create_connection((host, int(port))) for _ in range(2))
            busy.sendall(b"GET /runs HTTP/1.1\r\n")
            time.sleep(0.1)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(timeout=20), 0)
            self.assertLess(time.monotonic() - began, 5)
            idle.close(), busy.close()

    def test_json_tells_the_address(self):
        with Server(self, self.run_directory("a"), self.run_directory("b"), "--json") as server:
            told = json.loads(server.address)
            server.address = told["url"]
            self.assertEqual((told["url"], told["runs"]), (f"http://127.0.0.1:{told['port']}", ["a", "b"]))
            self.assertEqual(len(server.runs()), 2)

    def test_wrong_usage(self):
        run = self.run_directory("run")
        self.assert_refused(fathom("watch"), 2, "RUN", "fathom watch --help")
        self.assert_refused(fathom("watch", str(run), str(run)), 2, "is given twice")
        self.assert_refused(fathom("watch", *[str(run)] * 17), 2, "17 runs, at most 16")
        self.assert_refused(fathom("watch", str(run), "--port", "x"), 2, "--port")
        self.assert_refused(fathom("watch", str(self.folder / "none")), 1, "none: there is no such directory or file", "mkdir")
        self.assert_refused(fathom("watch", "/dev/null"), 1, "/dev/null: is no regular file")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            self.assert_refused(fathom("watch", str(run), "--port", str(taken.getsockname()[1])), 1, "cannot listen on 127.0.0.1")


if __name__ == "__main__":
    unittest.main()
