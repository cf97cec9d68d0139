#!/usr/bin/env python3
"""Random schemas and texts, read by grammar_probe and by xgrammar: how many bytes of each text are accepted, and whether it may end there.

usage: xgrammar_compare.py PROBE [COUNT [SEED [SHOWN]]]. Prints how often they agree and, by kind, where they do not, up to
SHOWN of each. Exits with 77 when the Python package xgrammar is missing. Texts have no white space outside of strings, since
what is allowed there differs.
"""

import collections
import json
import random
import subprocess
import sys

try:
    import xgrammar
except ImportError:
    sys.exit(77)


class Maker:
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

    def text(self, s):
        text = json.dumps(self.value(s), ensure_ascii=self.chance(0.2), separators=(",", ":"))
        if self.chance(0.5):  # one change
            at = self.r.randrange(len(text) + 1)
            new = self.r.choice(["", "", '"', "0", "1", ",", "}", "]", "[", "{", "a", "\\", "e", ".", "-", ":", "é", "\\u0061", "null"])
            text = text[:at] + new + text[at + self.r.randint(0, 1):]
        return text

    def pair(self):
        self.defs = {}
        s = self.schema(3)
        if not isinstance(s, dict):
            s = {"anyOf": [s]}
        if self.defs:
            s = {**s, "$defs": self.defs}
        return s, self.text(s)


class Other:
    def __init__(self):
        self.vocabulary = xgrammar.TokenizerInfo([bytes([i]) for i in range(256)] + [b"</s>"], stop_token_ids=[256])
        self.compiler = xgrammar.GrammarCompiler(self.vocabulary, cache_enabled=False)

    def answer(self, schema, text):
        try:
            grammar = self.compiler.compile_json_schema(json.dumps(schema), any_whitespace=False, separators=(",", ":"), strict_mode=True)
        except Exception as error:  # whatever it raises
            return {"error": str(error).splitlines()[0]}
        matcher = xgrammar.GrammarMatcher(grammar)
        accepted = 0
        for byte in text.encode():
            if not matcher.accept_string(bytes([byte])):
                break
            accepted += 1
        return {"accepted": accepted, "can_end": matcher.is_completed()}


def kind_of(ours, theirs, schema, text):
    """The known differences, by where the two part and what the schema has."""
    told, data = json.dumps(schema), text.encode()
    if "error" in ours and "error" in theirs:
        return "refused by both"
    if "additional items are not allowed" in theirs.get("error", ""):
        return "xgrammar: an array with minItems and no items is refused"
    if "error" in ours or "error" in theirs:
        return "? refused by " + ("us" if "error" in ours else "xgrammar")
    at = min(ours["accepted"], theirs["accepted"])
    here, before = data[at:at + 1], data[max(0, at - 1):at]
    if ours["accepted"] > theirs["accepted"]:
        if here == b"\\" and ("minLength" in told or "maxLength" in told or "pattern" in told):
            return "xgrammar: no escapes in strings with a limited length or a pattern"
        if before == b"[" and '"type": "array"' in told:
            return "xgrammar: an array with minItems or maxItems, or behind two $ref, and no items is empty"
    if theirs["accepted"] > ours["accepted"]:
        if here == b"9" and before == b"2" and '"date' in told:
            return "xgrammar: February has 29 days in all years"
        if here == b"u" and before == b"\\":
            return "we: keys, and what begins like one of them, have no needless escapes"
        if '"additionalProperties": true' in told or '"additionalProperties": {' in told:
            return "xgrammar: additional keys may be named ones, also spelled with escapes"
        if b"\\u" in data[:at]:
            return "we: keys and enum are written without needless escapes"
    return f"? we stop before {data[ours['accepted']:][:8]!r}, xgrammar before {data[theirs['accepted']:][:8]!r}"


def main():
    probe, count, seed, shown = (sys.argv[1:] + [None] * 4)[:4]
    count, seed, shown = int(count or 1000), int(seed or 1), int(shown or 2)
    maker, other = Maker(seed), Other()
    pairs = [maker.pair() for _ in range(count)]
    lines = "".join(json.dumps({"schema": s, "text": t}) + "\n" for s, t in pairs)
    answers = subprocess.run([probe], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    kinds = collections.defaultdict(list)
    whole = 0
    for (schema, text), line in zip(pairs, answers, strict=True):
        ours, theirs = json.loads(line), other.answer(schema, text)
        whole += ours.get("can_end", False) and ours["accepted"] == len(text.encode())
        if ours != theirs:
            kinds[kind_of(ours, theirs, schema, text)].append((schema, text, ours, theirs))
    print(f"{count} pairs, {whole} texts accepted whole by us, {sum(map(len, kinds.values()))} disagreements")
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(found):5} {kind}")
        for schema, text, ours, theirs in found[:shown]:
            print(f"        {json.dumps(schema, ensure_ascii=False)}\n        {text}\n        us {ours}, xgrammar {theirs}")


if __name__ == "__main__":
    main()
