#!/usr/bin/env python3
"""fathom eval as users run it: the same answers from a model here and behind a URL, runs that go on where they were killed, refusals.

    eval_test.py FATHOM
"""
import collections
import http.server
import json
import pathlib
import shutil
import signal
import subprocess
import threading
import time
import unittest
import urllib.request

from program import PROGRAM, Case, fathom
from server import SHAKESPEARE, Server

DATA = str(pathlib.Path(__file__).resolve().parents[1] / "data/eval")
TEXT = str(pathlib.Path(__file__).resolve().parents[2] / "data/tinyshakespeare-val.txt")


def records(out, task):
    lines = (out / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda r: (r["item"], r["sample"]))


def measures(result):
    return {m["name"]: m["value"] for m in result["measures"]}


class Scripted(http.server.BaseHTTPRequestHandler):
    """A server that answers as its script says, and remembers what it was asked when."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200, {"object": "list", "data": [{"id": "scripted"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((time.monotonic(), self.path, body, self.headers.get("Authorization")))
            n = len(self.server.asked)
        self.server.script(self, n, body)

    def reply(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def answer(self, text, **more):
        self.reply(200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": text, **more}, "text": text, "finish_reason": "stop"}],
                         "usage": {"prompt_tokens": 5, "completion_tokens": 7}})

    def log_message(self, *arguments):
        pass


class Evaluated(Case):
    def eval(self, *arguments, source=("--model", SHAKESPEARE), **options):
        data = () if "--data" in arguments else ("--data", DATA)
        return fathom("eval", *source, "--threads", "2", *data, *arguments, **options)

    def eval_json(self, *arguments, **options):
        lines = self.assert_done(self.eval("--json", "--quiet", *arguments, **options)).splitlines()
        return [json.loads(line) for line in lines]

    def scripted(self, script):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
        server.handle_error = lambda request, address: None  # a client that has gone
        server.script, server.asked, server.lock = script, [], threading.Lock()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server, ("--url", f"http://127.0.0.1:{server.server_port}/v1")

    def test_a_model_here_and_behind_a_url_answers_the_same(self):
        tasks = ("--task", "gsm8k,arc,hellaswag,math500,ppl", "--limit", "3", "--max-tokens", "16", "--shots", "0", "--no-chat")
        text = self.write("text.txt", pathlib.Path(TEXT).read_text(encoding="utf-8")[:1500])
        for name in ("gsm8k", "arc", "hellaswag", "math"):
            shutil.copytree(f"{DATA}/{name}", self.folder / "data" / name)
        shutil.copy(text, self.folder / "data/text.txt")
        data = ("--data", str(self.folder / "data"))
        with Server(self, "--max-batch", "4") as server:
            source = ("--url", f"http://127.0.0.1:{server.port}")
            here = self.assert_done(fathom("eval", "--model", SHAKESPEARE, *data, *tasks, "--json", "--quiet", "--window", "256", "--out",
                                           str(self.folder / "here")))
            there = self.assert_done(fathom("eval", *source, *data, *tasks, "--json", "--quiet", "--window", "256", "--out", str(self.folder / "there")))
            # A conversation, and several samples that are drawn by seeds.
            sampled = ("--task", "gsm8k", "--limit", "2", "--chat", "--max-tokens", "12", "--samples", "3", "--temperature", "0.8", "--json", "--quiet")
            template = self.write("template.jinja", "{% for message in messages %}{{ message.content }}{% endfor %}")
            self.assert_done(fathom("eval", "--model", SHAKESPEARE, "--template", template, *data, *sampled, "--out", str(self.folder / "here-n")))
            self.assert_done(fathom("eval", *source, *data, *sampled, "--out", str(self.folder / "there-n")))
        for a, b in zip(here.splitlines(), there.splitlines(), strict=True):
            a, b = json.loads(a), json.loads(b)
            self.assertEqual(a["task"], b["task"])
            for (name, value), (other_name, other) in zip(measures(a).items(), measures(b).items(), strict=True):
                self.assertEqual(name, other_name)
                self.assertAlmostEqual(value, other, places=4)
        for task in ("gsm8k", "math500"):
            a, b = records(self.folder / "here", task), records(self.folder / "there", task)
            self.assertEqual([(r["prompt"], r["answer"], r["tokens"], r["finish"]) for r in a],
                             [(r["prompt"], r["answer"], r["tokens"], r["finish"]) for r in b])
        a, b = records(self.folder / "here-n", "gsm8k"), records(self.folder / "there-n", "gsm8k")
        self.assertEqual([r["answer"] for r in a], [r["answer"] for r in b])
        self.assertEqual(len({r["answer"] for r in a[:3]}), 3, "samples of one question differ")
        for a, b in zip(records(self.folder / "here", "arc"), records(self.folder / "there", "arc"), strict=True):
            for mine, other in zip(a["logprobs"], b["logprobs"], strict=True):
                self.assertAlmostEqual(mine, other, delta=1e-3)
        compared = self.assert_done(fathom("eval", "compare", str(self.folder / "here"), str(self.folder / "there"), "--json"))
        for line in compared.splitlines():
            self.assertEqual(json.loads(line)["difference"], 0)

    def test_a_server_without_tokenize_is_scored_by_where_tokens_stand(self):
        def forward(handler, n, body):
            if handler.path != "/v1/completions":
                return handler.reply(404, {"error": {"message": "not here"}})
            request = urllib.request.Request(f"http://127.0.0.1:{real.port}{handler.path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as answer:
                handler.reply(200, json.load(answer))
        server, source = self.scripted(forward)
        arguments = ("--task", "arc,hellaswag", "--limit", "3")
        with Server(self) as real:
            self.eval_json(*arguments, "--out", str(self.folder / "there"), source=source)
        self.eval_json(*arguments, "--out", str(self.folder / "here"))
        for task in ("arc", "hellaswag"):
            for a, b in zip(records(self.folder / "here", task), records(self.folder / "there", task), strict=True):
                self.assertEqual(a["greedy"], b["greedy"])
                for mine, other in zip(a["logprobs"], b["logprobs"], strict=True):
                    self.assertAlmostEqual(mine, other, delta=1e-3)
        # Nothing was asked as ids, and "é" counts as a character.
        self.assertTrue(any(isinstance(body["prompt"], str) and "Café" in body["prompt"] for _, path, body, _ in server.asked if "completions" in path))
        refused = self.eval("--task", "ppl", "--data", TEXT, "--quiet", source=source)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("/tokenize", refused.stderr)

    def test_perplexity_is_that_of_score(self):
        text = self.write("text.txt", pathlib.Path(TEXT).read_text(encoding="utf-8")[:3000])
        wanted = json.loads(self.assert_done(fathom("score", "--model", SHAKESPEARE, "--text", text, "--json")))
        result, = self.eval_json("--task", "ppl", "--data", text)
        self.assertAlmostEqual(measures(result)["perplexity"], wanted["perplexity"], places=4)
        self.assertEqual(result["tokens"], wanted["tokens"])

    def test_a_run_that_was_killed_goes_on_to_the_same_results(self):
        whole, broken = self.folder / "whole", self.folder / "broken"
        arguments = ("--task", "gsm8k,arc", "--max-tokens", "24", "--shots", "0")
        self.eval_json(*arguments, "--out", str(whole))
        # Killed in the middle of a line: what stands before it stays.
        self.eval_json("--task", "gsm8k", "--max-tokens", "24", "--shots", "0", "--out", str(broken))
        file = broken / "gsm8k.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[:3]) + lines[3][:40], encoding="utf-8")
        told = self.assert_done(self.eval(*arguments, "--json", "--resume", "--out", str(broken)))
        self.assertEqual(len(told.splitlines()), 2)
        plain = lambda out, task: [{k: v for k, v in r.items() if k != "seconds"} for r in records(out, task)]
        for task in ("gsm8k", "arc"):
            self.assertEqual(plain(broken, task), plain(whole, task))
        self.assertEqual(file.read_text(encoding="utf-8").splitlines(keepends=True)[:3], lines[:3], "these were not asked again")
        of = lambda out: [(r["task"], r["measures"]) for r in json.loads((out / "results.json").read_text())["results"]]
        self.assertEqual(of(broken), of(whole))
        for page in ("report.md", "report.html"):
            self.assertIn("DeepSeek-V3-Base", (whole / page).read_text(encoding="utf-8"))
            self.assertIn("95 % interval", (whole / page).read_text(encoding="utf-8"))

    def test_an_interruption_keeps_what_is_answered(self):
        def script(handler, n, body):
            if n > 2:
                time.sleep(30)
            handler.answer("#### 18")
        server, source = self.scripted(script)
        out = self.folder / "out"
        process = subprocess.Popen([PROGRAM, "eval", *source, "--data", DATA, "--task", "gsm8k", "--shots", "0", "--parallel", "1", "--out", str(out)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        for _ in range(400):
            if len(server.asked) == 3:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 130, said)
        self.assertEqual(len(records(out, "gsm8k")), 2)
        self.assertFalse((out / "results.json").exists())

    def test_a_server_without_time_is_asked_again_when_it_says(self):
        def script(handler, n, body):
            if n == 1:
                return handler.reply(429, {"error": {"message": "slow down"}}, [("Retry-After", "1")])
            if n == 2:
                return handler.reply(503, {"error": {"message": "busy"}})
            if n == 3:  # the connection is lost
                handler.close_connection = True
                return handler.connection.close()
            handler.answer("I think of 9.\n</think>\nIt is 18.", reasoning_content="")
        server, source = self.scripted(script)
        key = self.folder / "key"
        key.write_text("secret-key\n")
        key.chmod(0o600)
        result, = self.eval_json("--task", "gsm8k", "--limit", "1", "--chat", "--api-key-file", str(key), "--out", str(self.folder / "out"), source=source)
        self.assertEqual(measures(result), {"correct": 1, "flexible": 1, "strict": 0})
        self.assertEqual(len(server.asked), 4)
        times = [asked[0] for asked in server.asked]
        self.assertGreaterEqual(times[1] - times[0], 0.99)
        _, path, body, authorization = server.asked[-1]
        self.assertEqual((path, body["model"], body["temperature"], authorization), ("/v1/chat/completions", "scripted", 0, "Bearer secret-key"))
        self.assertEqual([m["role"] for m in body["messages"]], ["user"])
        record, = records(self.folder / "out", "gsm8k")
        self.assertEqual((record["answer"], record["reasoning"], record["tokens"]), ("It is 18.", "I think of 9.", 7))

    def test_what_a_server_refuses_counts_as_wrong_and_is_told(self):
        server, source = self.scripted(lambda handler, n, body: handler.reply(400, {"error": {"message": "the prompt is too long"}}))
        done = self.eval("--task", "gsm8k", "--limit", "2", "--shots", "0", "--json", "--out", str(self.folder / "out"), source=source)
        result = json.loads(self.assert_done(done))
        self.assertEqual((result["failed"], measures(result)["strict"]), (2, 0))
        self.assertIn("2 questions could not be asked", done.stderr)
        self.assertIn("too long", records(self.folder / "out", "gsm8k")[0]["error"])
        # What no request would get is an end at once.
        server, source = self.scripted(lambda handler, n, body: handler.reply(401, {"error": {"message": "no key"}}))
        refused = self.eval("--task", "gsm8k", "--shots", "0", "--quiet", source=source)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("401 no key", refused.stderr)
        # Probabilities of the prompt, which a server may not tell.
        server, source = self.scripted(lambda handler, n, body: handler.answer("x"))
        refused = self.eval("--task", "arc", "--limit", "1", "--quiet", source=source)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("log probabilities", refused.stderr)

    def test_one_odd_reply_does_not_end_a_run(self):
        right = {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "\\boxed{1}"}}]}
        parts = [{"type": "text", "text": "\\boxed"}, {"type": "text", "text": "{1}"}]
        replies = {"cut": b'{"choices": [{"message": {"content": "\\ud83d \\\\boxed{1}"}}]}', "bytes": b'{"choices": [{"message": {"content": "\xff \\\\boxed{1}"}}]}',
                   "parts": {"choices": [{"message": {"content": parts}}]}, "none": {"choices": []}, "number": {"choices": [{"message": {"content": 1}}]},
                   "error": {"error": {"message": "no time"}}, "right": right}
        times = collections.Counter()

        def script(handler, n, body):
            name = body["messages"][0]["content"]
            with server.lock:
                times[name] += 1
            if name == "error" and times[name] > 1:
                return handler.reply(200, right)
            handler.reply(200, replies[name])
        server, source = self.scripted(script)
        questions = self.write("q.jsonl", "".join(json.dumps({"id": name, "question": name, "answer": "1"}) + "\n" for name in replies))
        done = self.eval("--task", "questions", "--data", questions, "--json", "--out", str(self.folder / "out"), source=source)
        result = json.loads(self.assert_done(done))
        self.assertEqual((result["failed"], result["answered"]), (2, 7))
        self.assertIn("2 questions could not be asked", done.stderr)
        of = {r["id"]: r for r in records(self.folder / "out", "questions")}
        self.assertEqual({name: r["scores"]["correct"] for name, r in of.items()}, {name: int(name not in ("none", "number")) for name in replies})
        self.assertIn("no choice, 3 times", of["none"]["error"])
        self.assertIn("no text", of["number"]["error"])
        self.assertEqual(of["cut"]["answer"], "\ufffd \\boxed{1}")
        self.assertEqual(times, {"cut": 1, "bytes": 1, "parts": 1, "none": 3, "number": 3, "error": 2, "right": 1})

    def test_programs_are_tried_and_counted_as_pass_at_k(self):
        problems = [json.loads(line) for line in pathlib.Path(DATA, "humaneval_5.jsonl").read_text(encoding="utf-8").splitlines()]
        seen = collections.Counter()

        def script(handler, n, body):
            problem = next(p for p in problems if p["prompt"] in body["messages"][0]["content"])
            with server.lock:
                seen[problem["task_id"]] += 1
                right = seen[problem["task_id"]] == 1 and problem is not problems[0]  # one sample of two; of the first problem none
            body = problem["canonical_solution"] if right else "    raise SystemExit(0)\n"
            handler.answer(f"So:\n```python\n{problem['prompt']}{body}\n```\nThat is it.")
        server, source = self.scripted(script)
        arguments = ("--task", "humaneval", "--data", f"{DATA}/humaneval_5.jsonl", "--samples", "2", "--k", "1,2", "--out", str(self.folder / "out"))
        done = self.eval("--json", *arguments, source=source)
        if "there is none" in done.stderr:  # nothing runs without it, nor is anything asked
            self.assert_refused(done, 1, "sandbox", "--unsandboxed")
            self.assertEqual(server.asked, [])
            self.skipTest(done.stderr)
        result = json.loads(self.assert_done(done))
        self.assertEqual(measures(result), {"pass@1": 0.4, "pass@2": 0.8})
        for record in records(self.folder / "out", "humaneval"):
            self.assertEqual(record["scores"]["passed"], record["verdict"] == "passed", record)

    def test_an_interruption_ends_programs_and_keeps_their_answers(self):
        server, source = self.scripted(lambda handler, n, body: handler.answer("```python\nimport time\ntime.sleep(1000)\n```"))
        out = self.folder / "out"
        arguments = ("eval", *source, "--task", "humaneval", "--data", f"{DATA}/humaneval_5.jsonl", "--time-limit", "60", "--out", str(out))
        process = subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        for _ in range(500):
            if len(server.asked) == 5 or process.poll() is not None:
                break
            time.sleep(0.02)
        time.sleep(0.3)  # the last answer comes
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        if "there is none" in said:
            self.skipTest(said)
        self.assertEqual(process.returncode, 130, said)
        settings = json.loads((out / "settings.json").read_text())["tasks"]["humaneval"]
        self.assertEqual((settings["cpu_s"], settings["wall_s"]), (60, 120))
        untried = out / "humaneval.untried.jsonl"
        lines = [json.loads(line) for line in untried.read_text(encoding="utf-8").splitlines()]
        self.assertEqual(sorted(line["item"] for line in lines), [0, 1, 2, 3, 4])
        problems = [json.loads(line) for line in pathlib.Path(DATA, "humaneval_5.jsonl").read_text(encoding="utf-8").splitlines()]
        for line in lines:  # what is tried is what was kept
            line["answer"] = "```python\n" + problems[line["item"]]["prompt"] + problems[line["item"]]["canonical_solution"] + "\n```"
        untried.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        result = json.loads(self.assert_done(fathom(*arguments, "--resume", "--json")))
        self.assertEqual(measures(result), {"pass@1": 1})
        self.assertEqual(len(server.asked), 5, "nothing is asked again")
        self.assertFalse(untried.exists())

    def test_prompts_that_are_too_long_are_told(self):
        # 512 tokens are this model's context, and bytes its tokens.
        done = self.eval("--task", "arc,gsm8k", "--shots", "3", "--limit", "2", "--max-tokens", "4", "--json", "--out", str(self.folder / "out"))
        arc, gsm8k = (json.loads(line) for line in self.assert_done(done).splitlines())
        self.assertEqual((arc["truncated"], arc["failed"]), (2, 0))
        self.assertIn("lost their begin", done.stderr)
        for record in records(self.folder / "out", "arc"):
            self.assertEqual(record["prompt_tokens"] + max(record["choice_tokens"]), 513)  # the last token is not read
        self.assertEqual((gsm8k["truncated"], gsm8k["failed"]), (0, 2))
        self.assertIn("2 questions could not be asked", done.stderr)
        self.assertIn("512 at most", records(self.folder / "out", "gsm8k")[0]["error"])
        self.assertIn("lost their begin", (self.folder / "out/report.md").read_text(encoding="utf-8"))

    def test_refusals(self):
        out = str(self.folder / "out")
        self.eval_json("--task", "gsm8k", "--limit", "2", "--max-tokens", "8", "--shots", "0", "--out", out)
        again = ("--task", "gsm8k", "--limit", "2", "--max-tokens", "8", "--shots", "0", "--out", out)
        refused = lambda code, *arguments, words, **options: self.assert_refused(self.eval("--quiet", *arguments, **options), code, *words)
        refused(2, "--task", "gsm8k", "--limit", "2", "--max-tokens", "9", "--shots", "0", "--out", out, words=("max_tokens 8, not 9", "another folder"))
        refused(2, "--task", "gsm8k", "--limit", "1", "--max-tokens", "8", "--shots", "0", "--out", out, words=("gsm8k", "another folder"))
        refused(2, *again, "--ctx", "300", words=("has a run of", '"context":300'))
        template = self.write("template.jinja", "{% for message in messages %}{{ message.content }}{% endfor %}")
        talks = ("--task", "gsm8k", "--limit", "1", "--max-tokens", "4", "--chat", "--template", template, "--out", str(self.folder / "talks"))
        self.eval_json(*talks)
        self.write("template.jinja", "{% for message in messages %}{{ message.content }}!{% endfor %}")
        refused(2, *talks, words=("has a run of", "template"))
        copy = self.folder / "copy"
        shutil.copytree(SHAKESPEARE, copy)
        (copy / "config.json").touch()
        refused(2, *again, source=("--model", str(copy)), words=("has a run of",))
        lines = (self.folder / "out/gsm8k.jsonl").read_text()
        (self.folder / "out/gsm8k.jsonl").write_text("{}\n" + lines)
        refused(1, *again, words=("gsm8k.jsonl: line 1", "damaged"))
        refused(2, "--task", "gsm8k", "--resume", "--out", str(self.folder / "none"), words=("--resume", "no run"))
        refused(2, "--task", "gsm9k", words=("no such task", "gsm8k"))
        refused(2, "--task", "gsm8k,gsm8k", words=("twice",))
        refused(2, "--task", "gsm8k", "--shots", "25", words=("--shots 25",))
        refused(2, "--task", "arc", "--samples", "2", words=("nothing is generated",))
        refused(2, "--task", "math500", "--samples", "2", "--temperature", "0", words=("all the same",))
        refused(2, "--task", "math500", "--k", "4", words=("--samples",))
        refused(2, "--task", "gsm8k", "--thinking", "on", words=("--thinking", "--chat"))
        refused(2, "--task", "gsm8k", "--chat", "--no-chat", words=("--chat or --no-chat",))
        refused(2, "--task", "gsm8k", "--top-p", "0", words=("--top-p 0",))
        refused(2, "--task", "math500", "--chat", words=("no chat template",))
        refused(1, "--task", "math500", "--data", str(self.folder / "nothing"), words=("no such file",))
        refused(1, "--task", "math500", "--data", str(self.folder), words=("math500_test.jsonl", "--data"))
        self.assert_refused(fathom("eval", "--task", "gsm8k", "--data", DATA), 2, "--model", "--url")
        self.assert_refused(fathom("eval", "--model", SHAKESPEARE, "--data", DATA), 2, "--task")
        self.assert_refused(fathom("eval", "--model", SHAKESPEARE, "--task", "arc"), 2, "--data")
        self.assert_refused(fathom("eval", "--url", "http://127.0.0.1:1", "--task", "arc", "--data", DATA, "--quiet", "--retries", "0"), 1, "cannot connect")
        self.assert_refused(fathom("eval", "compare", out, str(self.folder)), 1, "no results.json")


if __name__ == "__main__":
    unittest.main()
