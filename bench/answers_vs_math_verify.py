#!/usr/bin/env python3
"""How fathom compares mathematical answers beside the package math-verify (0.9; docs/evaluation_answers.md has the figures).

  bench/answers_vs_math_verify.py PROBE MATH.jsonl [--pairs 4000] [--part 0/1] [--list FILE]

PROBE is build/release/tests/answers_probe; MATH.jsonl has a solution with \\boxed{} a line (MATH's test set). Needs a Python with the
package math-verify, which it does not install. Makes pairs (given, expected) from the answers of the file: other ways to write
them, which must be the same, and near misses, which must not be. Every pair on which the two disagree, or that either gets
wrong, goes to FILE (else to standard output), one JSON object a line."""

import argparse
import json
import logging
import random
import re
import subprocess
import sys
from fractions import Fraction


def boxed(solution):
    at = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    begin = solution.find("{", at)
    if at < 0 or begin < 0 or "$" in solution[at:begin]:
        return None
    depth = 0
    for i in range(begin, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[i], 0)
        if depth == 0:
            return solution[begin + 1:i].strip()
    return None


FRACTION = re.compile(r"^(-?)\\[dtc]?frac\{(\d+)\}\{(\d+)\}$")
INTEGER = re.compile(r"^-?\d+$")
TUPLE = re.compile(r"^(?:\\left)?\s*([(\[])(.*?)(?:\\right)?\s*([)\]])$", re.S)
ROOT = re.compile(r"^(\d*)\\sqrt\{(\d+)\}$")
TERMS = re.compile(r"(?<=[\w}])\s*([+-])\s*")


def parts_of(text):
    """At commas outside of braces and brackets."""
    parts, depth, begin = [], 0, 0
    for i, c in enumerate(text):
        depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(c, 0)
        if c == "," and depth == 0 and not text.startswith(",\\!", i):
            parts.append(text[begin:i].strip())
            begin = i + 1
    return parts + [text[begin:].strip()]


def same_ways(answer, rng):
    """Other ways to write an answer."""
    out = []
    if "\\frac" in answer:
        out += [answer.replace("\\frac", "\\dfrac"), answer.replace("\\frac", "\\tfrac")]
        out.append(re.sub(r"(?<![\d ])\\frac\{(\w+)\}\{(\w+)\}", r"(\1)/(\2)", answer))
    if m := FRACTION.match(answer):
        value = Fraction(int(m[2]), int(m[3])) * (-1 if m[1] else 1)
        out += [f"{value.numerator}/{value.denominator}", f"\\frac{{{m[1]}{m[2]}}}{{{m[3]}}}",
                f"{m[1]}\\frac{{{2 * int(m[2])}}}{{{2 * int(m[3])}}}", f"{float(value):.8f}"]
        rest = value.denominator
        while rest % 2 == 0: rest //= 2
        while rest % 5 == 0: rest //= 5
        if rest == 1: out.append(repr(float(value)))
    if INTEGER.match(answer):
        out += [answer + ".0", answer + "^\\circ", answer + "\\text{ units}", f"x = {answer}", answer + "\\text{ cm}",
                f"{int(answer):,}", f"\\frac{{{3 * int(answer)}}}{{3}}", answer + ".", f"\\boxed{{{answer}}}", f"\\${answer}"]
        if int(answer) > 0: out.append(f"\\sqrt{{{int(answer) ** 2}}}")
    if m := ROOT.match(answer):
        k = int(m[1] or 1)
        out += [f"\\sqrt{{{k * k * int(m[2])}}}", f"{m[1]}*sqrt({m[2]})" if m[1] else f"sqrt({m[2]})", f"{k}\\cdot {m[2]}^{{1/2}}"]
    if m := TUPLE.match(answer):
        inside = ", ".join(parts_of(m[2]))
        out += [f"\\left{m[1]} {inside} \\right{m[3]}", f"{m[1]}{','.join(parts_of(m[2]))}{m[3]}"]
    elif "," in answer and "\\text" not in answer and "{" not in answer[:1] and len(parts_of(answer)) > 1 and "\\begin" not in answer \
            and "\\cup" not in answer and not re.match(r"^\\?\$?\d{1,3}(,\d{3})+", answer):
        parts = parts_of(answer)
        rng.shuffle(parts)
        out += [", ".join(parts), "\\{" + ", ".join(parts) + "\\}", " and ".join(parts) if len(parts) == 2 else ",".join(parts)]
    if ",\\!" in answer:
        out += [answer.replace(",\\!", ","), answer.replace(",\\!", "")]
    if "^\\circ" in answer: out += [answer.replace("^\\circ", ""), answer.replace("^\\circ", "^{\\circ}")]
    if answer.startswith("\\$"): out.append(answer[2:].strip())
    if m := re.match(r"^(\d[\d.]*)\s*(\\text|\\mbox)\s*\{.*$", answer): out.append(m[1])
    if m := re.match(r"^\\text\{(.*)\}$", answer): out += [m[1], f"\\mbox{{{m[1]}}}", f"\\text{{ {m[1]}}}"]
    if m := re.match(r"^([a-z]) = (.*)$", answer): out.append(m[2])
    if re.match(r"^[\w\s^+\-]+$", answer) and TERMS.search(answer) and not INTEGER.match(answer) and re.search(r"[a-z]", answer):
        terms = re.split(TERMS, answer)
        signed = [("" if terms[0].startswith("-") else "+") + terms[0]] + [terms[i] + terms[i + 1] for i in range(1, len(terms), 2)]
        out.append("".join(reversed(signed)).lstrip("+"))
    if "\\pi" in answer and "\\text" not in answer: out.append(answer.replace("\\pi", "\\pi "))
    if "pmatrix" in answer: out.append(answer.replace("pmatrix", "bmatrix"))
    out.append(f"${answer}$")
    out.append(answer.replace(" ", "") if "\\text" not in answer and not re.search(r"\\[a-z]* [a-z\d]", answer) else "  " + answer)
    return [(way, True) for way in dict.fromkeys(out) if way != answer]


def near_misses(answer, rng):
    """Answers like it that are wrong."""
    out = []
    digits = [m for m in re.finditer(r"\d+", answer)]
    if digits:
        for m in rng.sample(digits, min(2, len(digits))):
            for change in (1, -1, 10):
                n = int(m[0]) + change
                if n >= 0: out.append(answer[:m.start()] + str(n).zfill(len(m[0]) if m[0].startswith("0") else 1) + answer[m.end():])
    if INTEGER.match(answer):
        n = int(answer)
        if n: out += [str(-n), answer + "0", answer + ".1", answer + "\\%" if abs(n) == 7 else f"\\frac{{{n}}}{{2}}", answer + "x", f"{answer}\\pi"]
        if len(answer) > 1 and answer != answer[::-1] and n > 0: out.append(answer[::-1])
    if m := FRACTION.match(answer):
        value = Fraction(int(m[2]), int(m[3]))
        out += [f"{m[1]}\\frac{{{m[3]}}}{{{m[2]}}}" if m[2] != m[3] else "2", f"{'' if m[1] else '-'}\\frac{{{m[2]}}}{{{m[3]}}}"]
        for rounded in (f"{float(value):.2f}", f"{float(value):.4f}"):
            if value != Fraction(rounded): out.append(m[1] + rounded)
    if m := TUPLE.match(answer):
        parts = parts_of(m[2])
        if len(parts) > 1:
            swapped = parts[1:] + parts[:1]
            if swapped != parts and "\\cup" not in answer: out.append(f"{m[1]}{', '.join(swapped)}{m[3]}")
            if len(parts) == 2 and "\\cup" not in answer: out.append(f"{m[1]}{', '.join(parts)}{')' if m[3] == ']' else ']'}")
            out.append(f"{m[1]}{', '.join(parts[:-1] + [parts[-1], '0'])}{m[3]}" if "\\cup" not in answer else parts[0])
    elif "," in answer and len(parts_of(answer)) > 1 and "\\text" not in answer and ",\\!" not in answer and "\\cup" not in answer \
            and not re.match(r"^\\?\$?\d{1,3}(,\d{3})+", answer):
        parts = parts_of(answer)
        out += [", ".join(parts[:-1]), ", ".join(parts + ["1729"])]
    if "\\sqrt" in answer: out.append(answer.replace("\\sqrt", "", 1))
    if "\\pi" in answer and "{\\pi" not in answer: out.append(answer.replace("\\pi", "", 1))
    if " + " in answer: out.append(answer.replace(" + ", " - ", 1))
    if "x" in answer and "\\text" not in answer and "\\begin" not in answer and "\\in" not in answer and "x =" not in answer and "x=" not in answer:
        out.append(re.sub(r"(?<![a-z\\\\])x", "t", answer))
    if m := re.match(r"^\\text\{\(?([A-F])\)?\}$", answer): out.append(f"({'B' if m[1] == 'A' else 'A'})")
    elif m := re.match(r"^\\text\{(\w{3,})\}$", answer): out += [m[1][::-1], m[1][:-1]]
    return [(way, False) for way in dict.fromkeys(out) if way.strip() and way != answer]


def pairs_from(path, count, seed):
    rng = random.Random(seed)
    answers = []
    for line in open(path, encoding="utf-8"):
        answer = boxed(json.loads(line)["solution"])
        if answer and "\n" not in answer: answers.append(answer)
    answers = sorted(set(answers))
    rng.shuffle(answers)
    # Answers that are plain whole numbers are half of all: a few of them do.
    plain = [a for a in answers if INTEGER.match(a)]
    answers = [a for a in answers if not INTEGER.match(a)] + plain[:150]
    rng.shuffle(answers)
    out = []
    for answer in answers:
        ways, misses = same_ways(answer, rng), near_misses(answer, rng)
        for given, same in rng.sample(ways, min(2, len(ways))) + rng.sample(misses, min(2, len(misses))):
            out.append((given, answer, same))
    return out[:count]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("probe")
    arguments.add_argument("math")
    arguments.add_argument("--pairs", type=int, default=4000)
    arguments.add_argument("--part", default="0/1", help="I/N: the I-th of N parts of the pairs")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--list")
    options = arguments.parse_args()
    try:
        from math_verify import parse, verify
    except ImportError:
        sys.exit("answers_vs_math_verify.py: install the package math-verify first: python3 -m pip install math-verify")
    logging.disable(logging.CRITICAL)
    part, parts = map(int, options.part.split("/"))
    pairs = pairs_from(options.math, options.pairs, options.seed)[part::parts]
    lines = "".join(json.dumps([given, expected]) + "\n" for given, expected, _ in pairs)
    ours = subprocess.run([options.probe], input=lines, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    counts = {}
    listing = open(options.list, "a", encoding="utf-8") if options.list else sys.stdout
    for (given, expected, same), mine in zip(pairs, ours, strict=True):
        mine = mine == "1"
        box = lambda text: text if text.startswith("$") or "\\boxed" in text else f"${text}$"
        peer = bool(verify(parse(box(expected)), parse(box(given))))
        key = (same, mine, peer)
        counts[key] = counts.get(key, 0) + 1
        if mine != peer or mine != same:
            print(json.dumps({"given": given, "expected": expected, "made to be": same, "fathom": mine, "math-verify": peer}), file=listing, flush=True)
    agreement = sum(n for (_, mine, peer), n in counts.items() if mine == peer)
    print(json.dumps({"pairs": len(pairs), "agree": agreement,
                      "same": sum(n for (same, _, _), n in counts.items() if same),
                      "fathom refuses what is same": sum(n for (same, mine, _), n in counts.items() if same and not mine),
                      "fathom takes what is not": sum(n for (same, mine, _), n in counts.items() if not same and mine),
                      "math-verify refuses what is same": sum(n for (same, _, peer), n in counts.items() if same and not peer),
                      "math-verify takes what is not": sum(n for (same, _, peer), n in counts.items() if not same and peer)}))


if __name__ == "__main__":
    main()
