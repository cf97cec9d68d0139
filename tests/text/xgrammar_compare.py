#!/usr/bin/env python3
"""Random schemas, grammars and regular expressions with texts, read by grammar_probe and by xgrammar: how many bytes of each
text are accepted, and whether it may end there. Differences that nobody has explained below are failures.

    xgrammar_compare.py PROBE [COUNT [SEED [SHOWN]]]    COUNT pairs of each sort; SHOWN examples of each explained difference

Runs where xgrammar is installed (FATHOM_PYTHON names a Python that has it); exits 77, "skipped", elsewhere. Texts for schemas
have no white space outside of strings, since what is allowed there differs.
"""
import collections
import contextlib
import importlib.util
import json
import os
import pathlib
import random
import re
import subprocess
import sys
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "checkpoint"))
import chosen_python

chosen_python.switch()

try:
    import tvm_ffi  # first: it looks at torch too
    for package in ("torch", "transformers"):  # gigabytes for what is not asked of xgrammar here
        if importlib.util.find_spec(package) is None:
            sys.modules[package] = mock.MagicMock()
    import xgrammar
except ImportError as missing:
    chosen_python.skip(missing, "xgrammar")


def changed(r, text, pieces):
    """Half of the texts get one change."""
    if r.random() < 0.5:
        at = r.randrange(len(text) + 1)
        text = text[:at] + r.choice(pieces) + text[at + r.randint(0, 1):]
    return text


class Schemas:
    kind = "schema"

    def __init__(self, seed):
        self.r = random.Random(seed)
        self.defs = {}

    def chance(self, p):
        return self.r.random() < p

    def schema(self, depth):
        kinds = ["string", "string", "integer", "integer", "number", "boolean", "null", "enum", "const", "any"]
        if depth > 0:
            kinds += ["object"] * 5 + ["array"] * 4 + ["anyOf"] * 2 + ["ref", "types"]
        kind = self.r.choice(kinds)
        if kind == "any":
            return {}
        if kind == "enum":
            return {"enum": self.r.sample(["a", "ab", "b", "é", 'q"q', 1, -2.5, None, True, "", "a\n", {"k": [1]}], self.r.randint(1, 4))}
        if kind == "const":
            return {"const": self.r.choice(["x", 12, None, False, "é😀", [1, "a"]])}
        if kind == "anyOf":
            return {self.r.choice(["anyOf", "oneOf"]): [self.schema(depth - 1) for _ in range(self.r.randint(1, 3))]}
        if kind == "types":
            return {"type": self.r.sample(["string", "integer", "null", "boolean"], 2)}
        if kind == "ref":
            name = self.r.choice("pqr")
            if name not in self.defs:
                self.defs[name] = {"type": "null"}
                self.defs[name] = self.schema(depth - 1)
            return {"$ref": "#/$defs/" + name}
        if kind == "string":
            s = {"type": "string"}
            what = self.r.randint(0, 5)
            if what == 1:
                s["minLength"] = self.r.randint(0, 3)
            if what in (1, 2):
                s["maxLength"] = self.r.randint(3, 5)
            if what == 3:
                s["pattern"] = self.r.choice(["^[a-c]{1,3}$", "^a+b?$", "^(x|yz)*$", "^\\d{2}-\\w$", "^[^a-z]$", "^.$"])
            if what == 4:
                s["format"] = self.r.choice(["date", "uuid", "ipv4", "time", "date-time"])
            return s
        if kind == "integer":
            s = {"type": "integer"}
            if self.chance(0.4):
                s[self.r.choice(["minimum", "exclusiveMinimum"])] = self.r.randint(-120, 20)
            if self.chance(0.4):
                s[self.r.choice(["maximum", "exclusiveMaximum"])] = self.r.randint(22, 1200)
            return s
        if kind == "number":
            s = {"type": "number"}
            if self.chance(0.3):
                s["minimum"] = self.r.choice([0, -1, -2.5, 0.5])
            if self.chance(0.3):
                s["maximum"] = self.r.choice([1, 10, 12.75, 99.5])
            return s
        if kind == "array":
            s = {"type": "array"}
            if self.chance(0.7):
                s["items"] = self.schema(depth - 1)
            if self.chance(0.3):
                s["prefixItems"] = [self.schema(depth - 1) for _ in range(self.r.randint(1, 2))]
                if "items" not in s:
                    s["items"] = False
                s["minItems"] = len(s["prefixItems"])
            elif self.chance(0.4):
                s["minItems"] = self.r.randint(0, 2)
            if self.chance(0.4):
                s["maxItems"] = self.r.randint(s.get("minItems", 0), 3)
            if s.get("items") is False:
                s.pop("maxItems", None)
            return s
        if kind == "object":
            s = {"type": "object"}
            names = self.r.sample(["a", "b", "ab", "é", "x y", 'q"q'], self.r.randint(0, 3))
            if names:
                s["properties"] = {name: self.schema(depth - 1) for name in names}
                s["required"] = [name for name in names if self.chance(0.5)]
            s["additionalProperties"] = self.r.choice([False, False, False, True, {"type": "integer"}])
            return s
        return {"type": kind}

    def value(self, s, depth=6):
        """Mostly valid."""
        if s is True or s == {} or depth == 0:
            return self.r.choice([1, "a", None, [], {}, [True], {"z": 0.5}])
        if "$ref" in s:
            return self.value(self.defs[s["$ref"][-1]], depth - 1)
        for key in ("anyOf", "oneOf"):
            if key in s:
                return self.value(self.r.choice(s[key]), depth - 1)
        if "enum" in s:
            return self.r.choice(s["enum"])
        if "const" in s:
            return s["const"]
        kind = s["type"] if isinstance(s["type"], str) else self.r.choice(s["type"])
        if kind == "null":
            return None
        if kind == "boolean":
            return self.chance(0.5)
        if kind == "integer":
            return self.r.choice([self.r.randint(-130, 40), self.r.randint(0, 1300), 0, 5])
        if kind == "number":
            return self.r.choice([0, 1, -1.5, 0.25, 10.5, 12.75, 1e20, 2.5e-7, 7])
        if kind == "string":
            if "pattern" in s:
                return self.r.choice(["a", "ab", "abc", "aab", "xyz", "12-a", "A", "é", '"', "\n", "yzx"])
            if "format" in s:
                return self.r.choice(["2024-02-29", "2023-02-29", "12:00:00Z", "23:59:60Z", "2024-01-01T00:00:00.5+01:00", "1.2.3.255", "256.0.0.1",
                                      "123e4567-e89b-12d3-a456-426614174000"])
            return "".join(self.r.choice(["a", "b", "é", "😀", '"', "\\", "\n", " ", "\x01", "/"]) for _ in range(self.r.randint(0, 6)))
        if kind == "array":
            n = self.r.randint(0, 3)
            first = s.get("prefixItems", [])
            rest = s.get("items", True)
            return [self.value(first[i], depth - 1) for i in range(len(first))] + ([] if rest is False else [self.value(rest, depth - 1) for _ in range(n)])
        out = {}
        for name, sub in s.get("properties", {}).items():
            if name in s["required"] or self.chance(0.6):
                out[name] = self.value(sub, depth - 1)
        if s["additionalProperties"] is not False and self.chance(0.5):
            out[self.r.choice(["z", "abc", "", "a"])] = self.value(s["additionalProperties"], depth - 1)
        return out

    def pair(self):
        self.defs = {}
        s = self.schema(3)
        if self.defs:
            s = {**s, "$defs": self.defs}
        text = json.dumps(self.value(s), ensure_ascii=self.chance(0.2), separators=(",", ":"))
        return s, changed(self.r, text, ["", "", '"', "0", "1", ",", "}", "]", "[", "{", "a", "\\", "e", ".", "-", ":", "é", "\\u0061", "null"])


CHARACTERS = ["a", "b", "c", "0", "1", "-", "]", "[", "^", '"', "\\", "/", " ", "\n", "é", "€", "😀", ".", "x", "z"]


class Expressions:
    """Trees of texts, classes, sequences, alternatives and repetitions, how they are written, and texts that they match."""

    def __init__(self, seed):
        self.r = random.Random(seed)

    def tree(self, depth):
        kind = self.r.choice(["text", "text", "class"] + (["sequence", "sequence", "either", "times", "times"] if depth else []))
        if kind == "text":
            return kind, "".join(self.r.choices(CHARACTERS, k=self.r.randint(1, 3)))
        if kind == "class":
            ranges = []
            for _ in range(self.r.randint(1, 3)):
                first = self.r.choice(CHARACTERS)
                ranges.append((first, chr(ord(first) + self.r.choice([0, 0, 1, 5, 90]))))
            return kind, self.r.random() < 0.25, ranges
        if kind == "times":
            least = self.r.randint(0, 2)
            return kind, self.tree(depth - 1), *self.r.choice([(0, None), (1, None), (0, 1), (least, least), (least, None), (least, least + 2)])
        return kind, [self.tree(depth - 1) for _ in range(self.r.randint(2, 3))]

    def sample(self, tree, fuel=12):
        kind, *of = tree
        if kind == "text":
            return of[0]
        if kind == "class":
            if of[0]:
                return self.r.choice("aZ9é~\n")
            first, last = self.r.choice(of[1])
            return chr(self.r.randint(ord(first), ord(last)))
        if kind == "times":
            most = of[1] + 2 if of[2] is None else of[2]
            return "".join(self.sample(of[0], fuel - 1) for _ in range(self.r.randint(of[1], most)))
        if kind == "either":
            return self.sample(self.r.choice(of[0]), fuel - 1)
        if kind == "sequence":
            return "".join(self.sample(one, fuel - 1) for one in of[0])
        return self.sample(self.rules[of[0]], fuel - 1) if fuel > 0 else ""

    def times(self, least, most):
        if (least, most) in ((0, None), (1, None), (0, 1)) and self.r.random() < 0.8:
            return {(0, None): "*", (1, None): "+", (0, 1): "?"}[least, most]
        if least == most:
            return f"{{{least}}}"
        return f"{{{least},{'' if most is None else most}}}"

    def pair(self):
        source, tree = self.written()
        text = self.sample(tree)[:40]  # where many ways lead on, xgrammar takes minutes for hundreds of characters
        return source, changed(self.r, text, CHARACTERS + [""] * 6)


class Regexes(Expressions):
    kind = "regex"

    def tree(self, depth):
        if self.r.random() < 0.1:
            return "either", [("named", self.r.choice([".", "\\d", "\\D", "\\w", "\\W", "\\s", "\\S"])), ("text", self.r.choice("a0 "))]
        return super().tree(depth)

    def sample(self, tree, fuel=12):
        return self.r.choice("a0 _é\n€\u2028\t\r") if tree[0] == "named" else super().sample(tree, fuel)

    def write(self, tree):
        kind, *of = tree
        if kind == "named":
            return of[0]
        if kind == "text":
            return "".join("\\" + c if c in '\\[]^.-/' else "\\n" if c == "\n" else c for c in of[0])
        if kind == "class":
            name = lambda c: "\\" + c if c in "\\[]^-" else "\\n" if c == "\n" else c
            return "[" + "^" * of[0] + "".join(name(a) if a == b else name(a) + "-" + name(b) for a, b in of[1]) + "]"
        if kind == "times":
            return "(" + self.write(of[0]) + ")" + self.times(*of[1:])
        if kind == "either":
            return self.r.choice(["(", "(?:"]) + "|".join(self.write(one) for one in of[0]) + ")"
        return "".join(self.write(one) for one in of[0])

    def written(self):
        tree = self.tree(3)
        return self.write(tree), tree


class Grammars(Expressions):
    kind = "gbnf"

    def tree(self, depth):
        if depth > 0 and self.r.random() < 0.15:
            rule = self.r.choice(list(self.rules))
            # Text in front, since no rule may begin with itself.
            return "sequence", [("text", self.r.choice("abc")), ("either", [("rule", rule), ("text", "b")])]
        return super().tree(depth)

    def write(self, tree):
        kind, *of = tree
        escaped = {"\n": "\\n", "\\": "\\\\"}
        if kind == "text":
            return '"' + "".join({**escaped, '"': '\\"'}.get(c, c) for c in of[0]) + '"'
        if kind == "class":
            name = lambda c: {**escaped, "]": "\\]", "-": "\\-", "^": "\\^", "[": "\\["}.get(c, c)
            return "[" + "^" * of[0] + "".join(name(a) if a == b else name(a) + "-" + name(b) for a, b in of[1]) + "]"
        if kind == "times":
            return "(" + self.write(of[0]) + ")" + self.times(*of[1:])
        if kind == "either":
            return "(" + " | ".join(self.write(one) for one in of[0]) + ")"
        return of[0] if kind == "rule" else " ".join(self.write(one) for one in of[0])

    def written(self):
        self.rules = dict.fromkeys(["root", "second", "th-ird"][:self.r.randint(1, 3)])
        for name in self.rules:
            self.rules[name] = self.tree(3)
        return "".join(f"{name} ::= {self.write(tree)}\n" for name, tree in self.rules.items()), self.rules["root"]


@contextlib.contextmanager
def quiet():
    """Without what a library writes to the standard error output."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


class Other:
    def __init__(self):
        self.vocabulary = xgrammar.TokenizerInfo([bytes([i]) for i in range(256)] + [b"</s>"], stop_token_ids=[256])
        self.compiler = xgrammar.GrammarCompiler(self.vocabulary, cache_enabled=False)

    def compiled(self, kind, source):
        if kind == "regex":
            return self.compiler.compile_regex(source)
        if kind == "gbnf":
            return self.compiler.compile_grammar(source)
        return self.compiler.compile_json_schema(json.dumps(source), any_whitespace=False, separators=(",", ":"), strict_mode=False)

    def answer(self, kind, source, text):
        try:
            grammar = self.compiled(kind, source)
        except Exception as error:  # whatever it raises
            return {"error": str(error).splitlines()[0]}
        matcher = xgrammar.GrammarMatcher(grammar)
        accepted = 0
        for byte in text.encode():
            if not matcher.accept_string(bytes([byte])):
                break
            accepted += 1
        return {"accepted": accepted, "can_end": matcher.is_completed()}


def schemas_within(value):
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from schemas_within(one)


def explanation(kind, source, text, ours, theirs):
    """Why the two differ, where that is known; else None."""
    if "too ambiguous" in ours.get("error", ""):
        return "we read a text in no more than 8192 ways"
    if "there is no text" in ours.get("error", ""):
        return "no text follows it: we refuse it, xgrammar leads to where nothing can follow"
    if "begins with itself" in ours.get("error", ""):
        return "it refers to itself without reading anything, which the specification leaves open: we refuse it"
    if "error" in ours or "error" in theirs:
        return None
    data = text.encode()
    at = min(ours["accepted"], theirs["accepted"])
    more = ours["accepted"] > theirs["accepted"]
    if kind == "schema":
        return explained_schema(source, data[:at], data[at:at + 1], more)
    if kind == "regex" and "[\\^" in source:
        return "xgrammar takes [\\^...] for [^...]"
    if kind == "regex" and not more and "." in source and re.search("[\n\r\u2028]", data[:at + 3].decode(errors="ignore")):
        return "xgrammar's . matches the ends of lines, ECMAScript's does not"
    return None


def explained_schema(schema, before, here, more):
    """`before` was accepted by both, `here` only by us (`more`) or by xgrammar."""
    has = lambda *keys: any(key in one for one in schemas_within(schema) for key in keys)
    others = any(one.get("additionalProperties", False) is not False for one in schemas_within(schema))
    # Of these names xgrammar does not know that they are none of the others.
    named = [json.dumps(name, ensure_ascii=False).encode() for one in schemas_within(schema) for name in one.get("properties", {}) if name in ("é", 'q"q')]
    if more:
        if here == b"\\" and has("minLength", "maxLength", "pattern"):
            return "xgrammar has no escapes in strings with a length or a pattern"
        if others and b"\\" in before and has("minLength", "maxLength", "pattern") and any(name + b":" in before for name in named):
            return "both of: no escapes in strings with a length or a pattern; additional keys may be named ones"
        if here == b"0" and before.endswith(b"-"):
            return "xgrammar's integers are never -0"
        return "a change put white space between two parts" if here == b" " else None
    if re.search(rb"\d\d-02-2$", before) and here == b"9":
        return "xgrammar's February has 29 days in all years"
    if re.search(rb'"(\d+\.){0,3}0$', before) and here.isdigit() and has("format"):
        return "xgrammar's IPv4 addresses may have leading zeros"
    if re.search(rb"\d\d:\d\d:$", before) and here == b"6":
        return "we write no leap seconds"
    if re.search(rb"\d[eE][-+]?\d\d$", before) and here.isdigit():
        return "our exponents have up to two digits"
    if re.search(rb"\\u[dD][0-9a-fA-F]*$|\\u[dD][89abAB]..\\?u?$", before):
        return "halves of surrogate pairs are no characters to us"
    if here == b"u" and before.endswith(b"\\") and has("properties", "enum", "const"):
        return "we write keys, and what begins like one, without needless escapes"
    if others and any(name + b":" in before or (before + here).endswith(name) for name in named):
        return "xgrammar's additional keys may be named ones that are not ASCII or have quotes"
    return None


def main():
    probe, count, seed, shown = (sys.argv[1:] + [None] * 4)[:4]
    count, seed, shown = int(count or 1000), int(seed or 1), int(shown or 0)
    other, failures = Other(), 0
    for maker in (Schemas(seed), Grammars(seed), Regexes(seed)):
        pairs = [maker.pair() for _ in range(count)]
        lines = "".join(json.dumps({maker.kind: source, "text": text}) + "\n" for source, text in pairs)
        answers = subprocess.run([probe], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
        found = collections.defaultdict(list)
        whole = 0
        for (source, text), line in zip(pairs, answers, strict=True):
            ours = json.loads(line)
            with quiet():
                theirs = other.answer(maker.kind, source, text)
            is_whole = ours.get("can_end", False) and ours["accepted"] == len(text.encode())
            whole += is_whole
            if is_whole and maker.kind == "schema":
                json.loads(text)
            if ours != theirs and not ("error" in ours and "error" in theirs):
                found[explanation(maker.kind, source, text, ours, theirs)].append((source, text, ours, theirs))
        print(f"{maker.kind}: {count} pairs, {whole} texts whole; they differ in {sum(map(len, found.values()))}")
        for why, some in sorted(found.items(), key=lambda item: -len(item[1])):
            print(f"{len(some):6} {why or 'not explained'}")
            for source, text, ours, theirs in some[:shown if why else 10]:
                print(f"       {json.dumps(source, ensure_ascii=False)}\n       {json.dumps(text, ensure_ascii=False)}\n       we {ours}, xgrammar {theirs}")
        failures += len(found[None])
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
