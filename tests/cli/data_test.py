"""Training data through the real program: what may be named, tokenizing once, and what is refused. usage: data_test.py PROGRAM"""
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
from program import PROGRAM, TINY, Case, fathom  # noqa: E402

SHORT_RUN = ("--steps", "2", "--seq-len", "8", "--batch-size", "2", "--tokenizer", TINY + "/tokenizer.json", "--model-config", TINY + "/config.json")


def ids_in(dataset):
    """What docs/data.md says, read by other code."""
    about = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    width, ids = about["token_bytes"], []
    for shard in about["shards"]:
        data = (dataset / shard["file"]).read_bytes()
        assert data[:8] == b"fathomtk" and int.from_bytes(data[8:12], "little") == 1 and int.from_bytes(data[12:16], "little") == width
        assert int.from_bytes(data[16:24], "little") == shard["tokens"]
        ids += [int.from_bytes(data[i : i + width], "little") for i in range(24, len(data), width)]
    assert len(ids) == about["tokens"]
    return about, ids


def learned(folder):
    return (pathlib.Path(folder) / "model.safetensors").read_bytes()


class Data(Case):
    def setUp(self):
        super().setUp()
        self.documents = [f"The hollow window number {i} hides the lantern é." for i in range(200)]
        self.lines = "".join(json.dumps({"text": text}) + "\n" for text in self.documents)

    def tokenize(self, *arguments, **options):
        return fathom("tokenize", "--model", TINY, *arguments, **options)

    def train(self, out, *arguments):
        return fathom("train", "--out", str(self.folder / out), *SHORT_RUN, *arguments)

    def path(self, name):
        return str(self.folder / name)

    def test_a_dataset_holds_the_ids_of_its_documents(self):
        self.write("a.jsonl", self.lines)
        done = json.loads(self.assert_done(self.tokenize("--json", "--data", self.path("a.jsonl"), "--out", self.path("d"))))
        about, ids = ids_in(self.folder / "d")
        self.assertEqual((done["documents"], done["tokens"], done["shards"]), (200, len(ids), 1))
        answers = self.assert_done(self.tokenize("--jsonl", stdin=self.lines)).splitlines()
        self.assertEqual(ids, [i for answer in answers for i in [*json.loads(answer), about["eos_id"]]])
        self.assertEqual(about["sources"][0]["bytes"], len(self.lines.encode()))

    def test_every_kind_of_data_trains_the_same_model(self):
        plain = self.write("a.jsonl", self.lines)
        folder = self.folder / "corpus"
        folder.mkdir()
        middle = self.lines.index("\n", len(self.lines) // 2) + 1
        (folder / "1.jsonl.gz").write_bytes(gzip.compress(self.lines[:middle].encode()))
        (folder / "2.jsonl").write_text(self.lines[middle:], encoding="utf-8")
        self.assert_done(self.tokenize("--data", plain, "--out", self.path("tokens")))
        for out, data in (("plain", plain), ("folder", str(folder)), ("shards", self.path("tokens"))):
            self.assert_done(self.train(out, "--data", data, "--val-data", data))
        self.assertEqual(learned(self.folder / "plain"), learned(self.folder / "folder"))
        self.assertEqual(learned(self.folder / "plain"), learned(self.folder / "shards"))
        self.assertEqual(sorted(p.name for p in (self.folder / "plain/data").iterdir()), ["train", "val"])
        self.assertFalse((self.folder / "shards/data").exists())

    def test_text_is_tokenized_once(self):
        data = self.write("a.jsonl", self.lines)
        run = ("--data", data, "--resume")
        self.assert_done(self.train("run", *run))
        shard = self.folder / "run/data/train/00000.tokens"
        made = shard.stat().st_mtime_ns
        self.assert_done(self.train("run", *run))
        self.assertEqual(shard.stat().st_mtime_ns, made)
        os.utime(data, (1, 1))
        result = self.train("run", *run)
        self.assert_done(result)
        self.assertIn("was made of other text or with other options; the text is tokenized again", result.stderr)
        self.assertNotEqual(shard.stat().st_mtime_ns, made)
        self.write("a.jsonl", self.lines + '{"text": "more"}\n')
        result = self.train("run", *run)
        self.assertEqual(result.returncode, 1)
        self.assertIn("--resume: data is", result.stderr)

    def test_fill_in_the_middle(self):
        data = self.write("a.jsonl", self.lines)
        self.assert_done(self.tokenize("--data", data, "--out", self.path("all"), "--fim-rate", "1", "--seed", "5"))
        about, ids = ids_in(self.folder / "all")
        self.assertEqual(about["fim"], {"rate": 1, "seed": 5})
        names = {"<｜fim▁begin｜>": "B", "<｜fim▁hole｜>": "H", "<｜fim▁end｜>": "E", "<｜end▁of▁sentence｜>": "\n"}
        text = self.assert_done(self.tokenize("--decode", stdin=json.dumps(ids)))
        for name, letter in names.items():
            text = text.replace(name, "\0" + letter)
        for wanted, found in zip(self.documents, text.split("\0\n"), strict=False):
            (_, prefix), (_, suffix), (_, middle) = ((part[0], part[1:]) for part in found.split("\0")[1:])
            self.assertEqual(prefix + middle + suffix, wanted)
        self.assert_done(self.train("run", "--data", data, "--val-data", data, "--fim-rate", "0.5"))
        self.assertEqual(ids_in(self.folder / "run/data/train")[0]["fim"], {"rate": 0.5, "seed": 0})
        self.assertEqual(ids_in(self.folder / "run/data/val")[0]["fim"], {"rate": 0, "seed": 0})
        result = fathom("tokenize", "--model", "bytes", "--data", data, "--out", self.path("none"), "--fim-rate", "0.1")
        self.assert_refused(result, 2, "no token <｜fim▁begin｜>")
        self.assert_refused(self.train("none", "--data", self.path("all"), "--fim-rate", "0.5"), 2, "all is tokenized, with a rate of 1")

    def test_what_does_not_fit_is_refused(self):
        data = self.write("a.jsonl", self.lines)
        self.assert_done(fathom("tokenize", "--model", "bytes", "--data", data, "--out", self.path("bytes")))
        self.assert_refused(self.train("run", "--data", self.path("bytes")), 1, "bytes: was made with a vocabulary of 258 ids")
        self.assert_done(self.tokenize("--data", data, "--out", self.path("d")))
        self.assert_refused(self.train("run", "--data", self.path("d"), data), 1, "d: is a dataset of tokens, not text")
        shard = self.folder / "d/00000.tokens"
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        self.assert_refused(self.train("run", "--data", self.path("d")), 1, "00000.tokens: its content changed since it was written")
        shard.write_bytes(whole[:-2])
        self.assert_refused(self.train("run", "--data", self.path("d")), 1, "00000.tokens: has")
        self.assertFalse((self.folder / "run").exists())
        inside = self.folder / "corpus"
        inside.mkdir()
        (inside / "a.txt").write_text("The hollow window")
        self.assert_refused(self.train("corpus/run", "--data", str(inside)), 2, "--out", "of which all files are read")
        self.assert_refused(self.train("run", "--data", str(inside), "--log", str(inside / "log.jsonl")), 2, "--log", "of which all files are read")

    def test_wrong_usage(self):
        data = self.write("a.txt", "The hollow window")
        self.assert_refused(self.tokenize("--data", data), 2, "--data needs --out DIR")
        self.assert_refused(self.tokenize("--out", self.path("d")), 2, "belong to --data")
        self.assert_refused(self.tokenize("--fim-rate", "0.5", stdin="x"), 2, "belong to --data")
        self.assert_refused(self.tokenize("--data", data, "--out", self.path("d"), "--decode"), 2, "--decode")
        self.assert_refused(self.tokenize("--data", data, "--out", self.path("d"), "--fim-rate", "1.5"), 2, "between 0 and 1")
        self.assert_refused(self.tokenize("--data", data, "--out", data), 1, "a.txt: is a file")
        self.assert_refused(self.tokenize("--data", data, "--out", str(self.folder)), 1, "holds a.txt, so it is no dataset")
        self.assert_refused(self.train("run", "--data", data, "--fim-rate", "-1"), 2, "--fim-rate is -1")
        self.assertEqual([p.name for p in self.folder.iterdir()], ["a.txt"])

    def test_vocabularies_are_made_of_the_same_kinds_of_text(self):
        data = self.write("a.jsonl", self.lines)
        (self.folder / "corpus").mkdir()
        (self.folder / "corpus/a.jsonl.gz").write_bytes(gzip.compress(self.lines.encode()))
        for out, source in (("1.json", data), ("2.json", self.path("corpus"))):
            self.assert_done(fathom("tokenize", "--train", "300", "--data", source, "--out", self.path(out)))
        self.assertEqual((self.folder / "1.json").read_bytes(), (self.folder / "2.json").read_bytes())
        self.assert_refused(self.tokenize("--train", "300", "--data", data, "--out", self.path("3"), "--fim-rate", "1"), 2, "leave --fim-rate out")

    def test_one_that_is_stopped_leaves_no_dataset(self):
        data = self.path("large.jsonl")
        with open(data, "w", encoding="utf-8") as file:
            for _ in range(100):
                file.write(self.lines * 10)
        for out, stop, code in (("d", signal.SIGKILL, -9), ("e", signal.SIGTERM, 143)):
            process = subprocess.Popen([PROGRAM, "tokenize", "--model", TINY, "--data", data, "--out", self.path(out)], stderr=subprocess.DEVNULL)
            partial = self.folder / f"{out}.partial/00000.tokens.partial"
            while not partial.exists() and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(stop)
            self.assertEqual(process.wait(), code)
            self.assertFalse((self.folder / out).exists())
            self.assertEqual((self.folder / f"{out}.partial").exists(), stop == signal.SIGKILL)
        self.assert_done(self.tokenize("--threads", "1", "--data", data, "--out", self.path("d")))
        self.assertFalse((self.folder / "d.partial").exists())
        self.assertEqual(json.loads((self.folder / "d/dataset.json").read_text(encoding="utf-8"))["documents"], 200_000)


if __name__ == "__main__":
    unittest.main()
