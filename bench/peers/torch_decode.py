#!/usr/bin/env python3
"""Decoding speed of transformers' DeepSeek-V3 with random bf16 weights, as it is and compiled: the peer of `fathom bench
--model-config FILE --device cuda`.

usage: torch_decode.py CONFIG.json [--batch 1,64] [--depth 512] [--steps 32] [--mode default] [--device cuda] [--no-compile]
Prints one JSON object for each batch size: tokens a second of the steps, and how long compiling took.
"""
import argparse
import json
import time

import torch
import transformers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--batch", default="1,64")
    parser.add_argument("--depth", type=int, default=512)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--mode", default="default", help="of torch.compile")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    with open(args.config) as file:
        raw = json.load(file)
    for key in ("architectures", "model_type", "torch_dtype"):
        raw.pop(key, None)
    config = transformers.DeepseekV3Config(**raw)
    torch.manual_seed(0)
    on_gpu = args.device == "cuda"
    dtype = torch.bfloat16
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        model = transformers.DeepseekV3ForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    model.to(dtype)
    synchronize = torch.cuda.synchronize if on_gpu else (lambda: None)
    for implementation in ("grouped_mm", "batched_mm"):  # what there is depends on the version
        try:
            model.set_experts_implementation(implementation)
            break
        except Exception:  # noqa: BLE001
            implementation = "as it comes"
    step = model.forward
    if not args.no_compile:
        step = torch.compile(model.forward, mode=args.mode, dynamic=False)

    for batch in (int(b) for b in args.batch.split(",")):
        cache = transformers.StaticCache(config=config, max_cache_len=args.depth + args.steps + 8)
        ids = torch.randint(3, config.vocab_size, (batch, 1), device=args.device)
        with torch.inference_mode():
            filled = 0
            while filled < args.depth:  # depth, in pieces that fit
                n = min(512, args.depth - filled)
                prompt = torch.randint(3, config.vocab_size, (batch, n), device=args.device)
                position = torch.arange(filled, filled + n, device=args.device)
                model(prompt, past_key_values=cache, cache_position=position, use_cache=True, logits_to_keep=1)
                filled += n

            def run(n, first):
                out = ids
                for i in range(n):
                    position = torch.tensor([first + i], device=args.device)
                    logits = step(out, past_key_values=cache, cache_position=position, use_cache=True).logits
                    out = logits[:, -1:].argmax(-1)
                return out

            start = time.perf_counter()
            run(3, args.depth)
            synchronize()
            compiling_s = time.perf_counter() - start
            start = time.perf_counter()
            run(args.steps, args.depth + 3)
            synchronize()
            seconds = time.perf_counter() - start
        print(json.dumps({"test": f"tg{args.steps}x{batch}@d{args.depth}", "avg_ts": batch * args.steps / seconds,
                          "ms_a_step": 1000 * seconds / args.steps, "compiling_s": round(compiling_s, 1),
                          "experts": implementation, "compiled": not args.no_compile}), flush=True)


if __name__ == "__main__":
    main()
