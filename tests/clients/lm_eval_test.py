#!/usr/bin/env python3
"""lm-evaluation-harness scores a model through fathom serve, and its numbers are those of the logits that fathom score writes.

    lm_eval_test.py FATHOM [--full]

The tasks are made here, of held-out text: nothing is loaded from elsewhere. --full takes ten times the questions.
"""
import json
import logging
import os
import struct
import sys
import unittest

import client_packages

# Read when the packages are imported.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
client_packages.need("lm_eval", "datasets", "aiohttp", "tenacity")

FULL = "--full" in sys.argv
if FULL:
    sys.argv.remove("--full")

import numpy as np

from program import Case, fathom
from serve_test import SHAKESPEARE, Server

TEXT = (client_packages.ROOT / "data/tinyshakespeare-val.txt").read_text()
BOS = 256  # of the model that ships, whose other tokens are bytes

TASKS = {
    "lines": "output_type: multiple_choice\ndoc_to_text: \"{{context}}\"\ndoc_to_target: answer\ndoc_to_choice: choices\ntarget_delimiter: \"\\n\"\n"
             "metric_list:\n  - metric: acc\n  - metric: acc_norm\n",
    "passages": "output_type: loglikelihood_rolling\ndoc_to_text: \"\"\ndoc_to_target: \"{{text}}\"\nmetric_list:\n  - metric: bits_per_byte\n",
    "written": "output_type: generate_until\ndoc_to_text: \"{{context}}\"\ndoc_to_target: \"{{wanted}}\"\ngeneration_kwargs:\n  until: [\"\\n\\n\"]\n"
               "  max_gen_toks: 40\n  temperature: 0\nmetric_list:\n  - metric: exact_match\n",
}


def log_probabilities(case, sequences):
    """Of each token of each sequence behind its first, from the logits."""
    file = case.folder / "out.safetensors"
    case.assert_done(fathom("score", "--model", SHAKESPEARE, "--tokens", case.write("ids.json", json.dumps(sequences)), "--out", str(file)))
    data = file.read_bytes()
    n, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    begin, end = header["logits"]["data_offsets"]
    logits = np.frombuffer(data[8 + n:][begin:end], np.float32).reshape(header["logits"]["shape"]).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    told, at = [], 0
    for ids in sequences:
        rows = table[at:at + len(ids) - 1]
        told.append((rows[np.arange(len(ids) - 1), ids[1:]], rows.max(1)))
        at += len(ids)
    return told


class Harness(Case):
    def evaluate(self, server, kind, task, documents, chat=False, **options):
        import lm_eval
        from lm_eval.tasks import TaskManager
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        os.environ["HF_HOME"] = str(self.folder / "hf")
        data = self.write(task + ".jsonl", "".join(json.dumps(document) + "\n" for document in documents))
        self.write(task + ".yaml", f"task: {task}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n{TASKS[task]}")
        path = "/v1/chat/completions" if chat else "/v1/completions"
        arguments = {"model": "shakespeare", "base_url": f"http://127.0.0.1:{server.port}{path}", "max_length": 512, "max_retries": 1, **options}
        results = lm_eval.simple_evaluate(model=kind, model_args=arguments, tasks=[task], bootstrap_iters=0, log_samples=True, apply_chat_template=chat,
                                          task_manager=TaskManager(include_path=str(self.folder), include_defaults=False))
        samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
        self.assertEqual(len(samples), len(documents))
        return {name.split(",")[0]: value for name, value in results["results"][task].items()}, samples

    def test_choices_are_scored_as_by_the_logits(self):
        lines = [line for line in TEXT.split("\n") if 20 < len(line) < 60]
        documents = []
        for i in range(200 if FULL else 20):
            first = lines[7 * i]
            choices = [lines[7 * i + 1], *(lines[(7 * i + 211 * k) % len(lines)] for k in (1, 2, 3))]
            documents.append({"context": first, "choices": choices[i % 4:] + choices[:i % 4], "answer": (4 - i % 4) % 4})
        flat = [(list(d["context"].encode()), list(b"\n" + c.encode())) for d in documents for c in d["choices"]]
        wanted = []
        for (context, _), (values, best) in zip(flat, log_probabilities(self, [a + b for a, b in flat])):
            wanted.append((values[len(context) - 1:].sum(), bool((values == best)[len(context) - 1:].all())))
        likeliest = [max(range(4), key=lambda c: wanted[4 * i + c][0]) for i in range(len(documents))]
        accuracy = np.mean([pick == d["answer"] for pick, d in zip(likeliest, documents)])
        with Server(self, "--max-batch", "8") as server:
            for options in ({}, {"batch_size": 4}, {"num_concurrent": 4}, {"tokenized_requests": False}):
                with self.subTest(options=options):
                    results, samples = self.evaluate(server, "local-completions", "lines", documents, **options)
                    told = [(value, greedy) for sample in samples for value, greedy in sample["filtered_resps"]]
                    np.testing.assert_allclose([value for value, _ in told], [value for value, _ in wanted], atol=2e-4, rtol=2e-6)
                    self.assertEqual([greedy for _, greedy in told], [greedy for _, greedy in wanted])
                    self.assertEqual(results["acc"], accuracy)
        self.assertGreater(accuracy, 0.25, "better than chance, or nothing has been compared")
        print(f"lines: {len(documents)} questions, accuracy {accuracy:.3f} in both")

    def test_what_is_greedy_is_told(self):
        contexts = ["ROMEO:", "First Citizen:", "What say you, my lord?"]
        documents = []
        for context in contexts:
            said = json.loads(self.assert_done(fathom("generate", "--model", SHAKESPEARE, "--prompt", context + "\n", "--max-tokens", "8", "--json")))["text"]
            documents.append({"context": context, "choices": [said, said[:-1] + "~"], "answer": 0})
        with Server(self) as server:
            _, samples = self.evaluate(server, "local-completions", "lines", documents)
        self.assertEqual([[greedy for _, greedy in s["filtered_resps"]] for s in samples], [[True, False]] * 3)

    def test_bits_per_byte_are_those_of_the_logits(self):
        documents = [{"text": TEXT[i:i + 1200]} for i in range(0, 36000 if FULL else 3600, 1200)]
        # As lm_eval cuts: windows of 510, each behind the token before it; the last begins earlier, and counts what is new in it.
        total = 0.0
        for document in documents:
            ids = [BOS, *document["text"].encode()]
            for begin in range(0, len(ids) - 1, 510):
                end = min(begin + 510, len(ids) - 1)
                context = max(0, end - 510)
                values, _ = log_probabilities(self, [ids[context:end + 1]])[0]
                total += values[begin - context:].sum()
        n_bytes = sum(len(document["text"].encode()) for document in documents)
        bits = -total / n_bytes / np.log(2)
        with Server(self) as server:
            results, _ = self.evaluate(server, "local-completions", "passages", documents)
        self.assertAlmostEqual(results["bits_per_byte"], bits, places=5)
        print(f"passages: {n_bytes} bytes, {results['bits_per_byte']:.6f} bits a byte, {bits:.6f} by the logits")

    def test_what_is_written_is_what_generate_writes(self):
        contexts = ["ROMEO:", "JULIET:", "First Citizen:\nBefore we", "The king", "O, ", "What say"]
        documents = []
        for context in contexts:
            said = json.loads(self.assert_done(fathom("generate", "--model", SHAKESPEARE, "--prompt", context, "--max-tokens", "40", "--json")))["text"]
            documents.append({"context": context, "wanted": said.split("\n\n")[0]})
        with Server(self) as server:
            chat = {"chat": True, "eos_string": "<|end|>"}
            for kind, options in (("local-completions", {}), ("local-completions", {"num_concurrent": 3}), ("local-chat-completions", chat),
                                  ("local-chat-completions", {**chat, "num_concurrent": 3})):
                with self.subTest(kind=kind, options=options):
                    results, samples = self.evaluate(server, kind, "written", documents, **options)
                    self.assertEqual([s["resps"][0][0] for s in samples], [d["wanted"] for d in documents])
                    self.assertEqual(results["exact_match"], 1)


if __name__ == "__main__":
    unittest.main()
