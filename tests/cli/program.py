"""What the tests of the real program share: the program, two models, and what a refusal looks like."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = sys.argv.pop(1)
ORACLE = pathlib.Path(__file__).resolve().parent.parent / "data" / "oracle"
TINY = str(ORACLE / "v3_tiny")
MTP = str(ORACLE / "v3_mtp")  # with a trained MTP module
# Of a model that tests make, with the tokenizer of data/text/tiny.
CHAT_CONFIG = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 617, "hidden_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
          "v_head_dim": 16, "intermediate_size": 128, "moe_intermediate_size": 64, "n_routed_experts": 4, "n_shared_experts": 1,
          "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid",
          "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 1, "hidden_act": "silu",
          "attention_bias": False, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.05,
          "tie_word_embeddings": False}


def fathom(*arguments, stdin="", **options):
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run([PROGRAM, *arguments], input=stdin, stderr=subprocess.PIPE, encoding="utf-8", timeout=120, **options)


def chat(question, answer, thoughts=None, **more):
    """A line of chat data."""
    message = {"role": "assistant", "content": answer}
    if thoughts is not None:
        message["reasoning_content"] = thoughts
    return {"messages": [{"role": "user", "content": question}, message], **more}


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def assert_refused(self, result, code, *words):
        """One line on stderr that holds `words`, nothing on stdout."""
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("fathom: "), result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)
        self.assertEqual(result.stdout or "", "")

    def assert_done(self, result):
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def generate(self, *arguments, **options):
        return fathom("generate", "--model", TINY, *arguments, **options)

    def generate_json(self, *arguments, **options):
        return json.loads(self.assert_done(self.generate("--json", *arguments, **options)))
