#!/usr/bin/env python3
"""Models with sparse attention (deepseek_v32) through the program: what its commands make of them, and what they refuse."""
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import unittest

sys.dont_write_bytecode = True
from program import ORACLE, PROGRAM, TINY, Case, fathom  # noqa: E402
from resume_test import CONFIG  # noqa: E402
from server import Server  # noqa: E402

SPARSE = str(ORACLE / "v32_dsa")
PROMPT = ",".join(str(7 * i % 640) for i in range(1, 60))  # seven times what a token attends to
ENOUGH = ["--max-tokens", "30", "--ignore-eos", "--json"]


class Sparse(Case):
    def changed(self, name, **keys):
        """A copy of the model whose config.json has other values."""
        folder = self.folder / name
        shutil.copytree(SPARSE, folder)
        config = json.loads((folder / "config.json").read_text())
        config.update(keys)
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    def ids(self, model, *arguments):
        return json.loads(self.assert_done(fathom("generate", "--model", model, "--tokens", PROMPT, *ENOUGH, *arguments)))["ids"]

    def test_bench_compares_with_dense_attention(self):
        bench = ["bench", "--prompt", "40", "--gen", "4", "--reps", "1", "--json", "--threads", "1"]
        dense = ["--attention", "dense"]
        for more in ([], dense, [*dense, "--depth", "20", "--batch", "2", "--kv-type", "fp8"]):
            lines = [json.loads(line) for line in self.assert_done(fathom(*bench, "--model", SPARSE, *more)).splitlines()]
            self.assertEqual(len(lines), 2)
            for line in lines:
                self.assertGreater(line["avg_ts"], 0)
                self.assertEqual(line["attention"], "dense" if more else "sparse")
        self.assert_refused(fathom(*bench, "--model", TINY, *dense), 2, "--attention dense", "in any case")

    def test_bench_goes_through_depths(self):
        bench = ["bench", "--model", SPARSE, "--prompt", "20", "--gen", "3", "--reps", "1", "--json", "--threads", "1"]
        out = self.assert_done(fathom(*bench, "--depth", "0,10,70", "--attention", "both"))
        tests = [(line["test"], line["attention"]) for line in map(json.loads, out.splitlines())]
        self.assertEqual(tests, [(f"{kind}{depth}{more}", attention) for depth in ("", "@d10", "@d70") for kind in ("tg3", "pp20")
                                 for more, attention in (("+dense", "dense"), ("", "sparse"))])
        self.assert_refused(fathom(*bench, "--depth", "10,10"), 2, "--depth")
        self.assert_refused(fathom(*bench, "--depth", "10,5"), 2, "--depth")
        self.assert_refused(fathom(*bench, "--depth", "0,163840"), 2, "--depth")

    def test_score_compares_with_dense_attention(self):
        text = str(pathlib.Path(__file__).parents[2] / "README.md")
        losses = [json.loads(self.assert_done(fathom("score", "--json", "--model", SPARSE, "--text", text, *more)))["loss"]
                  for more in ([], ["--attention", "dense"])]
        self.assertNotEqual(*losses)
        self.assert_refused(fathom("score", "--model", TINY, "--text", text, "--attention", "dense"), 2, "in any case")

    def test_a_device_is_refused_in_one_line(self):
        for command in (["generate", "--tokens", "1,2"], ["bench"], ["chat"], ["serve", "--port", "0"]):
            result = fathom(*command, "--model", SPARSE, "--device", "cuda")
            self.assert_refused(result, 2, "--device")
            self.assertRegex(result.stderr, "no CUDA|sparse attention|runs on the CPU alone")

    def test_every_cache_generates(self):
        exact = self.ids(SPARSE)
        self.assertEqual(len(exact), 30)
        for kv_type in ("f32", "bf16", "f16", "fp8", "int8"):
            ids = self.ids(SPARSE, "--kv-type", kv_type)
            self.assertEqual(len(ids), 30)
            if kv_type == "f32":
                self.assertEqual(ids, exact)
            self.assertEqual(self.ids(SPARSE, "--kv-type", kv_type, "--threads", "1", "--draft", "mtp"), ids)

    def test_a_choice_of_all_is_every_context(self):
        """Of no effect and of no cost, however large."""
        exact = self.ids(self.changed("all", index_topk=200))
        self.assertNotEqual(exact, self.ids(SPARSE))
        huge = self.changed("huge", index_topk=1 << 31)
        self.assertEqual(self.ids(huge), exact)
        tokens = self.write("tokens.json", json.dumps([[3, 5, 8, 13, 21], [2]]))
        out = self.folder / "scores.safetensors"
        self.assert_done(fathom("score", "--model", huge, "--tokens", tokens, "--out", str(out), "--all"))
        header = json.loads(out.read_bytes()[8 : 8 + int.from_bytes(out.read_bytes()[:8], "little")])
        self.assertEqual(header["indexer.2.topk_ids.0"]["shape"], [5, 5])
        self.assertEqual(header["indexer.0.topk_ids.1"]["shape"], [1, 1])
        self.assert_done(fathom("score", "--model", huge, "--tokens", tokens, "--grads", str(self.folder / "grads.safetensors")))

    def test_configs_that_make_no_model(self):
        for key, value in (("index_topk", (1 << 31) + 1), ("index_topk", 0), ("index_topk", 1 << 62), ("index_n_heads", 65537),
                           ("index_n_heads", 0), ("index_n_heads", -8), ("index_head_dim", 65537), ("index_head_dim", 7)):
            model = self.changed(f"{key}{value}", **{key: value})
            self.assert_refused(fathom("generate", "--model", model, "--tokens", "1"), 1, key, str(value))
        # Numbers that a model may have, but not this one's weights.
        for key, value in (("index_n_heads", 65536), ("index_head_dim", 65536), ("index_head_dim", 17), ("index_n_heads", 1)):
            model = self.changed(f"{key}{value}", **{key: value})
            self.assert_refused(fathom("generate", "--model", model, "--tokens", "1"), 1, "indexer")
        self.assert_refused(fathom("inspect", self.changed("v3", model_type="deepseek_v3")), 1, "deepseek_v32")

    def test_conversions_keep_the_indexer(self):
        exact = self.ids(SPARSE)
        for name, form in (("f32", "f32"), ("bf16.gguf", "bf16"), ("q8_0.gguf", "q8_0"), ("fp8", "fp8")):
            model = str(self.folder / name)
            self.assert_done(fathom("convert", SPARSE, model, "--to", form))
            info = json.loads(self.assert_done(fathom("inspect", model, "--json")))
            self.assertEqual([info["config"][key] for key in ("model_type", "index_n_heads", "index_head_dim", "index_topk")],
                             ["deepseek_v32", 8, 16, 8])
            ids = self.ids(model)
            self.assertEqual(len(ids), 30)
            if form in ("f32", "bf16"):
                self.assertEqual(ids, exact)

    def test_chat_and_text(self):
        text = self.write("text.txt", "The quick brown fox jumps over the lazy dog. " * 20)
        self.assertGreater(json.loads(self.assert_done(fathom("score", "--model", SPARSE, "--text", text, "--json")))["tokens"], 100)
        self.assert_done(fathom("generate", "--model", SPARSE, "--prompt", "some text " * 30, "--max-tokens", "3"))


class Serving(Case):
    def test_beginnings_with_their_index_keys_outlive_the_server(self):
        prompt = "the time has come, the walrus said, " * 12
        folder = self.folder / "pages"

        def ask(server, text):
            body = {"prompt": text, "max_tokens": 12, "temperature": 0, "logprobs": 1, "ignore_eos": True}
            answer = server.done("/v1/completions", body)
            return answer["choices"][0]["text"], answer["choices"][0]["logprobs"], answer["usage"]["prompt_cache_hit_tokens"]

        def serve(kv_type, *more):
            return Server(self, "--prefix-cache", str(folder), "--kv-type", kv_type, *more, model=SPARSE)

        with serve("bf16") as server:
            alone = ask(server, prompt)
            self.assertEqual(alone[2], 0)
            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                texts = [prompt[:400] + word for word in ("of many", "things", "of", "shoes", "and ships", "and sealing wax")]
                together = list(pool.map(lambda text: ask(server, text), texts))
            again = ask(server, prompt)
            self.assertEqual(again[:2], alone[:2])
            self.assertGreater(again[2], 0)
        with serve("bf16") as server:
            self.assertEqual(ask(server, prompt), again)
            self.assertEqual([ask(server, text)[:2] for text in texts], [answer[:2] for answer in together])
        for kv_type in ("f16", "f32", "fp8"):  # of the same size, and of others
            with serve(kv_type) as server:
                self.assertEqual(ask(server, prompt)[2], 0)
        with Server(self, "--kv-type", "bf16", model=SPARSE, threads=1) as server:
            self.assertEqual(ask(server, prompt), alone)


class Training(Case):
    def setUp(self):
        super().setUp()
        config = dict(CONFIG, num_nextn_predict_layers=1)
        self.config = self.write("config.json", json.dumps(config))
        self.text = self.write("text.txt", "".join(f"line {i} of the text that the model learns from\n" for i in range(200)))
        self.dense = str(self.folder / "dense")
        self.assert_done(self.train("dense", "--model-config", self.config))

    def arguments(self, out, *more):
        return ["train", "--data", self.text, "--tokenizer", "bytes", "--out", str(self.folder / out), "--steps", "2", "--seq-len",
                "40", "--batch-size", "2", "--threads", "1", *more]

    def train(self, out, *more):
        return fathom(*self.arguments(out, *more))

    def test_both_stages(self):
        sizes = ["--index-n-heads", "2", "--index-head-dim", "8", "--index-topk", "10"]
        self.assert_done(self.train("warm", "--init", self.dense, "--dsa", "warmup", *sizes))
        warm = str(self.folder / "warm")
        self.assert_done(self.train("sparse", "--init", warm, "--dsa", "sparse", "--yarn-factor", "2"))
        config = json.loads((self.folder / "sparse/config.json").read_text())
        self.assertEqual([config["model_type"], config["index_topk"], config["max_position_embeddings"]], ["deepseek_v32", 10, 128])
        line = json.loads((self.folder / "sparse/train.jsonl").read_text().splitlines()[-1])
        self.assertGreater(line["indexer_loss"], 0)
        self.assertTrue(0 < line["indexer_recall"] <= 1)
        # Sizes go with new indexers alone.
        self.assert_refused(self.train("x", "--init", self.dense, "--index-topk", "10"), 2, "--index-topk", "--dsa warmup")
        self.assert_refused(self.train("x", "--init", warm, "--dsa", "sparse", "--index-n-heads", "4"), 2, "--index-n-heads")
        self.assert_refused(self.train("x", "--init", warm, "--dsa", "warmup", "--index-n-heads", "4"), 2, "indexer already")
        self.assert_refused(self.train("x", "--init", self.dense, "--dsa", "sparse"), 2, "--dsa sparse", "--dsa warmup")
        self.assert_refused(self.train("x", "--model-config", self.config, "--dsa", "warmup"), 2, "--dsa warmup", "--init")
        self.assert_refused(self.train("x", "--init", self.dense, "--dsa", "none"), 2, "--dsa")
        for number in ("0", "-1", "2.5", "many", "99999999999999999999"):
            result = self.train("x", "--init", self.dense, "--dsa", "warmup", "--index-topk", number)
            self.assert_refused(result, 2, "--index-topk")
        for number in ("-1", "nan", "inf", "much"):
            self.assert_refused(self.train("x", "--init", self.dense, "--yarn-factor", number), 2, "--yarn-factor")
        self.assert_refused(self.train("x", "--init", self.dense, "--yarn-original", "64"), 2, "--yarn-factor")
        self.assert_refused(self.train("x", "--init", str(self.folder / "sparse"), "--yarn-factor", "2"), 2, "--yarn-original")
        # Of the stages one at a time.
        out = ["--init", warm, "--resume"]
        self.assert_done(self.train("again", "--init", warm))
        self.assert_refused(self.train("again", *out, "--dsa", "off"), 1, "dsa")

    @unittest.skipUnless(shutil.which("mpirun"), "no mpirun")
    def test_several_processes_are_refused(self):
        self.assert_done(self.train("warm", "--init", self.dense, "--dsa", "warmup", "--index-topk", "10"))
        for more in (["--init", str(self.folder / "warm")], ["--init", self.dense, "--dsa", "warmup"]):
            environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
            result = subprocess.run(["mpirun", "--oversubscribe", "-n", "2", PROGRAM, *self.arguments("many", *more)], env=environment,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", timeout=120)
            if "built without MPI" in result.stderr:  # as programs under sanitizers are
                self.skipTest("built without MPI")
            self.assertEqual(result.returncode, 2, result.stderr)
            lines = [line for line in result.stderr.splitlines() if line.startswith("fathom: ")]
            self.assertEqual(len(lines), 1, result.stderr)
            self.assertIn("one process", lines[0])
            self.assertFalse((self.folder / "many").exists())


if __name__ == "__main__":
    unittest.main()
