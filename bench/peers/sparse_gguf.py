#!/usr/bin/env python3
"""A GGUF file of a dense model of the family as one with sparse attention (architecture deepseek32), to measure speed with: everything
stays but the queries, which go through a low rank, and each layer gets an indexer. What is new has random weights.

    sparse_gguf.py lite-q4_0.gguf lite-dsa-q4_0.gguf --q-lora-rank 768 --heads 8 --head-dim 128 --topk 2048

Needs numpy and `gguf` (PyPI).
"""
import argparse

import gguf
import numpy as np

TYPES = gguf.GGMLQuantizationType


def q4_0(rng, rows, cols):
    """Random codes of deviation about 0.5 / sqrt(cols)."""
    blocks = rng.integers(0, 256, (rows, cols // 32, 18), dtype=np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(0.11 / np.sqrt(cols)).tobytes(), dtype=np.uint8)
    return blocks.reshape(rows, -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--q-lora-rank", type=int, default=768)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--topk", type=int, default=2048)
    a = parser.parse_args()
    reader = gguf.GGUFReader(a.input)
    writer = gguf.GGUFWriter(a.output, "deepseek32")
    old, new = "deepseek2.", "deepseek32."
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", old + "attention.q_lora_rank"):
            continue
        name = new + field.name[len(old):] if field.name.startswith(old) else field.name
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    for key, value in (("attention.q_lora_rank", a.q_lora_rank), ("attention.indexer.head_count", a.heads),
                       ("attention.indexer.key_length", a.head_dim), ("attention.indexer.top_k", a.topk)):
        writer.add_uint32(new + key, value)
    rng = np.random.default_rng(1)
    for tensor in reader.tensors:
        layer, _, rest = tensor.name[4:].partition(".") if tensor.name.startswith("blk.") else ("", "", "")
        if rest in ("attn_q.weight", "attn_q_a.weight", "attn_q_b.weight", "attn_q_a_norm.weight"):
            continue
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        if rest != "attn_norm.weight":
            continue
        hidden = int(tensor.shape[0])
        q = next(t for t in reader.tensors if t.name in (f"blk.{layer}.attn_q.weight", f"blk.{layer}.attn_q_b.weight"))
        rows = int(q.shape[1])
        at = f"blk.{layer}."

        def add(name, data, kind):
            writer.add_tensor(at + name, data, raw_dtype=kind)

        add("attn_q_a.weight", q4_0(rng, a.q_lora_rank, hidden), TYPES.Q4_0)
        add("attn_q_a_norm.weight", np.ones(a.q_lora_rank, np.float32), TYPES.F32)
        add("attn_q_b.weight", q4_0(rng, rows, a.q_lora_rank), TYPES.Q4_0)
        add("indexer.attn_q_b.weight", q4_0(rng, a.heads * a.head_dim, a.q_lora_rank), TYPES.Q4_0)
        add("indexer.attn_k.weight", q4_0(rng, a.head_dim, hidden), TYPES.Q4_0)
        add("indexer.k_norm.weight", np.ones(a.head_dim, np.float32), TYPES.F32)
        add("indexer.k_norm.bias", np.zeros(a.head_dim, np.float32), TYPES.F32)
        add("indexer.proj.weight", rng.standard_normal((a.heads, hidden)).astype(np.float32) / np.float32(np.sqrt(hidden)), TYPES.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


if __name__ == "__main__":
    main()
