#!/usr/bin/env python3
"""Checkpoints that fathom trained or converted load in Hugging Face transformers and give equal logits and losses; TensorBoard reads
the event files of a run.

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
ROOT = pathlib.Path(__file__).resolve().parents[2]

chosen_python.switch()

try:
    import torch
    import transformers
    from safetensors.torch import load_file
except ImportError as missing:
    chosen_python.skip(missing, "torch and transformers")


def fathom(*arguments):
    subprocess.run([FATHOM, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def fathom_json(*arguments):
    output = subprocess.run([FATHOM, arguments[0], "--json", "--quiet", *map(str, arguments[1:])], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)


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
    ids = [[0, 5, 77, 300, 12, 9, 45, 2, 31, 8], [0, 3, 99]]
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


def check_held_out_loss(precision, scratch):
    """The loss over a text that fathom measures, while training and afterwards, is the loss there."""
    text = (ROOT / "data/tinyshakespeare-val.txt").read_bytes()[:20_000]
    (scratch / "val.txt").write_bytes(text)
    out, window = scratch / f"trained-{precision}", 128
    trained = fathom_json("train", "--model-config", ROOT / "models/shakespeare.config.json", "--tokenizer", "bytes", "--data",
                          ROOT / "data/tinyshakespeare-train.txt", "--val-data", scratch / "val.txt", "--out", out, "--steps", 30,
                          "--seq-len", window, "--batch-size", 8, "--lr", "4e-3", "--precision", precision)
    scored = fathom_json("score", "--model", out, "--text", scratch / "val.txt", "--window", window + 1)["loss"]
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids = torch.tensor([*text, model.config.eos_token_id])

    def loss(ids):
        with torch.no_grad():
            total = sum(torch.nn.functional.cross_entropy(model(ids[None, i:i + window]).logits[0, :len(ids) - 1 - i], ids[i + 1:i + window + 1],
                                                          reduction="sum").item() for i in range(0, len(ids) - 1, window))
        return total / (len(ids) - 1)

    losses = {"while training": (trained["val_loss"], loss(ids)), "scored": (scored, loss(ids[:-1]))}
    for what, (have, want) in losses.items():
        if what == "scored" or precision == "f32":  # while training a run rounds as it trains
            assert abs(have - want) < 1e-4, f"{precision}, {what}: {have} and {want}"
    print(f"held-out loss, trained in {precision}: {losses}")


def check_tensorboard(scratch):
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        print("SKIPPED: no tensorboard package")
        return
    options = ["train", "--init", DATA / "v3_mtp", "--tokenizer", DATA / "v3_mtp", "--data", scratch / "text.txt", "--out", scratch / "board",
               "--seq-len", 32, "--batch-size", 2, "--tensorboard", scratch / "events", "--save-every", 2, "--steps"]
    fathom(*options, 4)
    fathom(*options, 6, "--resume")
    events = EventAccumulator(str(scratch / "events"))
    events.Reload()
    logged = [json.loads(line) for line in (scratch / "board/train.jsonl").read_text().splitlines()]
    for tag, key in {"train/loss": "loss", "train/mtp_loss": "mtp_loss", "train/lr": "lr", "balance/max_violation": "max_violation"}.items():
        have = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in have] == [1, 2, 3, 4, 5, 6], have
        assert all(abs(value - line[key]) <= 1e-6 * abs(line[key]) for (_, value), line in zip(have, logged)), tag
    print("TensorBoard reads", len(events.Tags()["scalars"]), "tags")


with tempfile.TemporaryDirectory() as folder:
    for precision in ["f32", "fp8"]:
        check_held_out_loss(precision, pathlib.Path(folder))
    for fixture in ["v3_tiny", "v3_mtp", "v2_lite_like", "v2_group_limited", "v3_rope_half", "moonlight_like", "llama_like", "qwen2_like"]:
        check(fixture, pathlib.Path(folder))
    for fixture in ["v3_tiny", "v3_mtp", "v2_lite_like", "v3_fp8"]:
        check_fp8(fixture, pathlib.Path(folder))
    check_tensorboard(pathlib.Path(folder))
