#!/usr/bin/env python3
"""fathom sft through the program: a model that learns by heart what it is asked, with thoughts and without, and answers over HTTP; and what
is refused."""
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True
from program import CHAT_CONFIG as CONFIG, PROGRAM, Case, chat, fathom  # noqa: E402
from server import Server  # noqa: E402

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
TEMPLATE = str(DATA / "chat/deepseek-v3.1.jinja")
TOKENIZER = str(DATA / "text/tiny")

CHATS = [chat("Ping?", "pong"), chat("Ping?", "PONG!", "loudly"), chat("Who?", "me"), chat("Who?", "I, fathom", "formally"),
         chat("Ping?", "pong", "not now", thinking="off")]


class Sft(Case):
    def setUp(self):
        super().setUp()
        self.config = self.write("config.json", json.dumps(CONFIG))
        self.data = self.write("chats.jsonl", "".join(json.dumps(line) + "\n" for line in CHATS))

    def command(self, *arguments, data=None, out="out", steps=4, seq_len=128, packing="none"):
        return ["sft", "--model-config", self.config, "--tokenizer", TOKENIZER, "--template", TEMPLATE, "--data", data or self.data, "--out",
                str(self.folder / out), "--batch-size", "5", "--packing", packing, "--seq-len", str(seq_len), "--lr", "0.01", "--steps", str(steps),
                "--threads", "2", *arguments]

    def sft(self, *arguments, env=None, **options):
        return fathom(*self.command(*arguments, **options), env=env)

    def test_a_model_learns_its_answers_and_gives_them(self):
        told = json.loads(self.assert_done(self.sft("--json", "--micro-batch", "5", "--val-data", self.data, steps=120)))
        self.assertLess(told["val_loss"], 0.05)
        self.assertEqual((told["conversations"], told["sequences"], told["dropped"], told["steps"]), (5, 5, 0, 120))
        answers = ["pong", "loudly</think>PONG!", "me", "formally</think>I, fathom", "pong"]
        lines = "".join(json.dumps({"text": answer + "<｜end▁of▁sentence｜>"}) + "\n" for answer in answers)
        ids = [json.loads(line) for line in self.assert_done(fathom("tokenize", "--model", TOKENIZER, "--jsonl", stdin=lines)).splitlines()]
        self.assertEqual(told["tokens"], 120 * sum(map(len, ids)))
        model = str(self.folder / "out")
        log = [json.loads(line) for line in (self.folder / "out/train.jsonl").read_text().splitlines()]
        self.assertEqual(log[-1]["epoch"], 120)
        self.assertIn("mtp_loss", log[0])
        for thinking, expected in (("off", "pong"), ("on", "loudly</think>PONG!")):
            out = fathom("chat", "--model", model, "--thinking", thinking, "--temperature", "0", "--json", "--threads", "2", stdin="Ping?\n")
            self.assertEqual(json.loads(self.assert_done(out))["text"], expected)
        with Server(self, model=model) as server:
            for ask, thoughts, content in (({"thinking": {"type": "enabled"}}, "loudly", "PONG!"), ({}, None, "pong"),
                                           ({"reasoning_effort": "high"}, "loudly", "PONG!"),
                                           ({"chat_template_kwargs": {"thinking": False}}, None, "pong")):
                answer = server.done("/v1/chat/completions", {"messages": [{"role": "user", "content": "Ping?"}], "temperature": 0, **ask})
                message = answer["choices"][0]["message"]
                self.assertEqual((message.get("reasoning_content"), message["content"]), (thoughts, content))
                self.assertEqual(answer["choices"][0]["finish_reason"], "stop")

    def test_it_goes_on_from_a_model_and_from_a_checkpoint(self):
        packed = self.folder / "chats.jsonl.gz"
        packed.write_bytes(gzip.compress(pathlib.Path(self.data).read_bytes()))
        self.assert_done(self.sft("--sample-every", "2", "--sample-tokens", "5", packing="best-fit", data=str(packed), out="whole"))
        log = [json.loads(line) for line in (self.folder / "whole/train.jsonl").read_text().splitlines()]
        self.assertTrue(log[1]["sample"].startswith("Who are you?") or "Who are you?" in log[1]["sample"])
        whole = (self.folder / "whole/model.safetensors").read_bytes()
        self.assert_done(self.sft(packing="best-fit", data=str(packed), out="cut", steps=2))
        # Its schedule was for two steps: another rate, and other bits.
        self.assert_done(self.sft("--resume", packing="best-fit", data=str(packed), out="cut"))
        self.assertNotEqual((self.folder / "cut/model.safetensors").read_bytes(), whole)
        on = ["sft", "--init", str(self.folder / "whole"), "--data", str(packed), "--seq-len", "128", "--threads", "2", "--quiet", "--out",
              str(self.folder / "on")]
        self.assert_done(fathom(*on, "--epochs", "0.5", "--batch-size", "1"))
        self.assertEqual((self.folder / "on/chat_template.jinja").read_text(), pathlib.Path(TEMPLATE).read_text())
        self.assertNotIn("chat_template", json.loads((self.folder / "on/tokenizer_config.json").read_text()))

    def test_an_interrupted_run_goes_on_to_the_same_bits(self):
        self.assert_done(self.sft(out="whole", steps=60))
        command = self.command(out="cut", steps=60)
        process = subprocess.Popen([PROGRAM, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        log = self.folder / "cut/train.jsonl"
        for _ in range(1000):
            if process.poll() is not None or (log.exists() and log.read_text().count("\n") >= 3):
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        self.assertIn(process.wait(timeout=60), (0, 143))
        self.assert_done(fathom(*command, "--resume"))
        self.assertEqual((self.folder / "cut/model.safetensors").read_bytes(), (self.folder / "whole/model.safetensors").read_bytes())

    def test_what_cannot_be_learned_from_is_refused(self):
        bad = self.write("bad.jsonl", json.dumps(CHATS[0]) + '\n{"messages":[{"role":"robot","content":"a"}]}\n')
        quiet = ["--quiet"]
        self.assert_refused(self.sft(*quiet, data=bad), 1, "bad.jsonl: line 2: messages[0].role is robot")
        self.assert_done(self.sft(*quiet, "--skip-bad", "1", data=bad, steps=1))
        self.assert_refused(self.sft(*quiet, "--too-long", "error", seq_len=5, out="other"), 1, "chats.jsonl: line 1: has ", "--seq-len is 5")
        self.assert_refused(self.sft(*quiet, seq_len=5, out="other"), 1, "nothing is left to learn from")
        self.assert_refused(self.sft(*quiet, "--epochs", "2"), 2, "--epochs and --steps")
        self.assert_refused(self.sft(*quiet, "--dsa", "warmup", out="other"), 2, "sft: --dsa warmup")
        self.assert_refused(self.sft(*quiet, steps=0), 2, "--steps", "(see fathom sft --help)")
        self.assert_refused(self.sft(*quiet, seq_len=0), 2, "--seq-len")
        self.assert_refused(self.sft(*quiet, "--micro-batch", "0"), 2, "--micro-batch")
        self.assert_refused(self.sft(*quiet, "--distill-weight", "0.5"), 2, "--distill-weight requires --teacher-logits")
        deaf = self.command(*quiet, out="other")
        deaf[deaf.index("--template") + 1] = self.write("deaf.jinja", "constant")
        self.assert_refused(fathom(*deaf), 1, "chats.jsonl: line 1: the chat template writes the same prompt whatever is asked")
        twice = self.write("twice.jsonl", json.dumps(chat("x", "c", "a</think>b")) + "\n")
        self.assert_refused(self.sft(*quiet, data=twice, out="other"), 1, "twice.jsonl: line 1: messages[1].reasoning_content: has </think> in it")
        self.assert_refused(fathom("sft", "--data", self.data, "--out", "x"), 2, "sft: give either --model-config")
        self.assert_refused(fathom("sft", "--model-config", self.config, "--tokenizer", "bytes", "--data", self.data, "--out", str(self.folder / "x"),
                                   "--steps", "1", "--quiet"), 1, "chats.jsonl: line 1: has messages, and the model no chat template: give one with --template")
        text = self.write("text.txt", "words")
        self.assert_refused(self.sft(*quiet, data=text, out="other"), 1, "text.txt: is no .jsonl")
        self.assert_refused(self.sft(*quiet, out="out"), 2, "holds checkpoints of an earlier run")

    def test_processes_are_told_that_it_is_for_one(self):
        one_of_two = {**os.environ, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
        self.assert_refused(self.sft(env=one_of_two), 2, "sft: runs in one process")


if __name__ == "__main__":
    unittest.main(verbosity=1)
