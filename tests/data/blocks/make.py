#!/usr/bin/env python3
"""Makes the files beside it: blocks of GGUF's formats and the numbers that the Python package `gguf` (0.19.0, numpy 2.4.6) reads from
them. NAME.bin: blocks of random bytes, then 2048 f32. q8_0_encoded.bin: what gguf makes of numbers, the same layout.
    pip install gguf==0.19.0; tests/data/blocks/make.py"""
import pathlib

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

HERE = pathlib.Path(__file__).resolve().parent
NUMBERS = 2048
# Where the f16 scales of a block are.
SCALES = {"q8_0": [0], "q4_0": [0], "q5_0": [0], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208], "q5_1": [0, 2]}


def finite_f16(rng, n):
    bits = rng.integers(0, 1 << 16, n).astype(np.uint16)
    bits[0], bits[-1] = 0x0001, 0x7BFF  # the smallest and the largest
    return np.where(bits & 0x7C00 == 0x7C00, bits ^ 0x4000, bits).astype(np.uint16)


def decoded(rng, name):
    kind = GGMLQuantizationType[name.upper()]
    size, size_bytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (NUMBERS // size, size_bytes)).astype(np.uint8)
    for at in SCALES[name]:
        blocks[:, at:at + 2] = finite_f16(rng, len(blocks)).view(np.uint8).reshape(-1, 2)
    return blocks.tobytes() + dequantize(blocks, kind).astype("<f4").tobytes()


def encoded(rng):
    x = rng.standard_normal((NUMBERS // 32, 32)) * 10.0**rng.integers(-9, 6, (NUMBERS // 32, 1))
    x[0] = 0
    x[1] = np.arange(32) * 4 - 63.5  # halves of a step of 1, which d is
    x[1, 0] = -127
    x[2] = np.arange(32) + 0.5
    x[2, 31] = 127
    x[3] = 8.3e6
    x = x.astype("<f4")
    return quantize(x, GGMLQuantizationType.Q8_0).tobytes() + x.tobytes()


generator = np.random.default_rng(20)
for format_name in SCALES:
    (HERE / f"{format_name}.bin").write_bytes(decoded(generator, format_name))
(HERE / "q8_0_encoded.bin").write_bytes(encoded(generator))
