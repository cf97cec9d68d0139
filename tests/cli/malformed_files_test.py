"""Broken and hostile files given to the real program: each ends in one clear line, quickly, in little memory, and leaves
nothing behind. usage: malformed_files_test.py PROGRAM [--sanitized]   (a sanitizer's build may take memory and time)"""
import atexit
import copy
import functools
import gzip
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import typing
import unittest

sys.dont_write_bytecode = True
from file_edits import (  # noqa: E402
    BIAS, EMBED, EXPERT, HEAD, NORM, PATTERNS, Q_A, REMOVED, SHARDS, WEIGHTS, both, config, dangling, entry, fifo, header, in_json,
    index, join, loop, nothing, number, raw, removed, renamed, replace, reshaped, retyped, sparse, special, tensors, text,
    tokenizer, tokenizer_config, unix_socket, weight_map, with_tensor, without, zeros_without_end)

PROGRAM = sys.argv.pop(1)
SANITIZED = "--sanitized" in sys.argv
if SANITIZED:
    sys.argv.remove("--sanitized")
MAX_CPU_S = 20 if SANITIZED else 2
MAX_RSS_KIB = None if SANITIZED else 200 << 10
HANGS_AFTER_S = 120

ORACLE = pathlib.Path(__file__).resolve().parent.parent / "data" / "oracle"
TINY, SHARDED, FP8, MTP = ORACLE / "v3_tiny", ORACLE / "v3_tiny" / "sharded", ORACLE / "v3_fp8", ORACLE / "v3_mtp"

# @model, @folder and @out become the broken model, the folder that holds it, and an empty folder for output.
INSPECT = ["inspect", "@model"]
GENERATE = ["generate", "--model", "@model", "--tokens", "0,5", "--max-tokens", "2"]
PROMPT = ["generate", "--model", "@model", "--prompt", "The hollow", "--max-tokens", "2"]
CHAT = ["chat", "--model", "@model", "--max-tokens", "2"]
TOKENIZE = ["tokenize", "--model", "@model"]
SCORE = ["score", "--model", "@model", "--tokens", "@folder/tokens.json", "--out", "@out/scores.safetensors",
         "--grads", "@out/grads.safetensors"]
SCORE_TEXT = ["score", "--model", "@model", "--text", "@folder/text.txt", "--out", "@out/scores.safetensors"]
TRAIN = ["train", "--init", "@model", "--data", "@folder/text.txt", "--out", "@out/run", "--steps", "1", "--seq-len", "8",
         "--batch-size", "1"]
TRAIN_NEW = ["train", "--model-config", "@model/config.json", "--tokenizer", "bytes", "--data", "@folder/text.txt",
             "--out", "@out/run", "--steps", "1", "--seq-len", "8", "--batch-size", "1"]
CONVERT = ["convert", "@model", "@out/packed", "--to", "q4_0"]
BENCH = ["bench", "--model", "@model", "--prompt", "2", "--gen", "2", "--reps", "1"]
CONFIGURED = [*GENERATE, "--config", "@folder/options.toml"]


class Case(typing.NamedTuple):
    base: pathlib.Path
    edit: typing.Callable  # of the folder: model/ and what the commands read
    command: list
    expected: str
    code: int = 1
    stdin: bytes = b""


# -- The corpus ----------------------------------------------------------------------------------------------------


def config_cases():
    def at(key, value, expected, base=TINY, command=INSPECT):
        return Case(base, config((key, value)), command, expected)

    for kind in ("mistral", "deepseek_v4", "glm4_moe", "kimi_k2", "qwen3_moe", "deepseek_v3\n"):
        yield at("model_type", kind, f"config.json: model_type {kind.strip()}")
    yield at("model_type", "a\x1b[31m\nb", "model_type a\\x1b[31m\\x0ab is not supported")
    yield at("model_type", "deepseek_v32", "index_n_heads is missing")
    yield at("model_type", 3, "model_type is not a string", command=GENERATE)
    yield at("model_type", REMOVED, "model_type is missing", command=SCORE)
    yield at("tie_word_embeddings", True, "tie_word_embeddings is true; only false is supported", command=GENERATE)
    yield at("attention_bias", True, "attention_bias is true")
    yield at("hidden_act", "gelu", 'hidden_act is "gelu"', command=TRAIN)
    yield at("num_key_value_heads", 1, "num_key_value_heads is 1, must be num_attention_heads (4)")
    yield at("rope_scaling", {"type": "linear", "factor": 2}, 'rope_scaling.type is "linear"')
    yield at("rope_scaling", "yarn", "rope_scaling is not a JSON object")
    for method in ("gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4"):
        yield at("quantization_config", {"quant_method": method}, f"quant_method {method} is not supported", FP8)
    yield at("quantization_config", "fp8", "quantization_config is not a JSON object", FP8)
    yield at("quantization_config/fmt", "e5m2", 'quantization_config.fmt is "e5m2"', FP8)
    yield at("quantization_config/activation_scheme", "static", 'activation_scheme is "static"', FP8)
    yield at("quantization_config/weight_block_size", [128], "weight_block_size must be two numbers", FP8)
    yield at("quantization_config/weight_block_size", [0, 128], "weight_block_size must be two numbers", FP8)
    yield at("quantization_config/weight_block_size", [64, 64], "must be [2, 4] for blocks of 64 x 64", FP8)
    yield at("quantization_config", None, "but config.json has no quantization_config", FP8, GENERATE)
    yield at("num_nextn_predict_layers", 17, "num_nextn_predict_layers is 17", MTP)
    yield at("num_nextn_predict_layers", 2, "missing tensors: model.layers.", MTP)
    yield at("num_nextn_predict_layers", -1, "num_nextn_predict_layers is -1", MTP, GENERATE)
    yield at("bos_token_id", 640, "bos_token_id 640 is no id of the vocabulary (vocab_size 640)")
    yield at("eos_token_id", [1, "x"], "eos_token_id is not a whole number")
    # Sizes that the files do not have.
    yield at("hidden_size", 65, "has shape [640, 64], the config asks for [640, 65]", command=GENERATE)
    yield at("vocab_size", 641, "has shape [640, 64], the config asks for [641, 64]", command=SCORE)
    yield at("vocab_size", 639, "has shape [640, 64], the config asks for [639, 64]", command=TRAIN)
    yield at("num_hidden_layers", 4, "missing tensors: model.layers.3.input_layernorm.weight", command=GENERATE)
    yield at("num_hidden_layers", 0, "num_hidden_layers is 0, must be between 1 and")
    yield at("first_k_dense_replace", 0, "missing tensors: model.layers.0.mlp.gate.weight")
    yield at("q_lora_rank", None, "missing tensors: model.layers.0.self_attn.q_proj.weight")
    # Models too large for these files, and for any machine.
    yield at("num_hidden_layers", 10000, "too few for the config's 10000 layers", command=GENERATE)
    yield at("n_routed_experts", 65536, "too few for the config's 3 layers with 65536 experts", command=GENERATE)
    yield at("hidden_size", 1 << 24, "the config asks for [640, 16777216]", command=GENERATE)
    yield at("hidden_size", 1 << 62, "hidden_size is out of range")
    yield at("vocab_size", 1 << 24, "the config asks for [16777216, 64]", command=SCORE)
    yield at("intermediate_size", 1 << 24, "the config asks for [16777216, 64]", command=GENERATE)
    yield Case(TINY, config(("hidden_size", 1 << 24), ("intermediate_size", 1 << 24)), GENERATE, "the sizes make a model")
    whole_family = {"hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
                    "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 2048, "n_group": 8,
                    "kv_lora_rank": 512, "q_lora_rank": 1536, "vocab_size": 129280}
    yield Case(TINY, config(*whole_family.items()), GENERATE, "too few for the config's 61 layers with 2048 experts")
    yield Case(TINY, config(*whole_family.items()), TRAIN_NEW, "config.json: training its 5.4T parameters takes")


def json_file_cases():
    """What is no JSON, whichever file it stands in."""
    whole = {
        "config.json": GENERATE,
        "generation_config.json": INSPECT,
        "tokenizer.json": TOKENIZE,
        "tokenizer_config.json": PROMPT,
    }
    for name, command in whole.items():
        file = "model/" + name
        yield Case(TINY, raw(file, b""), command, f"{name}: is empty, expected JSON")
        yield Case(TINY, raw(file, lambda data: data[:-3]), command, f"{name}: not valid JSON, at line ")
        yield Case(TINY, raw(file, bytes(200)), command, f"{name}: not valid JSON, at column 1")
        yield Case(TINY, raw(file, b"[1, 2]"), command, f"{name}: ")
        yield Case(TINY, raw(file, b'{"a": "\xff"}'), command, f"{name}: not valid JSON")
        yield Case(TINY, raw(file, b'{"a": 1,\n"b": 2,\n"a": 3}'), command, f'{name}: the key "a" stands twice')
        yield Case(TINY, raw(file, b"[" * 100_000 + b"]" * 100_000), command, f"{name}: JSON nested deeper than 64")
        yield Case(TINY, raw(file, b"version https://git-lfs.github.com/spec/v1\n"), command, f"{name}: not valid JSON")
        yield Case(TINY, special(file, sparse(1 << 40)), command, f"{name}: has 1099511627776 bytes, more than the")
        yield Case(TINY, special(file, pathlib.Path.mkdir), command, f"{name}: is not a regular file")
        yield Case(TINY, special(file, fifo), command, f"{name}: is not a regular file")
        yield Case(TINY, special(file, zeros_without_end), command, f"{name}: is not a regular file")
        yield Case(TINY, special(file, unix_socket), command, f"{name}: cannot open: No such device or address")
        yield Case(TINY, special(file, loop), command, f"{name}: cannot ")
        yield Case(TINY, special(file, dangling), command, f"{name}: ")
    yield Case(TINY, removed("model/config.json"), GENERATE, "config.json: cannot open: No such file")
    yield Case(TINY, in_json("model/generation_config.json", ("bos_token_id", 640)), GENERATE, "bos_token_id 640 is no id")
    yield Case(TINY, in_json("model/generation_config.json", ("eos_token_id", "x")), SCORE, "eos_token_id is not a whole")
    yield Case(TINY, in_json("model/generation_config.json", ("eos_token_id", [1, -1])), TRAIN, "eos_token_id -1 is no id")


def safetensors_cases():
    def of(edit, expected, command=INSPECT, base=TINY):
        return Case(base, edit, command, expected)

    length = lambda n: raw(WEIGHTS, lambda data: struct.pack("<Q", n) + data[8:])  # noqa: E731
    yield of(raw(WEIGHTS, b""), "model.safetensors: has 0 bytes, too few for a safetensors file", GENERATE)
    yield of(raw(WEIGHTS, b"\1\2\3\4\5\6\7"), "has 7 bytes, too few")
    yield of(raw(WEIGHTS, b"PK\3\4" + bytes(5000)), "header of 67324752 bytes reaches beyond the end of the file (5004 bytes)", SCORE)
    yield of(raw(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), "not a safetensors file: header of")
    yield of(length(0), "the header does not begin with {")
    yield of(length(100_000_000), "header of 100000000 bytes reaches beyond the end of the file", GENERATE)
    yield of(length(100_000_001), "header of 100000001 bytes is above the limit of 100000000")
    yield of(length((1 << 64) - 1), "header of 18446744073709551615 bytes is above the limit")
    yield of(length((1 << 63) - 8), "is above the limit")
    yield of(length(15_343), "1 bytes belong to no tensor")  # it ends in spaces
    yield of(length(15_345), "not valid JSON")
    yield of(special(WEIGHTS, sparse(1 << 40)), "the header does not begin with {", GENERATE)
    yield of(raw(WEIGHTS, lambda data: data[:-1]), "it was cut off or is damaged", GENERATE)
    yield of(raw(WEIGHTS, lambda data: data[:9000]), "header of 15344 bytes reaches beyond the end", SCORE)
    yield of(raw(WEIGHTS, lambda data: data + b"\0"), "1 bytes belong to no tensor")
    yield of(header(b"[]"), "the header does not begin with {")
    yield of(header(b"{}"), "bytes belong to no tensor")
    yield of(raw(WEIGHTS, join(b"{}", b"")), "holds 0 tensors, too few for the config's 3 layers")
    yield of(header(b"{" + b'"a":{' * 100 + b"}" * 101), "header: JSON nested deeper than 64")
    yield of(header(b'{"a": 1, "a": 2}'), 'the key "a" stands twice')
    yield of(header(b'{"a\xff": 1}'), "header: not valid JSON")
    yield of(header(b'{"a": {"dtype": "F32"' + bytes(100)), "header: not valid JSON")
    yield of(header(lambda h: h.update({HEAD: 7})), f"tensor {HEAD}: its header entry is not an object")
    yield of(header(lambda h: h.update(__metadata__=[])), "__metadata__ is not an object")
    yield of(header(lambda h: h.update(__metadata__={"format": 1})), '__metadata__: "format" is not a string')
    yield of(entry("dtype", "F7"), f"tensor {HEAD}: unknown dtype F7")
    yield of(entry("dtype", 7), "dtype is not a string")
    yield of(entry("dtype", REMOVED), "dtype is missing")
    yield of(entry("shape", REMOVED), "shape is missing")
    yield of(entry("shape", "640x64"), "shape is not a list")
    yield of(entry("shape", [640, 64.0]), "shape holds something other than a whole number")
    yield of(entry("shape", [-640, -64]), "shape holds a number out of range")
    yield of(entry("shape", [1 << 62, 1 << 62]), "overflows")
    yield of(entry("shape", [640, 65]), "shape [640, 65] of BF16 takes 83200 bytes, but data_offsets")
    yield of(entry("data_offsets", REMOVED), "data_offsets is missing")
    yield of(entry("data_offsets", [0]), "data_offsets is not a list of two numbers")
    yield of(entry("data_offsets", [-1, 4]), "data_offsets holds something other than whole numbers from 0")
    yield of(entry("data_offsets", [100, 20]), "data_offsets end before they begin: [100, 20]")
    yield of(entry("data_offsets", [0, 81920]), "overlapping")
    yield of(entry("data_offsets", [1 << 40, (1 << 40) + 81920]), "leaving a hole behind")
    yield of(entry("stride", [1]), 'unknown key "stride" in its header entry')
    yield of(header(lambda h: h.update({"ghost": {"dtype": "F32", "shape": [0], "data_offsets": [7, 7]}})), "ghost")
    # Whole files of another model.
    yield of(retyped(Q_A, "I8", 1), f"tensor {Q_A} is stored as I8; weights may be F32, BF16, F16 and F8_E4M3", GENERATE)
    yield of(retyped(Q_A, "F64", 8), "is stored as F64; weights may be", SCORE)
    yield of(retyped(Q_A, "BOOL", 1), "is stored as BOOL; weights may be")
    yield of(retyped(NORM, "I64", 8), "is stored as I64; weights may be", TRAIN)
    yield of(retyped(Q_A, "F8_E5M2", 1), "is stored as F8_E5M2; weights may be")
    yield of(retyped(Q_A, "F8_E4M3", 1), "is stored as F8_E4M3 but config.json has no quantization_config", GENERATE)
    yield of(reshaped(EMBED, [64, 640]), "has shape [64, 640], the config asks for [640, 64]", GENERATE)
    yield of(reshaped(EMBED, [640 * 64]), "has shape [40960], the config asks for [640, 64]")
    yield of(reshaped(NORM, [64, 1]), "has shape [64, 1], the config asks for [64]")
    yield of(reshaped(NORM, [1] * 70 + [64]), "has shape [1, 1, 1, 1, 1, 1, 1, 1 and 63 more]")
    yield of(without(NORM), f"missing tensors: {NORM}", GENERATE)
    yield of(without(HEAD), f"missing tensors: {HEAD}", SCORE)
    yield of(without(BIAS), f"missing tensors: {BIAS}", TRAIN)
    yield of(without(EXPERT), f"missing tensors: {EXPERT}")
    yield of(without(NORM, HEAD, Q_A, EXPERT, EMBED), " and 2 more")
    yield of(with_tensor("ghost.weight", "F32", [2], bytes(8)), "tensors that the config has no place for: ghost.weight")
    yield of(with_tensor("a\x1b[2J\nb", "F32", [1], bytes(4)), "no place for: a\\x1b[2J\\x0ab", GENERATE)
    yield of(with_tensor(Q_A.replace("weight", "bias"), "BF16", [48], bytes(96)), "q_a_proj.bias", TRAIN)
    yield of(renamed(NORM, "norm.weight"), f"missing tensors: {NORM}")
    # Numbers that are none.
    yield of(number(NORM, 63, "nan"), f"tensor {NORM} holds a number that is not finite, at 63", GENERATE)
    yield of(number(NORM, 0, "inf"), "holds a number that is not finite, at 0", SCORE)
    yield of(number(BIAS, 5, "inf"), f"tensor {BIAS} holds a number that is not finite, at 5", TRAIN)
    yield of(number(BIAS, 5, "nan"), f"tensor {BIAS} holds a number that is not finite, at 5", GENERATE)
    yield of(number(EMBED, 65, "nan"), "holds a number that is not finite, at row 1, column 1", GENERATE)
    yield of(number(HEAD, 639 * 64 + 63, "inf"), "not finite, at row 639, column 63", SCORE)
    yield of(number(EXPERT, 0, "nan"), f"tensor {EXPERT} holds a number that is not finite, at row 0, column 0", TRAIN)
    huge = tensors(lambda found: found[NORM].__setitem__(2, b"\x7f\x7f" * 64))
    yield of(huge, "logit for token 0 is", GENERATE)
    yield of(huge, "model: the loss of these tokens is not finite: the weights overflow", SCORE)
    for make, expected in (
        (pathlib.Path.mkdir, "is not a regular file"), (fifo, "is not a regular file"),
        (zeros_without_end, "is not a regular file"), (unix_socket, "cannot open"), (loop, "cannot look at it"),
        (dangling, "is a symbolic link to nothing"),
    ):
        yield of(special(WEIGHTS, make), f"model.safetensors: {expected}", GENERATE)
    yield of(removed(WEIGHTS), "holds neither model.safetensors nor model.safetensors.index.json", SCORE)


def fp8_and_mtp_cases():
    scale = Q_A + "_scale_inv"
    yield Case(FP8, number(scale, 0, "nan"), GENERATE, f"tensor {scale} holds a scale that is not finite")
    yield Case(FP8, number(scale, 1, "inf"), SCORE, f"tensor {scale} holds a scale that is not finite")
    yield Case(FP8, number(Q_A, 130, "nan"), GENERATE, f"tensor {Q_A} holds a number that is not finite, at row 0, column 130")
    yield Case(FP8, number("model.norm.weight", 3, "nan"), TRAIN, "model.norm.weight holds a number that is not finite, at 3")
    yield Case(FP8, without(scale), GENERATE, f"is stored as F8_E4M3 but its scales {scale} are missing")
    yield Case(FP8, retyped(scale, "BF16", 2), INSPECT, f"tensor {scale} is stored as BF16, must be F32")
    yield Case(FP8, retyped(scale, "F8_E8M0", 1), INSPECT, f"tensor {scale} is stored as F8_E8M0, must be F32")
    yield Case(FP8, reshaped(scale, [2, 1]), SCORE, f"tensor {scale} has shape [2, 1], must be [1, 2]")
    yield Case(FP8, retyped("model.norm.weight", "F8_E4M3", 1), INSPECT, "F8_E4M3, which only matrices may be")
    yield Case(FP8, retyped(Q_A, "I8", 1), GENERATE, f"tensor {Q_A} is stored as I8")
    yield Case(FP8, retyped(Q_A, "BF16", 2), INSPECT, f"tensors that the config has no place for: {scale}")
    yield Case(FP8, with_tensor("ghost_scale_inv", "F32", [1], bytes(4)), INSPECT, "no place for: ghost_scale_inv")
    yield Case(FP8, nothing, [*SCORE, "--fp8-activations"], "leave --grads out", 2)
    yield Case(TINY, nothing, [*SCORE[:-2], "--fp8-activations"], "needs a model with FP8 weights", 2)
    eh_proj, enorm = "model.layers.3.eh_proj.weight", "model.layers.3.enorm.weight"
    yield Case(MTP, without(eh_proj), GENERATE, f"missing tensors: {eh_proj}")
    yield Case(MTP, without("model.layers.3.mlp.gate.e_score_correction_bias"), TRAIN, "missing tensors: model.layers.3")
    yield Case(MTP, reshaped(eh_proj, [128, 64]), INSPECT, f"tensor {eh_proj} has shape [128, 64]")
    yield Case(MTP, number(enorm, 9, "nan"), SCORE, f"tensor {enorm} holds a number that is not finite, at 9")
    yield Case(MTP, with_tensor("model.layers.3.ghost", "F32", [1], bytes(4)), INSPECT, "no place for: model.layers.3.ghost")
    yield Case(TINY, nothing, [*SCORE, "--mtp"], "this model has no MTP layer")


def shard_cases():
    def of(edit, expected, command=GENERATE):
        return Case(SHARDED, edit, command, expected)

    first, second, third = (name.removeprefix("model/") for name in SHARDS)
    file = "model/model.safetensors.index.json"
    for name in ("../" + first, "/etc/passwd", "a/b.safetensors", ".hidden.safetensors", "", "weights.bin", "a\\b.safetensors",
                 "x\n.safetensors/", "\0.safetensors"):
        yield of(weight_map((HEAD, name)), "is no file name of a shard; it must be a plain name", INSPECT)
    yield of(weight_map((HEAD, "model-00009-of-00009.safetensors")), "the shard model-00009-of-00009.safetensors is missing")
    yield of(weight_map((HEAD, 7)), f"weight_map: the file of {HEAD} is not a string", SCORE)
    yield of(weight_map((NORM, REMOVED)), f"holds tensors that the index does not put there: {NORM}", TRAIN)
    yield of(weight_map(("ghost", first)), f"not in {first} as the index says: ghost", INSPECT)
    yield of(index(("weight_map", REMOVED)), "index.json: weight_map is missing")
    yield of(index(("weight_map", [])), "index.json: weight_map is not an object")
    yield of(index(("weight_map", {})), "index.json: weight_map is empty", SCORE)
    yield of(index(("metadata/total_size", "large")), "metadata.total_size is not a number", INSPECT)
    yield of(raw(file, b""), "index.json: is empty")
    yield of(raw(file, b"[]"), "index.json: the file is not a JSON object")
    yield of(raw(file, lambda data: data[:100]), "index.json: not valid JSON, at line")
    yield of(raw(file, b'{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}'), 'the key "a" stands twice')
    yield of(special(file, fifo), "index.json: is not a regular file")
    yield of(special(file, loop), "index.json: cannot look at it")
    yield of(special(file, dangling), "index.json: is a symbolic link to nothing")
    yield of(special(file, sparse(1 << 36)), "index.json: has 68719476736 bytes, more than the")
    yield of(removed(file), "holds neither model.safetensors nor model.safetensors.index.json")
    yield of(removed(SHARDS[1]), f"the shard {second} is missing;", SCORE)
    yield of(raw(SHARDS[2], b""), f"{third}: has 0 bytes, too few", INSPECT)
    yield of(raw(SHARDS[0], lambda data: data[:-2]), f"{first}: tensor ")
    yield of(special(SHARDS[0], pathlib.Path.mkdir), f"{first}: is not a regular file")
    yield of(special(SHARDS[0], fifo), f"{first}: is not a regular file")
    yield of(special(SHARDS[0], loop), f"{first}: cannot look at it", INSPECT)
    yield of(special(SHARDS[0], dangling), f"{first}: is a symbolic link to nothing", SCORE)

    def swap(folder):
        a, b = ((folder / name).read_bytes() for name in SHARDS[:2])
        replace(folder / SHARDS[0], b)
        replace(folder / SHARDS[1], a)

    yield of(swap, f"not in {first} as the index says", TRAIN)

    def twice(folder):
        moved = {}
        tensors(lambda found: moved.update({n: copy.copy(found[n]) for n in list(found)[:1]}), SHARDS[0])(folder)
        tensors(lambda found: found.update(moved), SHARDS[1])(folder)

    yield of(twice, f"{second}: holds tensors that the index does not put there", INSPECT)
    yield of(number_in_shard, "holds a number that is not finite", SCORE)


def number_in_shard(folder):
    def change(found):
        name = next(n for n, (dtype, shape, _) in found.items() if dtype == "BF16" and len(shape) == 1)
        found[name][2] = PATTERNS["BF16", "nan"] + found[name][2][2:]

    tensors(change, SHARDS[0])(folder)


def tokenizer_cases():
    step = "pre_tokenizer/pretokenizers/0"
    regex = step + "/pattern/Regex"
    for edit, expected in (
        (tokenizer(("model", REMOVED)), "tokenizer.json: model is missing"),
        (tokenizer(("model/type", "Unigram")), 'model: the type "Unigram" is not supported, only BPE is'),
        (tokenizer(("model/type", "WordPiece")), 'model: the type "WordPiece" is not supported'),
        (tokenizer(("model/vocab", {})), "model: vocab: is empty"),
        (tokenizer(("model/vocab/zzz", 3)), "model: vocab: the id 3 belongs to"),
        (tokenizer(("model/vocab/zzz", 1 << 40)), 'the id of "zzz" is not a whole number from 0 to'),
        (tokenizer(("model/merges/7", "nospace")), "merge 7: is not two tokens with a space between"),
        (tokenizer(("model/merges/7", "qqq zzz")), "merge 7: not in the vocabulary"),
        (tokenizer(("added_tokens/3/id", 5)), "added_tokens[3]: the id 5 of"),
        (tokenizer(("added_tokens/3/content", "")), "added_tokens[3]: the content is empty"),
        (tokenizer(("added_tokens/3/content", "x" * 2000)), "added_tokens[3]: the content has 2000 bytes, more than"),
        (tokenizer((regex, "(")), "tokenizer.json: not a valid regex"),
        (tokenizer((regex, "")), "a Split has an empty pattern"),
        (tokenizer((regex, "[a&&b]")), "intersects classes (&&)"),
        (tokenizer((step, {"type": "Whitespace"})), 'pretokenizers[0]: the pre-tokenizer "Whitespace" is not supported'),
        (tokenizer(("decoder", {"type": "WordPiece"})), 'decoder: "WordPiece" is not supported'),
        (tokenizer(("normalizer", {"type": "NFKC"})), 'the normalizer "NFKC" is not supported'),
        (tokenizer_config(("bos_token", "<nowhere>")), 'tokenizer_config.json: bos_token "<nowhere>" is not in the vocabulary'),
        (tokenizer_config(("add_bos_token", "yes")), "tokenizer_config.json: add_bos_token is neither true nor false"),
        (tokenizer_config(("eos_token", {"a": 1})), "tokenizer_config.json: eos_token has no content"),
        (tokenizer_config(("chat_template", 7)), "tokenizer_config.json: chat_template is not a string"),
        (tokenizer_config(("chat_template", "x" * (2 << 20))), "chat_template is longer than 1048576 bytes"),
        (raw("model/chat_template.jinja", b""), "chat_template.jinja: is empty"),
        (raw("model/chat_template.jinja", b"{{ '\xff' }}"), "chat_template.jinja: not UTF-8 at byte 4"),
        (special("model/chat_template.jinja", fifo), "chat_template.jinja: is not a regular file"),
    ):
        for command in (TOKENIZE, PROMPT):
            yield Case(TINY, edit, command, expected, stdin=b"The hollow")
    slow, slow_text = tokenizer((regex, "(?:l+)+!")), b"!" + b"l" * 40 + b"x!"
    yield Case(TINY, slow, TOKENIZE, "the regex takes too long on this text", stdin=slow_text)
    yield Case(TINY, both(slow, raw("text.txt", slow_text)), TRAIN, "the regex takes too long on this text")
    yield Case(TINY, removed("model/tokenizer.json"), TOKENIZE, "there is no tokenizer.json in this directory")
    yield Case(TINY, removed("model/tokenizer.json"), SCORE_TEXT, "there is no tokenizer.json in this directory")
    yield Case(TINY, removed("model/tokenizer.json", "model/tokenizer_config.json"), PROMPT, "give --tokens")
    # A tokenizer of another model.
    strange = tokenizer(("added_tokens/20", {"id": 9000, "content": "The hollow", "special": False, "normalized": False}))
    yield Case(TINY, strange, PROMPT, "the tokenizer has ids up to 9000, but the model's vocabulary is 640")
    yield Case(TINY, both(strange, raw("text.txt", b"The hollow window")), SCORE_TEXT, "the tokenizer has ids up to 9000, but the model's vocabulary is 640")
    yield Case(TINY, strange, TRAIN, "vocabulary mismatch: the tokenizer has 9001 ids and the model a vocab_size of 640")
    yield Case(TINY, strange, CHAT, "the tokenizer has ids up to 9000, but the model's vocabulary is 640", stdin=b"The hollow\n")


def template_cases():
    chat = [*TOKENIZE, "--chat"]
    line = b'{"messages": [{"role": "user", "content": "Hi"}]}\n'
    for template, expected in (
        ("{% if %}", "standard input: line 1: chat template, line 1"),
        ("\n\n{% for m in messages %}", "chat template, line 3"),
        ("{{ nothing.at.all }}", "chat template, line 1"),
        ("{{ raise_exception('no\nway') }}", "no\\x0away"),
        ("{% for i in range(99999999999) %}x{% endfor %}", "chat template, line 1"),
        ("{{ 'x' * 99999999999 }}", "chat template, line 1"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template, line 1"),
        ("{{ ''.__class__.__mro__ }}", "chat template, line 1"),
        ("{% include '/etc/passwd' %}", "chat template, line 1"),
        ("{{ " + "(" * 100_000 + " }}", "chat template, line 1"),
    ):
        yield Case(TINY, tokenizer_config(("chat_template", template)), chat, expected, stdin=line)
    yield Case(TINY, tokenizer_config(("chat_template", REMOVED)), chat, "the model has no chat template", stdin=line)
    for stdin, expected in (
        (b"{", "standard input: line 1: not valid JSON, at column 2"),
        (b"[]\n", "line 1: expected an object with messages"),
        (b'\n\n{"messages": "Hi"}\n', "line 3: messages must be a list"),
        (b'{"messages": [7]}\n', "line 1: messages[0] is not an object"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}\n', "line 1: not valid JSON"),
        (b'{"messages": [], "messages": []}\n', 'the key "messages" stands twice'),
        (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", "nested deeper than 64"),
    ):
        yield Case(TINY, nothing, chat, expected, stdin=stdin)
    yield Case(TINY, text("t.jinja", "{{"), [*chat, "--template", "@folder/t.jinja"], "chat template, line 1", stdin=line)
    yield Case(TINY, raw("t.jinja", b"\xff"), [*chat, "--template", "@folder/t.jinja"], "t.jinja: not UTF-8 at byte 0")
    yield Case(TINY, special("t.jinja", fifo), [*chat, "--template", "@folder/t.jinja"], "t.jinja: is not a regular file")
    yield Case(TINY, nothing, CHAT, "standard input: not UTF-8 at byte 2 of the line", stdin=b"ab\xff\n")


def token_cases():
    for content, expected in (
        (b"", "tokens.json: is empty, expected JSON"),
        (b"[[0, 5", "tokens.json: not valid JSON, at column"),
        (b"[[0, 5],\n [7,]]\n", "tokens.json: not valid JSON, at line 2, column 5"),
        (b"{}", "tokens.json: is not a list"),
        (b"7", "tokens.json: is not a list"),
        (b"[]", "tokens.json: no sequence to score"),
        (b"[0, 5]", "tokens.json: element 0 is not a list: expected a list of lists"),
        (b"[[0], []]", "tokens.json: sequence 1 is empty"),
        (b"[[0, 5], [1, 640]]", "tokens.json: token id 640 at position 1 of sequence 1 is outside the vocabulary of 640"),
        (b"[[-1]]", "token id -1 at position 0 of sequence 0"),
        (b"[[0, 1.5]]", "tokens.json: element 1 of list 0 is no token id"),
        (b"[[0, 99999999999]]", "element 1 of list 0 is no token id"),
        (b"[[0, 18446744073709551616]]", "tokens.json: not valid JSON"),
        (b'[["0"]]', "element 0 of list 0 is no token id"),
        (b"[[0, null]]", "element 1 of list 0 is no token id"),
        (b"[[[0]]]", "element 0 of list 0 is no token id"),
        (b"[" * 1000 + b"]" * 1000, "nested deeper than 64"),
        (b"[[" + b"0," * 200_000 + b"0]]", "sequence 0 has 200001 tokens, more than the model's context of 163840"),
    ):
        yield Case(TINY, raw("tokens.json", content), SCORE, expected)
    yield Case(TINY, special("tokens.json", fifo), SCORE, "tokens.json: is not a regular file")
    yield Case(TINY, special("tokens.json", sparse(1 << 40)), SCORE, "tokens.json: has 1099511627776 bytes, more than")
    yield Case(TINY, removed("tokens.json"), SCORE, "tokens.json: cannot open")
    for stdin, expected in (
        (b"", "standard input: is empty"),
        (b"{}", "standard input: expected a list of token ids"),
        (b"[0, 617]", "standard input: the id 617 is not in the vocabulary, which has 617 ids"),
        (b"[-1]", "the id -1 is not in the vocabulary"),
        (b"[0, 1e3]", "standard input: element 1 is no token id"),
        (b"[99999999999]", "standard input: element 0 is no token id"),
    ):
        yield Case(TINY, nothing, [*TOKENIZE, "--decode"], expected, stdin=stdin)
    for stdin, expected in (
        (b"{}", "standard input: line 1: expected an object with"),
        (b'\n{"text": 7}', "standard input: line 2: expected an object with"),
        (b'{"ids": [617]}', "standard input: line 1: the id 617 is not in the vocabulary"),
        (b'{"ids": 7}', "standard input: line 1: expected a list of token ids"),
        (b"text", "standard input: line 1: not valid JSON, at column"),
    ):
        yield Case(TINY, nothing, [*TOKENIZE, "--jsonl"], expected, stdin=stdin)


def vocabulary_in(out):
    return ["tokenize", "--train", "270", "--data", "@folder/text.txt", "--out", out]


def text_cases():
    yield Case(TINY, nothing, TOKENIZE, "standard input: the text is not UTF-8 at byte 4", stdin=b"\xe4\xb8\xad \xff")
    yield Case(TINY, nothing, PROMPT[:3] + ["--prompt", "ab\udcff"], "the prompt: the text is not UTF-8 at byte 2")
    yield Case(TINY, nothing, PROMPT[:3], "the prompt: the text is not UTF-8 at byte 0", stdin=b"\xed\xa0\x80")
    yield Case(TINY, raw("text.txt", b"The\xc3"), SCORE_TEXT, "text.txt: the text is not UTF-8 at byte 3")
    yield Case(TINY, raw("text.txt", b""), SCORE_TEXT, "text.txt: has fewer than two tokens")
    yield Case(TINY, special("text.txt", fifo), SCORE_TEXT, "text.txt: is not a regular file")
    yield Case(TINY, special("text.txt", sparse(1 << 40)), SCORE_TEXT, "text.txt: has 1099511627776 bytes, more than")
    yield Case(TINY, raw("text.txt", b"The\xc3(" * 9), TRAIN, "text.txt: not UTF-8 at byte 3")
    yield Case(TINY, raw("text.txt", b""), TRAIN, "text.txt: the data has 0 ids")
    yield Case(TINY, raw("text.txt", b"Hi"), TRAIN, "a sequence of --seq-len 8 needs 9")
    yield Case(TINY, special("text.txt", pathlib.Path.mkdir), TRAIN, "text.txt: there are no files in this directory")
    yield Case(TINY, raw("text.txt", b"\x89PNG\r\n"), TRAIN, "text.txt: not UTF-8 at byte 0; training data must be UTF-8 text")
    yield Case(TINY, raw("text.txt", b"a\0b" * 9), TRAIN, "text.txt: byte 1 is zero, so that this is no text")
    yield Case(TINY, special("text.txt", sparse(1 << 40)), TRAIN, "text.txt: byte 0 is zero")
    yield Case(TINY, special("text.txt", fifo), TRAIN, "text.txt: is not a regular file")
    yield Case(TINY, removed("text.txt"), TRAIN, "text.txt: cannot open: No such file")
    for name, content, expected in (
        ("text.txt.gz", b"", "text.txt.gz: ends after 0 bytes in the middle of its data"),
        ("text.txt.gz", gzip.compress(b"The hollow")[:-9], "text.txt.gz: ends after"),
        ("text.txt.gz", gzip.compress(b"The hollow") + b"The hollow", "text.txt.gz: damaged at byte"),
        ("text.txt.gz", b"The hollow", "text.txt.gz: damaged at byte"),
        ("text.txt.zst", b"\x28\xb5\x2f\xfd", "text.txt.zst: ends after 4 bytes"),
        ("text.txt.zst", b"The hollow", "text.txt.zst: damaged at byte"),
        ("text.jsonl.gz", gzip.compress(b"x" * (100 << 20), 1), "text.jsonl.gz: line 1: longer than 64.0 MiB"),
    ):
        command = [argument.replace("text.txt", name) for argument in TRAIN]
        yield Case(TINY, raw(name, content), command, expected)
    folder = [argument.replace("text.txt", "tokens") for argument in TRAIN]
    for content, expected in (
        (b"", "dataset.json: is empty, expected JSON"),
        (b"{}", "dataset.json: is no dataset of tokens"),
        (b'{"format": "fathom-tokens", "version": 7}', "dataset.json: is of version 7, this program reads 1"),
        (b'{"format": "fathom-tokens", "version": 1}', "dataset.json: its content changed since it was written"),
    ):
        yield Case(TINY, both(special("tokens", pathlib.Path.mkdir), raw("tokens/dataset.json", content)), folder, expected)
    jsonl = [argument.replace("text.txt", "text.jsonl") for argument in TRAIN]
    good = b'{"text": "The hollow window"}\n'
    for bad, expected in (
        (b'{"text": "x"', "line 3: not valid JSON, at column"),
        (b'{"content": "x"}', 'line 3: no "text" that is a string'),
        (b'{"text": 7}', 'line 3: no "text" that is a string'),
        (b'["text"]', 'line 3: no "text" that is a string'),
        (b'{"text": "x", "text": "y"}', 'line 3: the key "text" stands twice'),
        (b'{"text": "\xff"}', "not UTF-8 at byte"),
        (b'{"text": "a\0b"}', "line 3: not valid JSON"),
        (b"plain text", "line 3: not valid JSON, at column 1"),
    ):
        yield Case(TINY, raw("text.jsonl", good + b"\n" + bad + b"\n" + good), jsonl, "text.jsonl: " + expected)
    vocabulary = vocabulary_in("@out/tokenizer.json")
    yield Case(TINY, raw("text.txt", b"ab\x80"), vocabulary, "text.txt: not UTF-8 at byte 2")
    yield Case(TINY, removed("text.txt"), vocabulary, "text.txt: cannot open")
    yield Case(TINY, nothing, [*vocabulary[:2], "7", *vocabulary[3:]], "--train 7: a byte-level vocabulary has", 2)
    yield Case(TINY, nothing, vocabulary_in("@out/none/tokenizer.json"), "tokenizer.json.partial: cannot create")


def option_file_cases():
    for content, expected in (
        (b"max-token = 3", "options.toml, line 1: 'max-token' is no option of fathom generate"),
        (b"\n[generate]\nbogus = 1", "options.toml, line 3: 'bogus' is no option"),
        (b"[nonsense]", "line 1: there is no subcommand 'nonsense'"),
        (b"[generate", "line 1: ']' is missing"),
        (b"[[generate]]", "line 1: tables of tables"),
        (b"[generate]\n[generate]", "line 2: section [generate] stands twice"),
        (b"quiet = true\nquiet = true", "line 2: 'quiet' stands twice"),
        (b"quiet true", "line 1: '=' is missing"),
        (b"seed = ", "line 1: a value should be"),
        (b"seed = [1", "line 1: ',' or ']' is missing"),
        (b"seed = []", "line 1: the list of 'seed' is empty"),
        (b'stop = "no end\n"', "line 1: a string does not end on its line"),
        (b'stop = "\\ud800"', "line 1: an escape names no Unicode character"),
        (b'stop = "\\q"', "line 1: an unknown escape"),
        (b'stop = "\\', "line 1: "),
        (b'top-k = "many"', "--top-k"),
        (b"temperature = true", "--temperature"),
        (b"\xff\xfe", "line 1: an option's name or [section] should stand here"),
        (b"\0" * 50, "line 1: an option's name or [section] should stand here"),
        (b"\x1b[2J = 1", "line 1: an option's name"),
        (b"a = 1 \x1b[2J\nb", "line 1: "),
        (b'"\x1b[2J\x07" = 1', "'\\x1b[2J\\x07' is no option"),
        (b"# " + b"x" * (2 << 20), "larger than 1 MiB, no file of options"),
    ):
        yield Case(TINY, raw("options.toml", content), CONFIGURED, expected, 2)
    yield Case(TINY, special("options.toml", pathlib.Path.mkdir), CONFIGURED, "options.toml", 2)
    yield Case(TINY, special("options.toml", loop), CONFIGURED, "options.toml", 2)
    yield Case(TINY, special("options.toml", zeros_without_end), CONFIGURED, "larger than 1 MiB", 2)
    yield Case(TINY, nothing, CONFIGURED, "options.toml", 2)


def path_cases():
    """Models that are no directory, and places that take no output."""
    for command in (GENERATE, SCORE, TRAIN, INSPECT, TOKENIZE):
        def at(path, command=command):
            return [argument.replace("@model", path) for argument in command]

        yield Case(TINY, nothing, at("@folder/nowhere"), "nowhere: ")
        yield Case(TINY, special("loop", loop), at("@folder/loop"), ": cannot look at it: Too many levels")
        yield Case(TINY, special("loop", dangling), at("@folder/loop"), "loop: is a symbolic link to nothing")
        yield Case(TINY, special("pipe", fifo), at("@folder/pipe"), "pipe: is ")
        yield Case(TINY, nothing, at("@folder/model/" + "x" * 300), "File name too long")
        yield Case(TINY, special("a\x1b\nb", pathlib.Path.mkdir), at("@folder/a\x1b\nb"), "a\\x1b\\x0ab")
    yield Case(TINY, nothing, ["generate", "--model", "", "--tokens", "1"], "the name of the model's directory is empty")
    yield Case(TINY, nothing, ["generate", "--model", "@model/config.json", "--tokens", "1"],
               "config.json: is a file; a model is a directory with config.json and model.safetensors")
    yield Case(TINY, nothing, ["inspect", "@model/tokenizer_config.json"], "model_type is missing")
    yield Case(TINY, nothing, ["inspect", "@folder/text.txt"], "is neither a model directory nor a config.json, .safetensors or .gguf file")
    yield Case(TINY, raw("x.safetensors", b"{}"), ["inspect", "@folder/x.safetensors"], "x.safetensors: has 2 bytes, too few")
    yield Case(TINY, nothing, [*SCORE[:-1], "@out/none/grads.safetensors"], "grads.safetensors.partial: cannot create")
    yield Case(TINY, nothing, [*SCORE[:-1], "@out/scores.safetensors"], "--out and --grads name the same file", 2)
    yield Case(TINY, nothing, [*SCORE[:-1], "/dev/full/x"], "/dev/full/x.partial: cannot create: Not a directory")
    yield Case(TINY, nothing, [*SCORE[:-1], "@model"], "/model: cannot write: is a directory")
    yield Case(TINY, nothing, vocabulary_in("@model"), "/model: cannot write: is a directory")
    train_to = lambda path: [argument.replace("@out/run", path) for argument in TRAIN]  # noqa: E731
    yield Case(TINY, nothing, train_to("@folder/text.txt"), "text.txt: cannot create the directory")
    yield Case(TINY, nothing, train_to("/proc/none"), "/proc/none: cannot create the directory")


def gguf(values=(), infos=b"", n_values=None, n_tensors=0, version=3):
    """A GGUF file of `values`, (key, text or u32) pairs, and whatever `infos` is."""
    written = lambda text: struct.pack("<Q", len(text)) + text  # noqa: E731
    file = b"GGUF" + struct.pack("<IQQ", version, n_tensors, len(values) if n_values is None else n_values)
    for key, value in values:
        file += written(key.encode())
        file += struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<I", 8) + written(value)
    return file + infos


def long_file(name, start):
    """A terabyte of zeros behind it."""
    return both(raw(name, start), lambda folder: os.truncate(folder / name, 1 << 40))


def gguf_cases():
    """What bears a GGUF file's name, given to every command; tests/checkpoint has the many ways to be a broken one."""
    name = "m\x1b.gguf"
    architecture = ("general.architecture", b"deepseek2")
    for command in (INSPECT, GENERATE, SCORE, TOKENIZE, CHAT):
        def at(edit, expected, command=[argument.replace("@model", "@folder/" + name) for argument in command]):
            return Case(TINY, edit, command, "m\\x1b.gguf: " + expected)

        yield at(nothing, "")  # in the words of each command
        yield at(raw(name, b""), "not a GGUF file: it does not begin with GGUF")
        yield at(raw(name, b"version https://git-lfs.github.com/spec/v1\n"), "not a GGUF file")
        yield at(raw(name, b"GGUF"), "the header reaches beyond the end of the file (4 bytes)")
        yield at(raw(name, gguf(version=1)), "GGUF version 1 is not supported")
        yield at(raw(name, gguf(version=3 << 24)), "big-endian GGUF files are not supported")
        yield at(raw(name, gguf(n_values=(1 << 64) - 1)), "the number of metadata keys: 18446744073709551615 of them reach")
        yield at(raw(name, gguf(n_tensors=1 << 60)), "the number of tensors: 1152921504606846976 of them reach")
        yield at(special(name, sparse(1 << 40)), "not a GGUF file")
        many = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 36)  # empty texts, as far as the file goes
        for start in (gguf(n_values=1 << 36), gguf(n_tensors=1 << 34), gguf(infos=many, n_values=1)):
            yield at(long_file(name, start), "")
        yield at(special(name, fifo), "is not a regular file")
        yield at(special(name, zeros_without_end), "is not a regular file")
        yield at(special(name, dangling), "is a symbolic link to nothing")
        yield at(raw(name, gguf([architecture, ("split.count", 3), ("split.no", 1)])), "is one of 3 files that only together are a model")
    for command in (INSPECT, GENERATE, SCORE):
        def at(values, expected, command=[argument.replace("@model", "@folder/m.gguf") for argument in command]):
            return Case(TINY, raw("m.gguf", gguf(values)), command, expected)

        yield at([], "m.gguf: the metadata key general.architecture is missing")
        yield at([("general.architecture", b"deepseek32")], "the metadata key deepseek32.embedding_length is missing")
        yield at([("general.architecture", b"deepseek4")], "deepseek4 is not supported; supported are deepseek2 (DeepSeek-V2, V3, R1, V3.1), deepseek32 (V3.2), llama and qwen2")
        yield at([architecture], "m.gguf: the metadata key deepseek2.embedding_length is missing")
    tokenize = ["tokenize", "--model", "@folder/m.gguf"]
    for values, expected in (
        ([architecture], "m.gguf: has no tokenizer in it"),
        ([("tokenizer.ggml.model", b"llama")], "tokenizer.ggml.model llama is not supported; only gpt2"),
        ([("tokenizer.ggml.model", b"gpt2")], "the metadata key tokenizer.ggml.pre is missing"),
    ):
        yield Case(TINY, raw("m.gguf", gguf(values)), tokenize, expected)
    yield Case(TINY, raw("m.gguf", gguf([architecture])), ["generate", "--model", "@folder/m.gguf", "--prompt", "x"],
               "m.gguf: the metadata key deepseek2.embedding_length is missing")
    train = [argument.replace("@model", "@folder/m.gguf") for argument in TRAIN]
    yield Case(TINY, raw("m.gguf", gguf([architecture])), train, "m.gguf: name a tokenizer with --tokenizer", 2)
    yield Case(TINY, raw("m.gguf", gguf([architecture])), [*train, "--tokenizer", "bytes"], "deepseek2.embedding_length is missing")


@functools.cache
def packed(base):
    """`base` as convert writes it."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    subprocess.run([PROGRAM, "convert", str(base), folder, "--to", "q4_0", "--quiet"], check=True)
    return pathlib.Path(folder)


def packed_cases():
    def of(edit, expected, command=GENERATE):
        return Case(packed(TINY), edit, command, expected)

    name = "model.layers.0.self_attn.o_proj"
    stored = name + ".panels.q4_0"
    for command in (INSPECT, GENERATE, BENCH, SCORE[:-2]):
        yield of(without(stored), f"model.safetensors: has no weight {name}", command)
        yield of(renamed(stored, name + ".panels.q4_k"), f"weight {name}.panels.q4_k is in a format that it cannot", command)
        yield of(config(("quantization_config/version", 2)), "config.json: the weights are packed in version 2, this", command)
    yield of(renamed(stored, name + ".panels.q9"), f"model.safetensors: weight {name}.panels.q9 is in a format that")
    yield of(renamed(stored, name + ".panels.f32"), f"model.safetensors: weight {name}.panels.f32 has 3456 bytes of U8, the")
    yield of(retyped(stored, "BF16", 2), f"weight {stored} has 6912 bytes of BF16, the config asks for 3456 of U8")
    yield of(with_tensor("ghost.rows.f32", "U8", [4], bytes(4)), "no place for: ghost.rows.f32")
    yield of(raw(WEIGHTS, lambda data: data[:-1]), "it was cut off or is damaged")
    yield of(removed(WEIGHTS), "holds neither model.safetensors nor")
    yield of(config(("hidden_size", 1 << 24)), "too few for the")
    yield of(config(("n_routed_experts", 65536)), "too few for the")
    yield of(config(("num_hidden_layers", 10000)), "too few for the")
    yield of(config(("quantization_config/version", REMOVED)), "quantization_config.version is missing")
    yield of(nothing, "model: is packed already; convert the model that it was made from", CONVERT)
    for command in (SCORE, TRAIN):
        yield of(nothing, "packed", command)
    for edit, expected in ((without(NORM), f"missing tensors: {NORM}"), (removed("model/config.json"), "config.json"),
                           (retyped(Q_A, "I8", 1), f"tensor {Q_A} is stored as I8")):
        yield Case(TINY, edit, CONVERT, expected)
    yield Case(TINY, nothing, [argument.replace("@out", "@folder/text.txt") for argument in CONVERT], "text.txt/packed: ")


GROUPS = (packed_cases, gguf_cases, config_cases, json_file_cases, safetensors_cases, fp8_and_mtp_cases, shard_cases, tokenizer_cases, template_cases,
          token_cases, text_cases, option_file_cases, path_cases)


# -- The runs ------------------------------------------------------------------------------------------------------


def prepare(folder, base):
    (folder / "model").mkdir()
    (folder / "out").mkdir()
    for file in base.iterdir():
        if file.is_file() and not file.name.startswith(("expected", "grads")):
            (folder / "model" / file.name).symlink_to(file)
    (folder / "tokens.json").write_text("[[0, 5, 9], [3, 4]]")
    (folder / "text.txt").write_text("The hollow window hides the lantern. " * 4)


class Result(typing.NamedTuple):
    code: int
    stdout: bytes
    stderr: str
    cpu_s: float
    rss_kib: int


def run(folder, command, stdin):
    """Files instead of pipes: nothing needs to be read while it runs, so its usage can be waited for."""
    places = {"@model": str(folder / "model"), "@folder": str(folder), "@out": str(folder / "out")}
    arguments = [PROGRAM, "--threads", "1"]
    for argument in command:
        for name, path in places.items():
            argument = argument.replace(name, path)
        arguments.append(argument)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(arguments, stdin=given, stdout=out, stderr=log)
        watch = threading.Timer(HANGS_AFTER_S, process.kill)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        watch.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        log.seek(0)
        stderr = log.read().decode("utf-8", "replace")
        return Result(process.returncode, out.read(), stderr, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)


class MalformedFiles(unittest.TestCase):
    def in_folder(self, base, edit, command, stdin=b""):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            prepare(folder, base)
            edit(folder)
            result = run(folder, command, stdin)
            left = sorted(str(path.relative_to(folder)) for path in (folder / "out").rglob("*"))
        return result, left

    def assert_within_bounds(self, result):
        self.assertLess(result.cpu_s, MAX_CPU_S)
        if MAX_RSS_KIB:
            self.assertLess(result.rss_kib, MAX_RSS_KIB)

    def check(self, group):
        for number_of_case, case in enumerate(group()):
            if SANITIZED and number_of_case % 2:  # most come with several commands, one behind the other
                continue
            with self.subTest(case=number_of_case, command=case.command[0], expected=case.expected):
                result, left = self.in_folder(case.base, case.edit, case.command, case.stdin)
                self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
                self.assertTrue(result.stderr.startswith("fathom: "), result.stderr)
                self.assertTrue(result.stderr[:-1].isprintable(), result.stderr)
                self.assertIn(case.expected, result.stderr)
                self.assertEqual(result.code, case.code, result.stderr)
                self.assertEqual(result.stdout, b"")
                self.assertEqual(left, [])
                self.assert_within_bounds(result)

    def test_files_that_are_whole_are_taken(self):
        """The edits alone make the difference; and claims that cost nothing are no reason to refuse."""
        far = config(("max_position_embeddings", 1 << 31))
        for base, edit, command, files in (
            *((base, nothing, command, 0) for base in (TINY, SHARDED, FP8, MTP) for command in (INSPECT, GENERATE, PROMPT)),
            (TINY, nothing, SCORE, 2), (TINY, nothing, SCORE_TEXT, 1), (MTP, nothing, [*SCORE, "--mtp"], 2),
            (packed(TINY), nothing, INSPECT, 0), (packed(TINY), nothing, GENERATE, 0), (packed(FP8), tensors(lambda found: None), GENERATE, 0),
            (TINY, nothing, TOKENIZE, 0), (TINY, far, GENERATE, 0), (TINY, far, SCORE, 2),
            (TINY, tensors(lambda found: None), GENERATE, 0), (FP8, header(lambda entries: None), INSPECT, 0),
            (TINY, raw("options.toml", b"seed = 3\n"), CONFIGURED, 0),
        ):
            with self.subTest(base=base.name, command=command[0]):
                result, left = self.in_folder(base, edit, command, b"The hollow")
                self.assertEqual(result.code, 0, result.stderr)
                self.assertEqual(len(left), files)
                self.assertNotEqual(result.stdout, b"")
                self.assert_within_bounds(result)


for cases in GROUPS:
    setattr(MalformedFiles, "test_" + cases.__name__, lambda self, group=cases: self.check(group))

if __name__ == "__main__":
    unittest.main(verbosity=1)
