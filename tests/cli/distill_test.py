#!/usr/bin/env python3
"""fathom distill through the program: a teacher's answers, asked here and over HTTP, kept where they are right; what an interrupted run goes on
from; a student that learns its answers and its logits; and what is refused."""
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
from program import CHAT_CONFIG as CONFIG, PROGRAM, Case, chat, fathom  # noqa: E402
from server import Server  # noqa: E402

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
TEMPLATE = str(DATA / "chat/deepseek-v3.1.jinja")
TOKENIZER = str(DATA / "text/tiny")

# What the teacher knows by heart; it is wrong about the second.
KNOWN = [chat("1+1?", r"\boxed{2}", "one, two"), chat("2+2?", r"\boxed{5}", "let me see"), chat("Who?", "I", "hm")]
QUESTIONS = [{"id": "a", "question": "1+1?", "answer": 2}, {"id": "b", "question": "2+2?", "answer": "4"},
             {"id": "c", "messages": [{"role": "user", "content": "Who?"}]}]


def lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def jsonl(objects):
    return "".join(json.dumps(each) + "\n" for each in objects)


class Distill(Case):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        at = pathlib.Path(folder.name)
        (at / "config.json").write_text(json.dumps(CONFIG))
        (at / "known.jsonl").write_text(jsonl(KNOWN))
        cls.config, cls.teacher, cls.blank = str(at / "config.json"), str(at / "teacher"), str(at / "blank")
        common = ["sft", "--model-config", cls.config, "--tokenizer", TOKENIZER, "--template", TEMPLATE, "--data", str(at / "known.jsonl"),
                  "--batch-size", "3", "--packing", "none", "--seq-len", "96", "--mtp-weight", "0", "--threads", "2", "--quiet"]
        for out, steps, rate in ((cls.teacher, "100", "0.01"), (cls.blank, "1", "0.0001")):
            done = fathom(*common, "--out", out, "--steps", steps, "--lr", rate, "--micro-batch", "3")
            assert done.returncode == 0, done.stderr

    def setUp(self):
        super().setUp()
        self.questions = self.write("questions.jsonl", jsonl(QUESTIONS))

    def traces(self, *arguments, out="traces.jsonl", teacher=None, temperature="0", **options):
        return fathom("distill", "traces", *(teacher or ("--teacher", self.teacher)), "--data", self.questions, "--out", str(self.folder / out),
                      "--temperature", temperature, "--max-tokens", "40", "--teacher-thinking", "on", "--threads", "2", *arguments, **options)

    def test_right_answers_are_kept_whoever_is_asked(self):
        told = json.loads(self.assert_done(self.traces("--json")))
        self.assertEqual((told["questions"], told["asked"], told["right"], told["wrong"], told["not_verified"], told["kept"]), (3, 3, 1, 1, 1, 1))
        self.assertLess(3, told["kept_tokens"])
        self.assertLess(told["kept_tokens"], told["answer_tokens"])
        kept = {"messages": KNOWN[0]["messages"], "thinking": True}
        self.assertEqual(lines(self.folder / "traces.jsonl"), [{"id": "a", **kept, "answer": "2"}])
        with Server(self, model=self.teacher) as server:
            self.assert_done(self.traces("--keep", "all", out="served.jsonl", teacher=("--url", server.url)))
        name = lines(self.folder / "served.jsonl.answers")[0]["teacher"].split(" at http")[0]
        elsewhere = ("--url", "http://127.0.0.1:1", "--url-model", name)
        self.assert_refused(self.traces("--keep", "all", "--quiet", out="served.jsonl", teacher=elsewhere), 2, "holds answers to other questions")
        # Nobody is asked again: there is no server any more, and no teacher is needed to keep others.
        self.assert_done(self.traces("--keep", "all"))
        self.assertEqual((self.folder / "served.jsonl").read_bytes(), (self.folder / "traces.jsonl").read_bytes())
        self.assertEqual([line["messages"] for line in lines(self.folder / "served.jsonl")], [known["messages"] for known in KNOWN])

    def test_a_killed_run_goes_on_to_the_same_file(self):
        self.questions = self.write("questions.jsonl", jsonl([{"question": f"{i}?"} for i in range(40)]))
        sampled = ["--keep", "all", "--samples", "2", "--seed", "3"]
        self.assert_done(self.traces(*sampled, out="whole.jsonl", temperature="1"))
        command = ["distill", "traces", "--teacher", self.teacher, "--data", self.questions, "--out", str(self.folder / "cut.jsonl"),
                   "--max-tokens", "40", "--teacher-thinking", "on", "--threads", "1", "--temperature", "1", *sampled, "--parallel", "2"]
        journal = self.folder / "cut.jsonl.answers"
        for kill, at_least in ((signal.SIGKILL, 5), (signal.SIGTERM, 20)):
            process = subprocess.Popen([PROGRAM, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(2000):
                if process.poll() is not None or (journal.exists() and journal.read_bytes().count(b"\n") >= at_least):
                    break
                time.sleep(0.005)
            process.send_signal(kill)
            self.assertIn(process.wait(timeout=60), (0, -9, 143))
        with open(journal, "ab") as file:
            file.write(b'{"question":1,"sam')  # as a kill in the middle of a write leaves it
        self.assert_done(fathom(*command))
        self.assertEqual((self.folder / "cut.jsonl").read_bytes(), (self.folder / "whole.jsonl").read_bytes())
        other = self.write("other.jinja", "{{ messages[-1].content }}")
        for more in (("--top-p", "0.5"), ("--kv-type", "f16"), ("--ctx", "64"), ("--template", other)):
            self.assert_refused(fathom(*command, *more, "--quiet"), 2, "cut.jsonl.answers: holds answers to other questions")

    def test_a_student_that_has_the_logits_comes_nearer_to_its_teacher(self):
        data = self.write("known.jsonl", jsonl(KNOWN))
        logits = ["distill", "logits", "--teacher", self.teacher, "--data", data, "--out", str(self.folder / "logits"), "--logits-top-k", "16",
                  "--seq-len", "96", "--threads", "2"]
        told = json.loads(self.assert_done(fathom(*logits, "--json")))
        self.assertEqual((told["sequences"], told["k"]), (3, 16))
        again = {path.name: path.read_bytes() for path in (self.folder / "logits").iterdir() if path.is_file()}
        self.assertIn("all is there already", fathom(*logits).stderr)
        self.assertEqual(again, {path.name: path.read_bytes() for path in (self.folder / "logits").iterdir() if path.is_file()})
        student = ["sft", "--init", self.blank, "--data", data, "--batch-size", "3", "--packing", "none", "--seq-len", "96", "--mtp-weight", "0",
                   "--threads", "2", "--quiet", "--lr", "0.01", "--steps", "12", "--micro-batch", "1", "--teacher-logits", str(self.folder / "logits")]
        self.assert_done(fathom(*student, "--out", str(self.folder / "out"), "--distill-weight", "1", "--distill-temperature", "2"))
        log = lines(self.folder / "out/train.jsonl")
        self.assertLess(log[-1]["divergence"], log[0]["divergence"] / 2)
        self.assert_done(fathom(*student, "--out", str(self.folder / "plain"), "--distill-weight", "0", "--distill-temperature", "2"))
        self.assertLess(log[-1]["divergence"], lines(self.folder / "plain/train.jsonl")[-1]["divergence"])
        self.assert_refused(fathom(*student, "--out", str(self.folder / "x"), "--distill-temperature", "3"), 2, "temperature 3, but of 1, 2, 4")
        other = self.write("other.jsonl", jsonl([chat("Else?", "no")]))
        student[student.index(data)] = other
        self.assert_refused(fathom(*student, "--out", str(self.folder / "x")), 1, "has not read a sequence")
        self.assert_refused(fathom(*logits, "--quiet", "--logits-type", "f16"), 2, "holds logits of another teacher, other data or other options")

    def test_all_in_one_goes_on_where_it_was_interrupted(self):
        command = ["distill", "student", "--teacher", self.teacher, "--data", self.questions, "--init", self.blank, "--keep-traces", "all",
                   "--temperature", "0", "--max-tokens", "40", "--teacher-thinking", "on", "--logits", "--batch-size", "3", "--packing", "none",
                   "--seq-len", "96", "--mtp-weight", "0", "--lr", "0.01", "--steps", "100", "--threads", "2", "--micro-batch", "3"]
        process = subprocess.Popen([PROGRAM, *command, "--out", str(self.folder / "out")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        log = self.folder / "out/train.jsonl"
        for _ in range(3000):
            if process.poll() is not None or (log.exists() and log.read_text().count("\n") >= 3):
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        self.assertIn(process.wait(timeout=60), (0, 130))
        told = json.loads(self.assert_done(fathom(*command, "--out", str(self.folder / "out"), "--resume", "--json")))
        self.assertEqual((told["step"], told["conversations"], told["traces"]["kept"]), (100, 3, 3))
        for question, answer in (("1+1?", r"\boxed{2}"), ("Who?", "I")):
            out = fathom("chat", "--model", str(self.folder / "out"), "--thinking", "on", "--temperature", "0", "--json", "--threads", "2",
                         stdin=question + "\n")
            self.assertTrue(json.loads(self.assert_done(out))["text"].endswith("</think>" + answer))

    def test_what_cannot_be_distilled_is_refused(self):
        quiet = ["--quiet"]
        self.assert_refused(fathom("distill"), 2, "subcommand is required", "(see fathom distill --help)")
        self.assert_refused(self.traces(*quiet, "--samples", "0"), 2, "--samples", "(see fathom distill traces --help)")
        logits = ["distill", "logits", "--teacher", self.teacher, "--data", self.questions, "--out", str(self.folder / "l"), *quiet]
        self.assert_refused(fathom(*logits, "--seq-len", "-1"), 2, "--seq-len", "(see fathom distill logits --help)")
        self.assert_refused(fathom(*logits, "--temperatures", "1,2,1"), 2, "--temperatures: 1 stands there twice")
        student = ["distill", "student", "--teacher", self.teacher, "--data", self.questions, "--init", self.blank, "--out", str(self.folder / "x")]
        for option, value in (("--distill-weight", "1"), ("--logits-top-k", "8"), ("--temperatures", "1")):
            self.assert_refused(fathom(*student, option, value, *quiet), 2, f"{option} requires --logits")
        self.assert_refused(self.traces(*quiet, teacher=("--teacher", self.teacher, "--url", "http://localhost:1")), 2, "excludes")
        self.assert_refused(self.traces(*quiet, teacher=("--seed", "1")), 2, "give either --teacher M")
        self.questions = self.write("bad.jsonl", '{"question": "a", "answer": 1}\n{"answer": 1}\n')
        self.assert_refused(self.traces(*quiet), 1, "bad.jsonl:2: needs \"question\"")
        self.questions = self.write("open.jsonl", jsonl([QUESTIONS[2]]))
        self.assert_refused(self.traces(*quiet), 2, "no question has an \"answer\" or \"tests\"")
        self.questions = self.write("wrong.jsonl", jsonl([QUESTIONS[1]]))
        self.assert_refused(self.traces(*quiet), 1, "no trace is left to keep: of 1 answers", "1 are wrong")
        self.assert_refused(fathom("distill", "student", "--url", "http://127.0.0.1:1", "--data", self.questions, "--init", self.blank, "--out",
                                   str(self.folder / "x"), "--logits", *quiet), 2, "--logits needs --teacher M")


if __name__ == "__main__":
    unittest.main()
