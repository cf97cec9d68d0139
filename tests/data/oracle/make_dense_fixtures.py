#!/usr/bin/env python3
"""Makes the fixtures llama_like and qwen2_like: tiny random models of the dense families, with the answers that Hugging
Face transformers gives for them in float32 on a CPU.

    make_dense_fixtures.py OUT CHAT    # needs torch, transformers, tokenizers; CHAT: a folder with the chat templates
                                       # deepseek-r1-distill-{llama,qwen}.jinja

The files are those of the other fixtures: the model (bf16, one file), `expected.safetensors` (input_ids, seq_offsets,
logits, hidden.{i}, attn_out.{i}, mlp_out.{i}, final_hidden, greedy_ids, with prompts one behind the other),
`grads.safetensors` (of the mean loss over all predictions) and `expected.json` (loss, float32_noise and tolerance =
ten times that, at least 1e-6, by quantity). A tied head has no gradient of its own. `tokenizer_expected.json`: texts and
the ids that the tokenizers library gives for them.
"""
import json
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(1)
NEW, VOCAB = 32, 352
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
ADDED = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]
DIGITS = {"llama": r"\p{N}{1,3}", "qwen2": r"\p{N}"}
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
COMMON = {"bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-5,
          "max_position_embeddings": 131072, "vocab_size": VOCAB, "torch_dtype": "bfloat16", "use_cache": True,
          "attention_dropout": 0.0}
FIXTURES = {
    "llama_like": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48, "head_dim": 16,
                   "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
                   "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "tie_word_embeddings": False,
                   "rope_theta": 10000.0,
                   "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                    "original_max_position_embeddings": 64, "rope_type": "llama3"}},
    "qwen2_like": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 48,
                   "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1,
                   "max_window_layers": 2, "sliding_window": 4096, "use_sliding_window": False,
                   "tie_word_embeddings": True, "rope_theta": 1000000.0},
}


def dump(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def corpus(rng, n):
    nouns = "river lantern garden engine letter window mountain signal harbor teacher".split()
    verbs = "carries follows measures remembers builds crosses opens".split()
    out = []
    for _ in range(n):
        a, b, v, k = rng.choice(nouns), rng.choice(nouns), rng.choice(verbs), rng.random()
        p, q = rng.randint(1, 5000), rng.randint(1, 5000)
        out.append(f"The {a} {v} the {b}, it's number {p}." if k < .6 else f"{p} + {q} = {p + q}" if k < .8 else
                   rng.choice(["河流很长。", "“Ein schöner Garten!” — ひかりの庭", "naïve café…"]))
    return "\n".join(out)


def write_tokenizer(folder, kind, chat_template):
    tok = Tokenizer(models.BPE(ignore_merges=kind == "llama"))
    if kind == "qwen2":
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT.replace("DIGITS", DIGITS[kind])), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in (BOS, EOS, PAD)]
    tok.train_from_iterator(corpus(random.Random(1), 600).split("\n"), trainers.BpeTrainer(
        vocab_size=VOCAB - 8, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    tok.save(str(folder / "tokenizer.json"))
    dump(folder / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "bos_token": BOS, "eos_token": EOS, "pad_token": EOS,
        "clean_up_tokenization_spaces": False, "model_max_length": 16384, "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": chat_template})
    return tok


# What tends to go wrong: case, contractions, digits, line ends, characters in several normalization forms.
TEXTS = ["", " ", "Hello world", "  two  spaces   three", "tabs\tand\nnew\r\nlines\n\n\n  end ", "1234567890 12 3 4567",
         "don't I'LL we've SHE'S", "foo_bar(baz)->qux[0]", "日本語テスト、ひらがな", "河流很长12个人abc", "Привет мир", "naïve café ﬁ Å",
         "nai\u0308ve cafe\u0301 A\u030a \u212b", "\u1100\u1161\u11a8 \uac01", "q\u0323\u0307 q\u0307\u0323", "\u0958 \u2adc \u0340",
         "👩‍👩‍👧‍👦 🇫🇷 🙂", "\u00a0nbsp\u3000wide", "x\u200b\u200dzero", f"{BOS}x{EOS}", "<｜User｜>hi<｜Assistant｜><think>\nok\n</think>",
         "e<think>\u0301", "<think>e\u0301</think>", "٣٤٥٦ ⅷ ½ ²", "\x00\x01\x7f control", "...!!!???\n\n---", "x=3.14159e-10;"]


def tokenizer_cases(tok):
    return [{"text": t, "ids": tok.encode(t, add_special_tokens=False).ids} for t in TEXTS]


class Float64(TorchFunctionMode):
    """Runs transformers' code in double precision, its explicit float32 casts included."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        swap = lambda x: torch.float64 if x is torch.float32 else x
        return func(*[swap(a) for a in args], **{k: swap(v) for k, v in (kwargs or {}).items()})


def build(config, dtype=torch.float32):
    torch.set_default_dtype(dtype)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()
    torch.set_default_dtype(torch.float32)
    return model


def init_weights(model, seed):
    """Uneven norms, biases that are not zero, matrices scaled by what they read; numbers that bf16 has."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = torch.randn(p.shape, generator=g)
            if name.endswith("bias"):
                x = 0.3 * x
            elif p.dim() == 1:
                x = (1 + 0.25 * x).clamp(min=0.3)
            elif "embed_tokens" in name:
                x = x if not model.config.tie_word_embeddings else 0.35 * x
            else:
                x = (2.5 if "lm_head" in name else 1.0) * x / p.shape[-1] ** 0.5
            p.copy_(x.bfloat16().float())


def run(model, seqs):
    rec, hooks = {}, []
    put = lambda k, t: rec.setdefault(k, []).append(t.detach().clone())
    for i, layer in enumerate(model.model.layers):
        first = lambda o: o[0][0] if isinstance(o, tuple) else o[0]
        hooks += [m.register_forward_hook(lambda m, a, o, k=k: put(k, first(o))) for k, m in (
            (f"hidden.{i + 1}", layer), (f"attn_out.{i}", layer.self_attn), (f"mlp_out.{i}", layer.mlp))]
    loss, n = 0, 0
    for ids in seqs:
        ids = torch.tensor([ids])
        out = model(input_ids=ids, use_cache=False, output_hidden_states=True)
        put("hidden.0", out.hidden_states[0][0])
        put("final_hidden", out.hidden_states[-1][0])
        put("logits", out.logits[0])
        loss, n = loss + F.cross_entropy(out.logits[0, :-1], ids[0, 1:], reduction="sum"), n + ids.shape[1] - 1
    for h in hooks:
        h.remove()
    return {k: torch.cat(v) for k, v in rec.items()}, loss / n


def grads_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.detach().clone().contiguous() for n, p in model.named_parameters()}


def greedy(model, seqs):
    ids, gap = [], 9.9
    for s in seqs:
        s = list(s)
        for _ in range(NEW):
            top = model(input_ids=torch.tensor([s]), use_cache=False).logits[0, -1].topk(2)
            gap = min(gap, (top[0][0] - top[0][1]).item())
            s.append(top[1][0].item())
        ids.append(s[-NEW:])
    return torch.tensor(ids), gap


def family(name):
    return ".".join(x for x in name.split(".") if not x.isdigit())


def make(out, name, raw, chat_template):
    folder, kind = out / name, raw["model_type"]
    folder.mkdir(parents=True, exist_ok=True)
    dump(folder / "config.json", {**COMMON, **raw})
    dump(folder / "generation_config.json", {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1})
    tok = write_tokenizer(folder, kind, chat_template)
    dump(folder / "tokenizer_expected.json", tokenizer_cases(tok))
    config = AutoConfig.from_pretrained(folder)
    model = build(config)
    for seed in range(1, 1000):  # the first whose greedy choices are clear-cut
        ids = tok.encode(corpus(random.Random(seed), 30), add_special_tokens=False).ids
        seqs = [[0] + ids[:8], [0] + ids[8:38]]
        init_weights(model, seed)
        with torch.no_grad():
            greedy_ids, gap = greedy(model, seqs)
        if gap > 2e-3 and not (greedy_ids == 1).any() and min(len(set(g)) for g in greedy_ids.tolist()) >= 8:
            break
    rec, loss = run(model, seqs)
    grads = grads_of(model, loss)
    with Float64():
        model64 = build(config, torch.float64)
        model64.load_state_dict({n: t.double() for n, t in model.state_dict().items()})
        rec64, loss64 = run(model64, seqs)
        grads64 = grads_of(model64, loss64)
    assert rec64["logits"].dtype == torch.float64
    noise = {"loss": abs(loss.item() - loss64.item())}
    for k in rec:
        noise[family(k)] = max(noise.get(family(k), 0), (rec[k].double() - rec64[k]).abs().max().item())
    off = {k: (grads[k].double() - grads64[k]).abs().max().item() for k in grads}
    noise["grads_relative"] = max(off[k] / grads64[k].abs().max().item() for k in grads)
    noise["grads_abs"] = max(off.values())
    offsets = torch.tensor([0, len(seqs[0]), len(seqs[0]) + len(seqs[1])], dtype=torch.int32)
    save_file({"input_ids": torch.tensor(sum(seqs, [])), "seq_offsets": offsets, "greedy_ids": greedy_ids, **rec},
              folder / "expected.safetensors")
    save_file({n: p.detach().bfloat16() for n, p in model.named_parameters()}, folder / "model.safetensors")
    save_file(grads, folder / "grads.safetensors")
    dump(folder / "expected.json", {
        "name": name, "model_type": kind, "seed": seed, "greedy_top2_gap_min": gap, "loss": loss.item(),
        "float32_noise": noise, "tolerance": {k: max(10 * v, 1e-6) for k, v in noise.items()}})


if __name__ == "__main__":
    for fixture, config in FIXTURES.items():
        family_name = "qwen" if config["model_type"] == "qwen2" else "llama"
        make(Path(sys.argv[1]), fixture, config,
             (Path(sys.argv[2]) / f"deepseek-r1-distill-{family_name}.jinja").read_text(encoding="utf-8"))
