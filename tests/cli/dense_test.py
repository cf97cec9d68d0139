#!/usr/bin/env python3
"""Dense models with grouped-query attention (llama, qwen2) through the program: what its commands make of them, and what they
refuse."""
import json
import shutil
import sys
import unittest

sys.dont_write_bytecode = True
from program import ORACLE, Case, fathom  # noqa: E402
from server import Server  # noqa: E402

LLAMA, QWEN2 = str(ORACLE / "llama_like"), str(ORACLE / "qwen2_like")
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 258, "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 96, "hidden_act": "silu",
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.05,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 32},
}


class Dense(Case):
    def json_of(self, *arguments):
        return json.loads(self.assert_done(fathom(*arguments, "--json")))

    def loss(self, model, text):
        return self.json_of("score", "--model", model, "--text", text)["loss"]

    def changed(self, model, name, **keys):
        folder = self.folder / name
        shutil.copytree(model, folder)
        config = json.loads((folder / "config.json").read_text()) | keys
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    def test_from_training_to_an_answer(self):
        text = self.write("text.txt", "".join(f"line {i} of the text that the model learns from\n" for i in range(300)))
        train = ["train", "--data", text, "--tokenizer", "bytes", "--steps", "60", "--seq-len", "48", "--batch-size", "8",
                 "--warmup", "5", "--threads", "2"]
        trained, tuned = str(self.folder / "trained"), str(self.folder / "tuned")
        self.assert_done(fathom(*train, "--model-config", self.write("config.json", json.dumps(CONFIG)), "--lr", "1e-2", "--out",
                                trained))
        before = self.loss(trained, text)
        self.assertLess(before, 1.0)  # of 5.5 for bytes that are all alike
        self.assert_done(fathom(*train, "--init", trained, "--lr", "2e-3", "--out", tuned, "--precision", "bf16", "--recompute",
                                "selective"))
        self.assertLess(self.loss(tuned, text), before)
        info = self.json_of("inspect", trained)
        self.assertEqual([info["config"][key] for key in ("model_type", "num_key_value_heads", "head_dim", "tie_word_embeddings")],
                         ["llama", 2, 32, True])
        self.assertEqual(info["parameters"]["by_part"]["head"], 0)
        self.assertEqual(info["cache_bytes_per_token"]["f32"], 2 * 2 * 2 * 32 * 4)

        packed, gguf, back = (str(self.folder / name) for name in ("packed", "model.gguf", "back"))
        self.assert_done(fathom("convert", trained, gguf, "--to", "q8_0"))
        self.assert_done(fathom("convert", gguf, back, "--to", "f32"))
        self.assert_done(fathom("convert", trained, packed, "--to", "q4_k_m", "--packed"))
        self.assertAlmostEqual(self.loss(gguf, text), before, delta=0.02)
        self.assertAlmostEqual(self.loss(back, text), self.loss(gguf, text), delta=2e-3)
        self.assertAlmostEqual(self.loss(packed, text), before, delta=0.1)
        self.assertIn("of the text", self.assert_done(fathom("generate", "--model", gguf, "--prompt", "line 7 ", "--max-tokens",
                                                             "40", "--temperature", "0")))
        with Server(self, model=gguf) as server:
            body = {"prompt": "line 12 of the ", "max_tokens": 20, "temperature": 0}
            answers = [server.done("/v1/completions", body) for _ in range(2)]
        self.assertTrue(answers[0]["choices"][0]["text"].startswith("text that the model"), answers[0])
        self.assertEqual(answers[0]["choices"][0]["text"], answers[1]["choices"][0]["text"])

    def test_every_cache_and_format_generates(self):
        for model in (LLAMA, QWEN2):
            generate = ["generate", "--tokens", ",".join(map(str, range(3, 90))), "--max-tokens", "20", "--ignore-eos",
                        "--temperature", "0"]
            exact = self.json_of(*generate, "--model", model)["ids"]
            for kv_type in ("f32", "bf16", "f16", "fp8", "int8"):
                ids = self.json_of(*generate, "--model", model, "--kv-type", kv_type, "--threads", "1")["ids"]
                self.assertEqual(len(ids), 20)
                if kv_type == "f32":
                    self.assertEqual(ids, exact)
            for form in ("bf16", "fp8", "q8_0", "q4_0", "q4_k_m"):
                out = str(self.folder / f"{form}-{model[-10:]}")
                self.assert_done(fathom("convert", model, out, "--to", form))
                ids = self.json_of(*generate, "--model", out)["ids"]
                self.assertEqual(len(ids), 20)
                if form == "bf16":  # as the weights are stored
                    self.assertEqual(ids, exact)

    def test_bench_and_chat(self):
        bench = ["bench", "--prompt", "40", "--gen", "4", "--reps", "1", "--json", "--threads", "1", "--batch", "2", "--depth", "10"]
        config = self.write("config.json", json.dumps(CONFIG))
        for model in (["--model", QWEN2], ["--model-config", config, "--weights", "q4_0"]):
            for line in map(json.loads, self.assert_done(fathom(*bench, *model)).splitlines()):
                self.assertGreater(line["avg_ts"], 0)
        chat = json.dumps({"messages": [{"role": "user", "content": "Why?"}]})
        for model in (LLAMA, QWEN2):
            ids = json.loads(self.assert_done(fathom("tokenize", "--model", model, "--chat", stdin=chat)))["ids"]
            self.assertEqual(ids[0], 0)  # the begin token, once
            self.assertNotIn(0, ids[1:])

    def test_what_does_not_apply_is_refused_in_one_line(self):
        for command in (["generate", "--tokens", "1,2"], ["bench"]):
            self.assert_refused(fathom(*command, "--model", LLAMA, "--device", "cuda"), 2, "--device")
        text = self.write("text.txt", "some words to learn from\n" * 50)
        train = ["train", "--init", LLAMA, "--data", text, "--steps", "1", "--out", str(self.folder / "out")]
        self.assert_refused(fathom(*train, "--dsa", "warmup"), 2, "--dsa warmup", "deepseek_v3")
        self.assert_refused(fathom(*train, "--yarn-factor", "4"), 2, "--yarn-factor")

    def test_configs_that_make_no_model(self):
        for key, value in (("num_key_value_heads", 4), ("num_key_value_heads", 0), ("head_dim", 15), ("attention_bias", True),
                           ("use_sliding_window", True), ("mlp_bias", True), ("hidden_act", "gelu"),
                           ("rope_scaling", {"rope_type": "longrope", "factor": 4.0}),
                           ("rope_scaling", {"rope_type": "llama3", "factor": 0.5, "low_freq_factor": 1, "high_freq_factor": 4,
                                             "original_max_position_embeddings": 64})):
            model = self.changed(LLAMA, f"{key}{json.dumps(value)[:24]}", **{key: value})
            self.assert_refused(fathom("generate", "--model", model, "--tokens", "1"), 1, key)
        # Numbers that a model may have, but not this one's weights.
        for key, value in (("head_dim", 8), ("num_key_value_heads", 3), ("tie_word_embeddings", False)):
            model = self.changed(QWEN2, f"{key}{value}", **{key: value})
            self.assert_refused(fathom("generate", "--model", model, "--tokens", "1"), 1, "tensor")


if __name__ == "__main__":
    unittest.main()
