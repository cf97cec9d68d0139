#!/usr/bin/env python3
"""fathom grpo through the program: a model that learns what a command rewards, resumed to the bit; and what is refused."""
import json
import pathlib
import signal
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True
from program import CHAT_CONFIG, PROGRAM, Case, fathom  # noqa: E402

TEMPLATE = str(pathlib.Path(__file__).resolve().parents[1] / "data/chat/deepseek-v3.1.jinja")
CONFIG = {**CHAT_CONFIG, "vocab_size": 258, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
          "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "intermediate_size": 64, "moe_intermediate_size": 32}
# The share of capital letters.
REWARD = """import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    assert set(asked) == {"id", "question", "answer", "completion"}, asked
    text = asked["completion"]
    print(json.dumps({"reward": sum("A" <= c <= "Z" for c in text) / max(len(text), 1)}), flush=True)
"""
QUESTIONS = [{"id": "one", "question": "a?", "answer": "A"}, {"id": "two", "question": "bc?", "answer": 12},
             {"prompt": "say something", "answer": "B"}]


class Grpo(Case):
    @classmethod
    def setUpClass(cls):
        import tempfile
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        base = pathlib.Path(folder.name)
        (base / "config.json").write_text(json.dumps(CONFIG))
        (base / "text.txt").write_text("THE QUICK brown fox; " * 40)
        cls.model = str(base / "model")
        made = fathom("train", "--model-config", str(base / "config.json"), "--tokenizer", "bytes", "--data", str(base / "text.txt"), "--out", cls.model,
                      "--steps", "30", "--seq-len", "32", "--batch-size", "8", "--lr", "0.01", "--threads", "2")
        assert made.returncode == 0, made.stderr

    def setUp(self):
        super().setUp()
        self.data = self.write("questions.jsonl", "".join(json.dumps(q) + "\n" for q in QUESTIONS))
        self.command = f"{sys.executable} {self.write('reward.py', REWARD)}"

    def arguments(self, *more, out="out", steps=6):
        return ["grpo", "--init", self.model, "--data", self.data, "--plain", "--out", str(self.folder / out), "--steps", str(steps), "--questions", "3",
                "--group-size", "8", "--max-tokens", "12", "--lr", "0.003", "--threads", "2", "--reward", "command", "--reward-command", self.command, *more]

    def grpo(self, *more, **options):
        return fathom(*self.arguments(*more, **options))

    def log(self, out="out"):
        return [json.loads(line) for line in (self.folder / out / "train.jsonl").read_text().splitlines()]

    def test_what_is_rewarded_comes_more_often(self):
        samples = self.folder / "samples.jsonl"
        told = json.loads(self.assert_done(self.grpo("--json", "--mini-batches", "2", "--val-data", self.data, "--val-every", "10", "--draft", "mtp",
                                                     "--save-samples", str(samples), steps=25)))
        log = self.log()
        self.assertEqual(len(log), 25)
        self.assertGreater(log[-1]["reward"], log[0]["reward"] + 0.2)
        self.assertEqual(told["reward"], log[-1]["reward"])
        self.assertEqual(told["tokens"], log[-1]["tokens"])
        for line in log:
            self.assertGreater(line["updates"], 0)
            self.assertEqual(line["greatest_log_ratio"], 0)
            for name in ("reward_std", "command", "length", "length_max", "cut", "entropy", "clip_fraction", "groups_without_signal", "updates",
                         "sampling_tokens_per_s", "training_tokens_per_s", "draft_acceptance", "loss", "grad_norm", "lr"):
                self.assertIn(name, line)
        self.assertEqual([line["step"] for line in log if "val_reward" in line], [10, 20, 25])
        self.assertEqual((told["val_reward"], told["val_exact"]), (log[-1]["val_reward"], log[-1]["val_exact"]))
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        self.assertEqual(len(lines), 25 * 24)
        self.assertEqual({line["question"] for line in lines}, {"a?", "bc?", "say something"})
        for step in (1, 25):
            of_step = [line["reward"] for line in lines if line["step"] == step]
            self.assertAlmostEqual(sum(of_step) / len(of_step), log[step - 1]["reward"])
        self.assert_done(fathom("generate", "--model", str(self.folder / "out"), "--prompt", "a?", "--max-tokens", "4"))

    def test_an_interrupted_run_goes_on_with_the_same_bits(self):
        more = ["--ref-every", "3", "--inner-epochs", "2", "--save-every", "4", "--top-p", "0.95", "--kl", "0.02"]
        self.assert_done(self.grpo(*more, out="whole", steps=30))
        process = subprocess.Popen([PROGRAM, *self.arguments(*more, out="cut", steps=30)], stderr=subprocess.PIPE, encoding="utf-8")
        log = self.folder / "cut/train.jsonl"
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 130, said)
        self.assertIn("go on with --resume", said)
        self.assertLess(len(self.log("cut")), 30)
        self.assert_done(self.grpo(*more, "--resume", out="cut", steps=30))
        self.assertEqual((self.folder / "cut/model.safetensors").read_bytes(), (self.folder / "whole/model.safetensors").read_bytes())
        clock = ("seconds", "tokens_per_s", "sampling_tokens_per_s", "training_tokens_per_s", "mfu")
        logs = [[{k: v for k, v in line.items() if k not in clock} for line in self.log(out)] for out in ("cut", "whole")]
        self.assertEqual(logs[0], logs[1])
        self.assert_refused(self.grpo(*more[:-1], "0.5", "--resume", out="cut", steps=30), 1, "kl is 0.5 now and was 0.02")

    def test_a_chat_template_asks(self):
        chat = [a for a in self.arguments(out="chat", steps=1) if a != "--plain"]
        chat[chat.index("--reward") + 1] = "command,format=0.5"
        self.assert_done(fathom(*chat, "--template", TEMPLATE, "--thinking", "on"))
        self.assertEqual(self.log("chat")[0]["format"], 0)
        self.assertTrue((self.folder / "chat/chat_template.jinja").exists())
        self.assert_refused(fathom(*chat), 2, "chat template", "--plain")
        self.assert_refused(self.grpo("--thinking", "on"), 2, "--plain")

    def test_what_cannot_be_is_refused_in_one_line(self):
        self.assert_refused(fathom("grpo"), 2, "--")
        self.assert_refused(fathom(*[a for a in self.arguments() if a not in ("--init", self.model)]), 2, "--init")
        for more, code, words in [
                (["--reward", "exakt"], 2, ["exakt", "exact, format, code, command"]),
                (["--reward", "code"], 1, ["tests"]),
                (["--temperature", "0"], 2, ["--temperature"]),
                (["--temperature", "1e30"], 2, ["--temperature 1e+30: must be between 0 and 10^6"]),
                (["--length-free", "-5"], 2, ["--length-free is -5"]),
                (["--group-size", "1"], 2, ["--group-size"]),
                (["--mini-batches", "7"], 2, ["--mini-batches 7", "24"]),
                (["--max-tokens", "1000"], 2, ["--max-tokens 1000", "256"]),
                (["--ref-every", "2"], 2, ["--kl"]),
                (["--reward-command", "exit 5"], 1, ["exit 5", "exit code 5"]),
                (["--reward-command", "cat"], 1, ["cat", "replied to"]),
                (["--reward-command", "sleep 100", "--reward-timeout", "0.2"], 1, ["sleep 100", "0.2 s"]),
                (["--data", self.write("bad.jsonl", '{"question": "x", "answer": "1"}\n{"question": 1}\n{"question": []}\n')], 1, ["bad.jsonl:3"]),
                (["--data", self.write("none.jsonl", "\n")], 1, ["none.jsonl", "no question"]),
                (["--data", str(self.folder / "absent.jsonl")], 1, ["absent.jsonl"]),
                (["--reward", "exact", "--data", self.write("open.jsonl", '{"question": "x"}\n')], 1, ["open.jsonl:1", "answer"])]:
            arguments = self.arguments("--quiet")
            for option in more[::2]:  # in the place of what stands there
                if option in arguments:
                    at = arguments.index(option)
                    del arguments[at:at + 2]
            self.assert_refused(fathom(*arguments, *more), code, *words)
        self.assert_refused(fathom(*self.arguments("--quiet", out="open")[:-4]), 2, "--reward")


if __name__ == "__main__":
    unittest.main()
