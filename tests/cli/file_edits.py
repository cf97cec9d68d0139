"""Edits that break a model's files: each is a function of a folder with model/ in it and what the commands read."""
import json
import os
import socket
import struct


def replace(path, content):
    path.unlink(missing_ok=True)  # it may be a link to the original
    path.write_bytes(content)


def raw(name, change):
    """`change`: the new bytes, or a function from the old ones."""

    def edit(folder):
        path = folder / name
        replace(path, change(path.read_bytes()) if callable(change) else change)

    return edit


def text(name, content):
    return raw(name, content.encode("utf-8", "surrogateescape"))


REMOVED = object()


def in_json(name, *changes):
    """`changes`: ("a/0/b", value) pairs; REMOVED takes the key out."""

    def edit(folder):
        path = folder / name
        root = json.loads(path.read_bytes())
        for keys, value in changes:
            *parents, last = (int(key) if key.isdecimal() else key for key in keys.split("/"))
            at = root
            for key in parents:
                at = at[key]
            if value is REMOVED:
                del at[last]
            elif isinstance(at, list) and last == len(at):
                at.append(value)
            else:
                at[last] = value
        replace(path, json.dumps(root, ensure_ascii=False).encode())

    return edit


def config(*changes):
    return in_json("model/config.json", *changes)


def tokenizer(*changes):
    return in_json("model/tokenizer.json", *changes)


def tokenizer_config(*changes):
    return in_json("model/tokenizer_config.json", *changes)


def index(*changes):
    return in_json("model/model.safetensors.index.json", *changes)


def weight_map(*changes):
    def edit(folder):
        path = folder / "model/model.safetensors.index.json"
        root = json.loads(path.read_bytes())
        for name, file in changes:
            if file is REMOVED:
                del root["weight_map"][name]
            else:
                root["weight_map"][name] = file
        replace(path, json.dumps(root).encode())

    return edit


def removed(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def special(name, make):
    """Something in the place of a file that is no file."""

    def edit(folder):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return edit


def fifo(path):
    os.mkfifo(path)


def loop(path):
    path.symlink_to(path.name)


def dangling(path):
    path.symlink_to("nowhere")


def zeros_without_end(path):
    path.symlink_to("/dev/zero")


def unix_socket(path):
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # a socket's path may not be long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.fchdir(here)
    os.close(here)


def sparse(n_bytes):
    def make(path):
        path.touch()
        os.truncate(path, n_bytes)

    return make


def both(*edits):
    return lambda folder: [edit(folder) for edit in edits]


def nothing(folder):
    del folder


# Of safetensors files.
WEIGHTS = "model/model.safetensors"
SHARDS = [f"model/model-0000{n}-of-000003.safetensors" for n in (1, 2, 3)]
HEAD, NORM, EMBED = "lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"
Q_A = "model.layers.0.self_attn.q_a_proj.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


def split(data):
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def join(header, body):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body


def header(change, name=WEIGHTS):
    """Edits the header and leaves the data as it is. `change`: the new header's bytes, or a function that edits it."""

    def changed(data):
        entries, body = split(data)
        if callable(change):
            change(entries)
            return join(entries, body)
        return join(change, body)

    return raw(name, changed)


def entry(key, value, tensor=HEAD):
    def change(entries):
        if value is REMOVED:
            del entries[tensor][key]
        else:
            entries[tensor][key] = value

    return header(change)


def tensors(change, name=WEIGHTS):
    """Edits name -> [dtype, shape, bytes] and lays the data out anew."""

    def changed(data):
        entries, body = split(data)
        entries.pop("__metadata__", None)
        found = {n: [e["dtype"], e["shape"], body[slice(*e["data_offsets"])]] for n, e in entries.items()}
        change(found)
        out, pieces, at = {}, [], 0
        for n, (dtype, shape, piece) in found.items():
            out[n] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(piece)]}
            pieces.append(piece)
            at += len(piece)
        return join(out, b"".join(pieces))

    return raw(name, changed)


def without(*names, name=WEIGHTS):
    return tensors(lambda found: [found.pop(n) for n in names], name)


def with_tensor(tensor, dtype, shape, data, name=WEIGHTS):
    return tensors(lambda found: found.update({tensor: [dtype, shape, data]}), name)


def renamed(old, new):
    return tensors(lambda found: found.update({new: found.pop(old)}))


def reshaped(tensor, shape):
    def change(found):
        found[tensor][1] = shape

    return tensors(change)


def retyped(tensor, dtype, element_bytes):
    def change(found):
        n = 1
        for d in found[tensor][1]:
            n *= d
        found[tensor] = [dtype, found[tensor][1], bytes(n * element_bytes)]

    return tensors(change)


PATTERNS = {
    ("F32", "nan"): b"\0\0\xc0\x7f", ("F32", "inf"): b"\0\0\x80\x7f", ("BF16", "nan"): b"\xc0\x7f",
    ("BF16", "inf"): b"\x80\xff", ("F8_E4M3", "nan"): b"\xff",
}


def number(tensor, at, value):
    """Puts nan or inf in the place of one number."""

    def change(found):
        dtype, _, data = found[tensor]
        pattern = PATTERNS[dtype, value]
        begin = at * len(pattern)
        found[tensor][2] = data[:begin] + pattern + data[begin + len(pattern) :]

    return tensors(change)
