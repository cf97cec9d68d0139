#!/usr/bin/env python3
"""Checkpoints that fathom trained or converted load in Hugging Face transformers and give equal logits.

    transformers_test.py FATHOM DATA_DIR

Runs where torch and transformers are installed (FATHOM_PYTHON names a Python that has them); exits 77, "skipped", elsewhere.
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
    import torch
    import transformers
    from safetensors.torch import load_file
except ImportError as missing:
    chosen_python.skip(missing, "torch and transformers")


def fathom(*arguments):
    subprocess.run([FATHOM, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def check(name, scratch):
    """Trains two steps from a fixture, so that every weight is one that fathom wrote, and compares the logits."""
    text = scratch / "text.txt"
    text.write_text("The gentle planet carries the river. " * 200)
    out = scratch / name
    fathom("train", "--quiet", "--init", DATA / name, "--tokenizer", DATA / name, "--data", text, "--out", out, "--steps", 2,
           "--seq-len", 32, "--batch-size", 2, "--lr", "1e-3")
    compare(name, out, scratch)
    for number_format in ("f32", "bf16", "f16"):
        fathom("convert", "--quiet", DATA / name, out, "--to", number_format)
        stored = load_file(out / "model.safetensors")
        kinds = {str(t.dtype) for key, t in stored.items() if not key.endswith("e_score_correction_bias")}
        assert kinds == {{"f32": "torch.float32", "bf16": "torch.bfloat16", "f16": "torch.float16"}[number_format]}, kinds
        compare(f"{name} as {number_format}", out, scratch)


def check_fp8(name, scratch):
    """What transformers makes of codes and scales is the bf16 directory that fathom makes of them."""
    fathom("convert", "--quiet", DATA / name, scratch / "fp8", "--to", "fp8")
    fathom("convert", "--quiet", scratch / "fp8", scratch / "wide", "--to", "f32")
    stored, want = load_file(scratch / "fp8" / "model.safetensors"), load_file(scratch / "wide" / "model.safetensors")
    for key, values in stored.items():
        if key.endswith("_scale_inv"):
            continue
        if values.dtype == torch.float8_e4m3fn:
            scale = stored[key + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            values = values.to(torch.float32) * scale[: values.shape[0], : values.shape[1]]
        assert torch.equal(values.to(torch.float32), want[key]), key
    config = transformers.AutoConfig.from_pretrained(scratch / "fp8")
    assert config.quantization_config["weight_block_size"] == [128, 128], config.quantization_config
    print(f"{name} as fp8: the same numbers")


def compare(name, out, scratch):
    ids = [[0, 5, 77, 300, 12, 9, 450, 2, 31, 8], [0, 3, 99]]
    (scratch / "tokens.json").write_text(json.dumps(ids))
    fathom("score", "--quiet", "--model", out, "--tokens", scratch / "tokens.json", "--out", scratch / "got.safetensors")
    got = load_file(scratch / "got.safetensors")["logits"]
    model, report = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager",
                                                                      output_loading_info=True)
    assert not report["missing_keys"], report["missing_keys"]
    unexpected = [key for key in report["unexpected_keys"] if "layers.61." not in key]
    layers = model.config.num_hidden_layers  # an MTP layer is stored behind the last; transformers has no module for it
    unexpected = [key for key in unexpected if f"layers.{layers}." not in key]
    assert not unexpected, unexpected
    with torch.no_grad():
        want = torch.cat([model.eval()(torch.tensor([sequence])).logits[0] for sequence in ids])
    difference = (got - want).abs().max().item()
    assert difference < 2e-4, f"{name}: logits differ by {difference}"
    print(f"{name}: largest difference {difference:.1e}")


with tempfile.TemporaryDirectory() as folder:
    for fixture in ["v3_tiny", "v3_mtp", "v2_lite_like", "v2_group_limited", "v3_rope_half", "moonlight_like"]:
        check(fixture, pathlib.Path(folder))
    for fixture in ["v3_tiny", "v3_mtp", "v2_lite_like", "v3_fp8"]:
        check_fp8(fixture, pathlib.Path(folder))
