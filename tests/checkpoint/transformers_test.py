#!/usr/bin/env python3
"""A checkpoint that fathom wrote loads in Hugging Face transformers and gives equal logits.

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
