#!/usr/bin/env python3
"""docs/long-context.md, shortened: the memory of a long prompt, and a model that gets an indexer and loses nothing by it."""
import json
import os
import pathlib
import subprocess
import sys
import unittest

sys.dont_write_bytecode = True
from program import PROGRAM, Case, fathom  # noqa: E402
from resume_test import CONFIG  # noqa: E402

TEXT = str(pathlib.Path(__file__).parents[2] / "data/tinyshakespeare-val.txt")
SPARSE = dict(CONFIG, model_type="deepseek_v32", architectures=["DeepseekV32ForCausalLM"], num_nextn_predict_layers=0, index_n_heads=2,
              index_head_dim=32, index_topk=64, max_position_embeddings=65536)


class LongContext(Case):
    def peak(self, *arguments):
        """Bytes of memory at the most."""
        process = subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        self.assertEqual(status, 0)
        return usage.ru_maxrss * 1024

    def test_memory_grows_as_the_context_does(self):
        config = self.write("config.json", json.dumps(SPARSE))
        short, long = (self.peak("bench", "--model-config", config, "--kv-type", "int8", "--prompt", str(n), "--gen", "0", "--reps", "1",
                                 "--threads", "2") for n in (4096, 32768))
        # Caches differ by 5 MiB; scores of every pair would be 4 GiB.
        self.assertLess(long - short, 16 << 20)

    def test_bench_goes_to_131072(self):
        config = self.write("config.json", json.dumps(dict(SPARSE, num_hidden_layers=1, first_k_dense_replace=1, index_n_heads=1, index_head_dim=8,
                                                           max_position_embeddings=163840)))
        lines = self.assert_done(fathom("bench", "--model-config", config, "--kv-type", "int8", "--prompt", "0", "--gen", "2", "--reps", "1",
                                        "--threads", "2", "--depth", "131072", "--json")).splitlines()
        self.assertEqual(json.loads(lines[0])["test"], "tg2@d131072")

    def test_a_model_gets_an_indexer_and_loses_nothing(self):
        config = self.write("config.json", json.dumps(dict(CONFIG, num_nextn_predict_layers=0, hidden_size=64, max_position_embeddings=256)))

        def train(out, steps, *more):
            self.assert_done(fathom("train", "--data", TEXT, "--tokenizer", "bytes", "--out", str(self.folder / out), "--steps", str(steps),
                                    "--seq-len", "256", "--batch-size", "8", "--threads", "2", "--warmup", "5", *more))
            return [json.loads(line) for line in (self.folder / out / "train.jsonl").read_text().splitlines()]

        def loss(out, *more):
            return json.loads(self.assert_done(fathom("score", "--model", str(self.folder / out), "--text", TEXT, "--window", "256", "--threads", "2",
                                                      "--json", *more)))["loss"]

        train("base", 200, "--model-config", config, "--lr", "5e-3")
        warm = train("warm", 100, "--init", str(self.folder / "base"), "--dsa", "warmup", "--index-n-heads", "2", "--index-head-dim", "16",
                     "--index-topk", "32", "--lr", "1e-2")
        recalls = [row["indexer_recall"] for row in warm if row.get("indexer_recall")]
        self.assertLess(recalls[0], 0.7)
        self.assertGreater(recalls[-1], 0.9)
        for out, dsa in (("sparse", "sparse"), ("dense", "off")):
            train(out, 100, "--init", str(self.folder / "warm"), "--dsa", dsa, "--lr", "1e-3")
        lost = loss("warm") / loss("warm", "--attention", "dense") - 1
        left = loss("sparse") / loss("dense", "--attention", "dense") - 1
        self.assertLess(left, 0.005)
        self.assertLess(left, lost / 2)


if __name__ == "__main__":
    unittest.main()
