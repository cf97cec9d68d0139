#!/usr/bin/env python3
"""Speculative decoding on held-out text: how many drafts are accepted, and the speed beside that without drafts, turn about.

    bench/draft_acceptance.py --fathom build/release/src/fathom [--model models/shakespeare] [--text data/tinyshakespeare-val.txt] \
        [--prompts 200] [--prompt-chars 100] [--max-tokens 64] [--depths 1,2,3] [--temperature 0] [--threads 1]

Prompts are cut from the text at even distances. Prints a table; fails when a greedy output differs from the one without drafts.
"""
import argparse
import json
import subprocess


def generate(options, prompt, depth):
    command = [options.fathom, "generate", "--json", "--quiet", "--ignore-eos", "--model", options.model, "--prompt", prompt,
               "--max-tokens", str(options.max_tokens), "--temperature", str(options.temperature), "--threads", str(options.threads)]
    if depth > 0:
        command += ["--draft", "mtp", "--draft-tokens", str(depth)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fathom", required=True)
    parser.add_argument("--model", default="models/shakespeare")
    parser.add_argument("--text", default="data/tinyshakespeare-val.txt")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--prompt-chars", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--depths", default="1,2,3")
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    depths = [0, *map(int, options.depths.split(","))]
    with open(options.text, encoding="utf-8") as file:
        text = file.read()
    answers = {depth: [] for depth in depths}
    for p in range(options.prompts):
        begin = p * (len(text) - options.prompt_chars) // options.prompts
        for depth in depths:
            answers[depth].append(generate(options, text[begin : begin + options.prompt_chars], depth))

    def total(depth, key):
        return sum(answer[key] for answer in answers[depth])

    def speed(depth):
        return sum(len(answer["ids"]) - 1 for answer in answers[depth]) / total(depth, "decode_s")

    print("| drafts | accepted | tokens a pass | tokens/s | ratio | outputs as without |\n| --- | --- | --- | --- | --- | --- |")
    differ = 0
    for depth in depths:
        tokens = sum(len(answer["ids"]) for answer in answers[depth])
        same = sum(a["ids"] == b["ids"] for a, b in zip(answers[depth], answers[0]))
        differ += options.prompts - same
        accepted = f"{total(depth, 'accepted') / total(depth, 'drafted'):.1%}" if total(depth, "drafted") else "-"
        print(f"| {depth} | {accepted} | {tokens / total(depth, 'main_passes'):.2f} | {speed(depth):.0f} | "
              f"{speed(depth) / speed(0):.2f} | {same} of {options.prompts} |")
    if options.temperature == 0 and differ > 0:
        raise SystemExit(f"{differ} greedy outputs differ from those without drafts")


main()
