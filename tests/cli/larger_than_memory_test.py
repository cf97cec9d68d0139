"""A model larger than the memory that it may use: fathom in a cgroup whose limit is 60 % of the weights.
usage: larger_than_memory_test.py PROGRAM; ends with 77 (skipped) where no cgroup can be made."""
import array
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

PROGRAM = sys.argv[1]
SKIPPED = 77
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 512, "hidden_size": 512,
    "num_hidden_layers": 9, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 64,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "intermediate_size": 512, "n_routed_experts": 48,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "moe_intermediate_size": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "norm_topk_prob": True, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 0, "hidden_act": "silu",
    "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None,
    "rope_interleave": True, "max_position_embeddings": 1024, "initializer_range": 0.02, "bos_token_id": 0,
    "eos_token_id": 1, "attention_bias": False, "torch_dtype": "bfloat16", "use_cache": True,
}  # fmt: skip


def weight_shapes(c):
    """name -> shape of every tensor."""
    hidden, heads, inter = c["hidden_size"], c["num_attention_heads"], c["moe_intermediate_size"]
    nope, rope, v, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]

    def mlp(prefix, width):
        return {f"{prefix}.gate_proj.weight": [width, hidden], f"{prefix}.up_proj.weight": [width, hidden], f"{prefix}.down_proj.weight": [hidden, width]}

    shapes = {"model.embed_tokens.weight": [c["vocab_size"], hidden], "model.norm.weight": [hidden], "lm_head.weight": [c["vocab_size"], hidden]}
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        shapes |= {f"{p}input_layernorm.weight": [hidden], f"{p}post_attention_layernorm.weight": [hidden]}
        shapes |= {f"{p}self_attn.q_proj.weight": [heads * (nope + rope), hidden], f"{p}self_attn.kv_a_proj_with_mqa.weight": [rank + rope, hidden]}
        shapes |= {f"{p}self_attn.kv_a_layernorm.weight": [rank], f"{p}self_attn.kv_b_proj.weight": [heads * (nope + v), rank]}
        shapes[f"{p}self_attn.o_proj.weight"] = [hidden, heads * v]
        if layer < c["first_k_dense_replace"]:
            shapes |= mlp(f"{p}mlp", c["intermediate_size"])
            continue
        shapes |= {f"{p}mlp.gate.weight": [c["n_routed_experts"], hidden], f"{p}mlp.gate.e_score_correction_bias": [c["n_routed_experts"]]}
        for expert in range(c["n_routed_experts"]):
            shapes |= mlp(f"{p}mlp.experts.{expert}", inter)
        shapes |= mlp(f"{p}mlp.shared_experts", inter)
    return shapes


def write_model(folder):
    """Random weights in bf16, from one table of random numbers that every tensor begins elsewhere in."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng = random.Random(1)
    numbers = array.array("f", (rng.gauss(0, 0.02) for _ in range(1 << 16)))
    table = b"".join(numbers.tobytes()[i + 2 : i + 4] for i in range(0, 4 * len(numbers), 4)) * 8
    header, at = {}, 0
    for name, shape in weight_shapes(CONFIG).items():
        n = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if name.endswith("norm.weight"):
                file.write(b"\x80\x3f" * ((end - begin) // 2))  # ones
                continue
            for done in range(0, end - begin, 1 << 19):
                offset = 2 * rng.randrange(1 << 16)
                file.write(table[offset : offset + min(1 << 19, end - begin - done)])


class Cgroup:
    """A group of its own for memory, of version 1 or 2. Ends the test where this process may not make one."""

    def __enter__(self):
        failures = []
        for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
            path = pathlib.Path(root) / f"fathom-test-{os.getpid()}"
            try:
                path.mkdir()
            except OSError as e:
                failures.append(str(e))
                continue
            if (path / limit).exists():
                self.path, self.limit = path, path / limit
                return self
            path.rmdir()
            failures.append(f"{path} has no {limit}")
        print("SKIPPED: no memory cgroup can be made here:", "; ".join(failures))
        sys.exit(SKIPPED)

    def __exit__(self, *_):
        self.path.rmdir()

    def run(self, limit_bytes, *arguments):
        self.limit.write_text(str(limit_bytes))
        procs = str(self.path / "cgroup.procs")
        enter = 'echo $$ > "$0" && exec "$@"'
        return subprocess.run(["sh", "-c", enter, procs, PROGRAM, *arguments], capture_output=True, encoding="utf-8", timeout=600)


def drop_from_memory(path):
    """Pages that are cached already would not count for the group."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check(condition, *what):
    if not condition:
        print("FAILED:", *what)
        sys.exit(1)


def generate(cgroup, limit, model, *options):
    drop_from_memory(model / "model.safetensors")
    arguments = ["generate", "--model", str(model), "--tokens", "3,7,11,200", "--max-tokens", "24", "--ignore-eos", "--threads", "1", "--json"]
    result = cgroup.run(limit, *arguments, *options)
    return result, json.loads(result.stdout) if result.returncode == 0 else None


def free_swap_bytes():
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("SwapFree:"))


def main():
    with tempfile.TemporaryDirectory() as name, Cgroup() as cgroup:
        folder = pathlib.Path(name)
        source, model = folder / "bf16", folder / "q8_0"
        source.mkdir()
        write_model(source)
        subprocess.run([PROGRAM, "convert", str(source), str(model), "--to", "q8_0", "--quiet"], check=True)
        weights = json.loads(subprocess.run([PROGRAM, "inspect", str(model), "--json"], capture_output=True, check=True).stdout)["memory"]["weight_bytes"]
        plain = json.loads(subprocess.run([PROGRAM, "generate", "--model", str(model), "--tokens", "3,7,11,200", "--max-tokens", "24", "--ignore-eos", "--json"], capture_output=True, check=True).stdout)
        check("expert_hit_rate" not in plain, "nothing is counted where the model fits:", plain)

        limit = weights * 6 // 10
        result, found = generate(cgroup, limit, model)
        check(found is not None, result)
        print(f"{limit / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights: hit rate {found['expert_hit_rate']:.2f}, {found['tokens_per_s']:.1f} tokens/s")
        check(found["ids"] == plain["ids"], found["ids"], plain["ids"])
        check(0 < found["expert_hit_rate"] <= 1, found)
        for words in ("more than the", "experts are read from disk", "were in memory"):
            check(words in result.stderr, words, result.stderr)

        result = cgroup.run(limit // 2, "generate", "--model", str(source), "--tokens", "3")
        if free_swap_bytes() == 0:
            check(result.returncode == 1 and result.stderr.count("\n") == 1 and "packed directory" in result.stderr, result)

        result, found = generate(cgroup, limit, model, "--read-ahead", "off")
        check(found is not None and found["ids"] == plain["ids"] and "expert_hit_rate" not in found, result)

        for option in ("--mlock", "--hugepages"):
            result, _ = generate(cgroup, limit, model, option)
            check(result.returncode == 1 and result.stderr.count("\n") == 1 and f"{option}: the weights are" in result.stderr, result)
        report = cgroup.run(limit, "inspect", str(model), "--json")
        memory = json.loads(report.stdout)["memory"]
        check(not memory["fits"] and memory["runs_from_disk"] and memory["context_that_fits"]["f32"] == 0, memory)
        check(memory["available_bytes"] <= limit, memory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
