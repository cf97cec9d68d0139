#!/usr/bin/env python3
"""GGUF files that the Python package gguf wrote from a fixture give the very logits and tokens of the fixture's own files.

    gguf_package_test.py FATHOM DATA_DIR

Runs where gguf and numpy are installed (FATHOM_PYTHON names a Python that has them); exits 77, "skipped", elsewhere.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import chosen_python

FATHOM, DATA = sys.argv[1], pathlib.Path(sys.argv[2])

chosen_python.switch()

try:
    import gguf
    import numpy as np
except ImportError as missing:
    chosen_python.skip(missing, "gguf and numpy")

LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "self_attn.indexer.wk.weight": "indexer.attn_k.weight",
    "self_attn.indexer.k_norm.weight": "indexer.k_norm.weight",
    "self_attn.indexer.k_norm.bias": "indexer.k_norm.bias",
    "self_attn.indexer.weights_proj.weight": "indexer.proj.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
}
NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}


def read_safetensors(path):
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + n]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[8 + n + begin : 8 + n + end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": np.float32, "F16": np.float16}[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def add_config(w, c):
    def u32(key, value):
        w.add_uint32(w.arch + "." + key, int(value))

    def f32(key, value):
        w.add_float32(w.arch + "." + key, float(value))

    u32("vocab_size", c["vocab_size"])
    u32("block_count", c["num_hidden_layers"])
    u32("context_length", c["max_position_embeddings"])
    u32("embedding_length", c["hidden_size"])
    u32("feed_forward_length", c["intermediate_size"])
    u32("leading_dense_block_count", c["first_k_dense_replace"])
    u32("attention.head_count", c["num_attention_heads"])
    u32("attention.head_count_kv", 1)
    f32("attention.layer_norm_rms_epsilon", c["rms_norm_eps"])
    if c["q_lora_rank"]:
        u32("attention.q_lora_rank", c["q_lora_rank"])
    u32("attention.kv_lora_rank", c["kv_lora_rank"])
    u32("attention.key_length_mla", c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    u32("attention.value_length_mla", c["v_head_dim"])
    if "index_topk" in c:
        u32("attention.indexer.head_count", c["index_n_heads"])
        u32("attention.indexer.key_length", c["index_head_dim"])
        u32("attention.indexer.top_k", c["index_topk"])
    u32("rope.dimension_count", c["qk_rope_head_dim"])
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    f32("rope.freq_base", rope.get("rope_theta") or c["rope_theta"])
    if "yarn" in (rope.get("rope_type"), rope.get("type")):
        w.add_string(w.arch + ".rope.scaling.type", "yarn")
        f32("rope.scaling.factor", rope["factor"])
        u32("rope.scaling.original_context_length", rope["original_max_position_embeddings"])
        f32("rope.scaling.yarn_beta_fast", rope["beta_fast"])
        f32("rope.scaling.yarn_beta_slow", rope["beta_slow"])
        f32("rope.scaling.yarn_log_multiplier", 0.1 * rope["mscale_all_dim"])
    u32("expert_count", c["n_routed_experts"])
    u32("expert_used_count", c["num_experts_per_tok"])
    u32("expert_shared_count", c["n_shared_experts"])
    u32("expert_feed_forward_length", c["moe_intermediate_size"])
    u32("expert_gating_func", 2 if c["scoring_func"] == "sigmoid" else 1)
    u32("expert_group_count", c.get("n_group") or 1)
    u32("expert_group_used_count", c.get("topk_group") or 1)
    f32("expert_weights_scale", c["routed_scaling_factor"])
    w.add_bool(w.arch + ".expert_weights_norm", c["norm_topk_prob"])


def add_tokenizer(w, folder, c):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    size = c["vocab_size"]
    tokens, types = [f"[PAD{i}]" for i in range(size)], [gguf.TokenType.UNUSED] * size
    for text, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = text, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("deepseek-v3")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    text = lambda token: token if isinstance(token, str) else token["content"]  # noqa: E731
    w.add_bos_token_id(tokens.index(text(settings["bos_token"])))
    w.add_eos_token_id(tokens.index(text(settings["eos_token"])))
    w.add_chat_template(settings["chat_template"])


def write_gguf(folder, path, joined):
    """`joined`: kv_b_proj in one piece, as files had it at first."""
    c = json.loads((folder / "config.json").read_text())
    w = gguf.GGUFWriter(path, "deepseek32" if "index_topk" in c else "deepseek2")
    w.add_name("fixture")
    add_config(w, c)
    add_tokenizer(w, folder, c)
    heads, nope, v, rank = (c[k] for k in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank"))
    if joined:
        for gone, name, value in (("key", "key_length", nope + c["qk_rope_head_dim"]), ("value", "value_length", v)):
            del w.kv_data[0][f"{w.arch}.attention.{gone}_length_mla"]
            w.add_uint32(f"{w.arch}.attention.{name}", value)
    stacks = {}
    for name, values in read_safetensors(folder / "model.safetensors").items():
        values = np.ascontiguousarray(values, np.float32)
        if name in NAMES:
            w.add_tensor(NAMES[name], values)
            continue
        layer, rest = name.removeprefix("model.layers.").split(".", 1)
        words = rest.split(".")
        if int(layer) >= c["num_hidden_layers"]:
            continue  # converters leave MTP out
        if rest in LAYER_NAMES:
            w.add_tensor(f"blk.{layer}.{LAYER_NAMES[rest]}", values)
        elif rest == "self_attn.kv_b_proj.weight" and joined:
            w.add_tensor(f"blk.{layer}.attn_kv_b.weight", values)
        elif rest == "self_attn.kv_b_proj.weight":
            by_head = values.reshape(heads, nope + v, rank)
            w.add_tensor(f"blk.{layer}.attn_k_b.weight", np.ascontiguousarray(by_head[:, :nope].transpose(0, 2, 1)))
            w.add_tensor(f"blk.{layer}.attn_v_b.weight", np.ascontiguousarray(by_head[:, nope:]))
        elif words[1] == "experts":
            stack = f"blk.{layer}.ffn_{words[3].removesuffix('_proj')}_exps.weight"
            stacks.setdefault(stack, {})[int(words[2])] = values
        else:
            shared = "_shexp" if words[1] == "shared_experts" else ""
            w.add_tensor(f"blk.{layer}.ffn_{words[-2].removesuffix('_proj')}{shared}.weight", values)
    for stack, experts in stacks.items():
        w.add_tensor(stack, np.stack([experts[e] for e in range(len(experts))]))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def fathom(*arguments, **how):
    return subprocess.run([FATHOM, *map(str, arguments)], check=True, stdout=subprocess.PIPE, **how).stdout


def check(name, joined, scratch):
    model = scratch / "model.gguf"
    write_gguf(DATA / name, model, joined)
    (scratch / "tokens.json").write_text(json.dumps([[0, 5, 77, 300, 12, 9, 450, 2, 31, 8], [0, 3, 99]]))
    scores, ids = [], []
    for source in (DATA / name, model):
        fathom("score", "--quiet", "--all", "--model", source, "--tokens", scratch / "tokens.json", "--out", scratch / "out")
        scores.append((scratch / "out").read_bytes())
        ids.append(fathom("tokenize", "--model", source, input="It's <think> 12345\n the river ｜ 中文".encode()))
    assert scores[0] == scores[1], f"{name}: the logits differ"
    assert ids[0] == ids[1], f"{name}: the tokens differ"
    print(f"{name}{', kv_b in one' if joined else ''}: the same bits")


with tempfile.TemporaryDirectory() as folder:
    for fixture in ("v3_tiny", "v3_norope_scaling", "v3_mtp", "v2_lite_like", "moonlight_like", "v32_dsa"):
        check(fixture, False, pathlib.Path(folder))
    check("v3_tiny", True, pathlib.Path(folder))
