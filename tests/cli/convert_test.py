"""Runs fathom convert: what it writes, its report, its importance matrices. usage: convert_test.py PROGRAM"""
import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True
from program import MTP, PROGRAM, TINY, Case, fathom  # noqa: E402


class Convert(Case):
    def convert(self, *arguments, **options):
        return fathom("convert", *arguments, **options)

    def test_it_answers_as_the_model_that_it_was_made_from(self):
        arguments = ["--prompt", "The hollow window", "--max-tokens", "12", "--json"]
        want = self.generate_json(*arguments[:-1])["ids"]
        # A directory in the Hugging Face layout, packed, as GGUF; and from the latter two again.
        chain = [(TINY, "hf", []), (TINY, "packed", ["--packed"]), (TINY, "model.gguf", []), ("packed", "again", []), ("model.gguf", "back", []),
                 ("model.gguf", "again.gguf", [])]
        for source, name, more in chain:
            source, out = str(self.folder / source), str(self.folder / name)
            self.assertEqual(self.assert_done(self.convert(source, out, "--to", "bf16", "--quiet", *more)), "")
            answer = json.loads(self.assert_done(fathom("generate", "--model", out, *arguments)))
            self.assertEqual(answer["ids"], want, name)
        self.assertIn("fathom", (self.folder / "packed" / "config.json").read_text())
        for name in ("hf", "again", "back"):
            self.assertNotIn("quantization_config", (self.folder / name / "config.json").read_text())
            self.assertEqual((self.folder / name / "model.safetensors").read_bytes(), (self.folder / "hf" / "model.safetensors").read_bytes())

    def test_what_stands_beside_the_weights_is_copied(self):
        source, out = self.folder / "source", self.folder / "out"
        shutil.copytree(TINY, source)
        (source / "generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": [1, 5], "temperature": 0.3}\n')
        (source / "chat_template.jinja").write_text("{{ messages }}")
        (source / "special_tokens_map.json").write_text("{}")
        (source / "secret.txt").write_text("x")
        for more in (["--to", "fp8"], ["--to", "q4_0"]):
            self.assert_done(self.convert(str(source), str(out), *more))
            for file in source.iterdir():
                if file.name.startswith(("generation", "tokenizer", "chat", "special")):
                    self.assertEqual((out / file.name).read_bytes(), file.read_bytes(), file.name)
            self.assertFalse((out / "secret.txt").exists())
            told = json.loads((out / "config.json").read_text())
            self.assertEqual(told["eos_token_id"], [1, 5])
        # What the next model does not have does not stay.
        self.assert_done(self.convert(TINY, str(out), "--to", "bf16"))
        self.assertFalse((out / "chat_template.jinja").exists())
        self.assertTrue((out / "tokenizer.json").exists())
        self.assertEqual((out / "generation_config.json").read_bytes(), (pathlib.Path(TINY) / "generation_config.json").read_bytes())

    def test_a_dry_run_tells_what_is_written(self):
        for name, *more in (("f32",), ("fp8",), ("bf16", "--packed"), ("q4_k_m",)):
            told = json.loads(self.assert_done(self.convert(TINY, "--to", name, *more, "--dry-run", "--json")))
            self.assertEqual(told["bytes"], sum(size["bytes"] for size in told["by_type"].values()))
            numbers = sum(size["numbers"] for size in told["by_type"].values())
            self.assertAlmostEqual(told["bits_per_number"], 8 * told["bytes"] / numbers)
            out = self.folder / name
            self.assertEqual(self.assert_done(self.convert(TINY, str(out), "--to", name, *more, "--dry-run", "--json")),
                             json.dumps(told, separators=(",", ":")) + "\n")
            self.assertFalse(out.exists())
            self.assert_done(self.convert(TINY, str(out), "--to", name, *more))
            data = (out / "model.safetensors").read_bytes()
            self.assertEqual(len(data) - 8 - int.from_bytes(data[:8], "little"), told["bytes"])
        told = json.loads(self.assert_done(self.convert(TINY, "m.gguf", "--to", "q4_0", "--dry-run", "--json")))
        self.assertLess(told["by_type"]["q4_0"]["bytes"], told["bytes"])
        text = self.assert_done(self.convert(TINY, "--to", "q4_k_m", "--dry-run"))
        self.assertIn("bits a number", text)

    def test_wrong_usage(self):
        out = self.folder / "packed"
        self.assert_refused(self.convert(TINY, str(out), "--to", "q3"), 2, "--to q3", "bf16, ", "q4_k_m, ")
        self.assert_refused(self.convert(TINY, str(out)), 2, "--to")
        self.assert_refused(self.convert(TINY, "--to", "q4_0"), 2, "the directory or .gguf file to write")
        self.assert_refused(self.convert(TINY, str(out) + ".gguf", "--to", "bf16", "--packed"), 2, "--packed writes a directory")
        self.assert_refused(self.convert(TINY, str(out) + ".gguf", "--to", "fp8"), 2, "GGUF has no FP8")
        self.assert_refused(self.convert(TINY, TINY + "/../v3_tiny", "--to", "q4_0"), 2, "would overwrite itself")
        self.assert_refused(self.convert("/nonexistent", str(out), "--to", "q4_0"), 1, "/nonexistent: no such directory")
        self.assertFalse(out.exists())
        self.assert_done(self.convert(TINY, str(out), "--to", "q4_0"))
        self.assert_refused(self.convert(str(out), str(self.folder / "again"), "--to", "q8_0"), 1, "is packed already")
        self.assert_refused(self.convert(str(out), "--to", "q8_0", "--dry-run"), 1, "is packed already")

    def test_one_that_is_cut_off_leaves_no_model(self):
        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        for more in (["--to", "f32"], ["--to", "f32", "--packed"], ["--to", "q8_0"]):
            out = self.folder / "made" / "out"
            full = self.convert(TINY, str(out), *more, preexec_fn=small_files)
            self.assert_refused(full, 1, "model.safetensors", "File too large")
            self.assertEqual(list(self.folder.iterdir()), [])
            start = time.monotonic()
            self.assert_done(self.convert(TINY, str(out), *more))
            duration = time.monotonic() - start
            killed = tries = 0
            while tries < 20 or killed < 10:
                shutil.rmtree(out.parent, ignore_errors=True)
                process = subprocess.Popen([PROGRAM, "convert", TINY, str(out), *more, "--quiet"])
                time.sleep(tries % 20 / 20 * duration)
                process.kill()
                if process.wait() == -signal.SIGKILL:
                    killed += 1
                else:
                    duration *= 0.9  # the first one was the slowest
                tries += 1
                use = fathom("generate", "--model", str(out), "--tokens", "0,5", "--max-tokens", "2")
                if use.returncode != 0:  # a model or none
                    self.assert_refused(use, 1)
                    self.assertRegex(use.stderr, "no such directory|config.json")
            self.assert_done(self.convert(TINY, str(out), *more))
            self.assert_done(fathom("generate", "--model", str(out), "--tokens", "0,5", "--max-tokens", "2"))
            shutil.rmtree(out.parent)


class Report(Case):
    TEXT = "The gentle planet carries the river.\n" * 12

    def report(self, out, *arguments, model=MTP, text=None, **options):
        return fathom("convert", model, str(out), "--report", text or self.write("text.txt", self.TEXT), *arguments, **options)

    def test_it_says_what_score_says_and_lies_beside_the_result(self):
        for name, kept, *more in (("packed", "packed/conversion_report", "--to", "q4_0"), ("hf", "hf/conversion_report", "--to", "fp8"),
                                  ("m.gguf", "m.report", "--to", "q4_0")):
            out = self.folder / name
            told = json.loads(self.assert_done(self.report(out, *more, "--window", "40", "--json")))
            self.assertEqual(told, json.loads((self.folder / (kept + ".json")).read_text()))
            for key, model in (("source", MTP), ("result", out)):
                score = json.loads(self.assert_done(fathom("score", "--model", str(model), "--text", str(self.folder / "text.txt"),
                                                           "--window", "40", "--json")))
                self.assertEqual(told["tokens"], score["tokens"])
                self.assertAlmostEqual(told["perplexity"][key], score["perplexity"], delta=1e-4 * score["perplexity"])
            kl = told["kl"]
            self.assertTrue(0 < kl["median"] <= kl["p99"] <= kl["max"] and kl["mean"] <= kl["max"], kl)
            self.assertTrue(0 < told["same_top_1"] <= 1)
            errors = [weight["relative_rms"] for weight in told["worst_tensors"]]
            self.assertEqual(errors, sorted(errors, reverse=True))
            self.assertTrue(0 < told["relative_rms"] < errors[0] < 0.3)
            text = (self.folder / (kept + ".txt")).read_text()
            self.assertIn(told["worst_tensors"][0]["name"], text)
            self.assertIn(f"over {told['tokens']} tokens", text)
        self.assertEqual(self.assert_done(self.report(out, *more, "--window", "40")), text)
        # It goes with the model that it tells of.
        for name, kept in (("hf", "hf/conversion_report"), ("m.gguf", "m.report")):
            self.assert_done(fathom("convert", MTP, str(self.folder / name), "--to", "bf16"))
            self.assertFalse((self.folder / (kept + ".json")).exists() or (self.folder / (kept + ".txt")).exists())

    def test_nothing_is_lost_where_nothing_is_rounded(self):
        told = json.loads(self.assert_done(self.report(self.folder / "out", "--to", "f32", "--json")))
        self.assertLess(told["kl"]["max"], 1e-6)
        self.assertEqual(told["same_top_1"], 1)
        self.assertEqual(told["relative_rms"], 0)

    def test_wrong_usage_and_texts(self):
        out = self.folder / "out"
        self.assert_refused(self.report(out, "--to", "q4_0", "--dry-run"), 2, "--dry-run writes nothing to --report on")
        self.assert_refused(self.report(out, "--to", "q4_0", "--window", "1"), 2, "--window")
        self.assert_refused(self.report(out, "--to", "q4_0", "--window", "163841"), 2, "--window is 163841", "163840")
        self.assert_refused(fathom("convert", MTP, str(out), "--to", "q4_0", "--window", "9"), 2, "--window belongs to --report")
        self.assert_refused(self.report(out, "--to", "q4_0", text="/nonexistent"), 1, "/nonexistent: cannot open")
        self.assert_refused(self.report(out, "--to", "q4_0", text=self.write("empty.txt", "")), 1, "empty.txt: has fewer than two tokens")
        latin = self.folder / "latin.txt"
        latin.write_bytes("caf\u00e9 au lait".encode("latin-1"))
        self.assert_refused(self.report(out, "--to", "q4_0", text=str(latin)), 1, "latin.txt: is no UTF-8 text: byte 3")
        self.assertFalse(out.exists())


class Importance(Case):
    TEXT = Report.TEXT

    def make(self, out, *arguments, model=MTP, text=None):
        return fathom("convert", model, str(out), "--make-imatrix", text or self.write("text.txt", self.TEXT), *arguments)

    def test_it_tells_the_coverage_of_every_expert(self):
        out = self.folder / "imatrix.gguf"
        told = json.loads(self.assert_done(self.make(out, "--json", "--window", "50")))
        config = json.loads((pathlib.Path(MTP) / "config.json").read_text())
        layers = range(config["first_k_dense_replace"], config["num_hidden_layers"] + 1)
        self.assertEqual([layer["layer"] for layer in told["experts"]], list(layers))
        unseen = 0
        for layer in told["experts"]:
            self.assertEqual(len(layer["tokens"]), config["n_routed_experts"])
            tokens = told["tokens"] - (told["windows"] if layer["layer"] == config["num_hidden_layers"] else 0)
            self.assertEqual(sum(layer["tokens"]), tokens * config["num_experts_per_tok"])
            unseen += layer["tokens"].count(0)
        self.assertEqual(told["experts_without_tokens"], unseen)
        text = self.assert_done(self.make(out, text=self.write("short.txt", "The gentle")))
        self.assertIn("saw none: ", text)
        self.assertIn("experts saw no token, and will be quantized with equal weights", text)

    def test_it_changes_what_is_quantized_and_says_what_it_lacks(self):
        imatrix = str(self.folder / "imatrix.gguf")
        self.assert_done(self.make(imatrix, text=self.write("short.txt", "The gentle")))
        for name in ("packed", "m.gguf"):
            plain, weighted = self.folder / ("plain-" + name), self.folder / ("weighted-" + name)
            self.assert_done(fathom("convert", MTP, str(plain), "--to", "q4_0"))
            done = fathom("convert", MTP, str(weighted), "--to", "q4_0", "--imatrix", imatrix)
            self.assert_done(done)
            self.assertRegex(done.stderr, r"imatrix.gguf: has no data of \d+ of \d+ experts and of 0 other weights")
            of = lambda path: (path if path.is_file() else path / "model.safetensors").read_bytes()  # noqa: E731
            self.assertEqual(len(of(plain)), len(of(weighted)))
            self.assertNotEqual(of(plain), of(weighted))
            self.assert_done(fathom("generate", "--model", str(weighted), "--tokens", "0,5", "--max-tokens", "2"))

    def test_wrong_usage_and_files(self):
        out, imatrix = self.folder / "out", str(self.folder / "imatrix.gguf")
        self.assert_refused(self.make(out, "--to", "q4_0"), 2, "--make-imatrix writes no model")
        self.assert_refused(fathom("convert", MTP, "--make-imatrix", "x"), 2, "the file to write the importance matrix to")
        self.assert_refused(self.make(MTP), 2, "would overwrite itself")
        self.assert_refused(self.make(self.folder), 1, "is a directory")
        self.assert_refused(self.make(out, text="/nonexistent"), 1, "/nonexistent: cannot open")
        self.assert_refused(self.make(out, text=self.write("empty.txt", "")), 1, "empty.txt: has fewer than two tokens")
        self.assertFalse(out.exists())
        self.assert_done(self.make(imatrix))

        def convert(*arguments, model=MTP):
            return fathom("convert", model, str(out), *arguments)

        for name in ("bf16", "fp8", "q8_0"):
            self.assert_refused(convert("--to", name, "--imatrix", imatrix), 2, f"--imatrix changes nothing in --to {name}")
        for more in ([], ["--dry-run"]):
            self.assert_refused(convert("--to", "q4_0", "--imatrix", imatrix, *more, model=TINY), 1, "imatrix.gguf: ", "made from another one")
            self.assert_refused(convert("--to", "q4_0", "--imatrix", "/nonexistent", *more), 1, "/nonexistent: cannot open")
        data = pathlib.Path(imatrix).read_bytes()
        cut = self.folder / "cut.gguf"
        for size in (0, 3, 100, 5000, len(data) - 40):
            cut.write_bytes(data[:size])
            self.assert_refused(convert("--to", "q4_0", "--imatrix", str(cut)), 1, "cut.gguf: ")
        self.assert_refused(convert("--to", "q4_0", "--imatrix", self.write("text.txt", "no")), 1, "text.txt: not a GGUF file")
        model = self.folder / "model.gguf"
        self.assert_done(fathom("convert", MTP, str(model), "--to", "q8_0"))
        self.assert_refused(convert("--to", "q4_0", "--imatrix", str(model)), 1, "model.gguf: is no importance matrix")
        self.assertFalse(out.exists())


if __name__ == "__main__":
    unittest.main()
