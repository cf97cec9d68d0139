#!/usr/bin/env python3
"""fathom eval and lm-evaluation-harness ask the same and score the same: MMLU, ARC and GSM8K by the harness's own task files, through fathom serve.

    lm_eval_agreement_test.py FATHOM

Prompts are the same to the letter, log probabilities within 1e-4, answers and scores equal. Items: tests/data/eval.
"""
import csv
import json
import logging
import os
import pathlib
import shutil
import unittest

import client_packages

# Read when the packages are imported.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
client_packages.need("lm_eval", "datasets", "aiohttp", "tenacity")

import lm_eval.tasks

from program import Case, fathom
from serve_test import SHAKESPEARE, Server

DATA = client_packages.ROOT / "tests/data/eval"
TASKS = pathlib.Path(lm_eval.tasks.__file__).parent
CONTEXT = 8192  # as many bytes as the prompts have; the model was trained on 512


def json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mmlu(part, subject):
    with open(DATA / f"mmlu/{part}/{subject}_{part}.csv", newline="", encoding="utf-8") as file:
        return [{"question": row[0], "choices": row[1:5], "answer": int(row[5])} for row in list(csv.reader(file))[1:]]


def arc(part):
    documents = []
    for line in json_lines(DATA / f"arc/ARC-Challenge-{part}.jsonl"):
        choices = line["question"]["choices"]
        documents.append({"id": line["id"], "question": line["question"]["stem"], "answerKey": line["answerKey"],
                          "choices": {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]}})
    return documents


class Agreement(Case):
    def setUp(self):
        super().setUp()
        self.model = self.folder / "model"
        shutil.copytree(SHAKESPEARE, self.model)
        config = json.loads((self.model / "config.json").read_text())
        config["max_position_embeddings"] = CONTEXT
        (self.model / "config.json").write_text(json.dumps(config))

    def harness(self, server, task, file, shots, splits, **options):
        """The harness's own task file over our documents. Returns (scores, samples)."""
        from lm_eval.tasks import TaskManager
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        os.environ["HF_HOME"] = str(self.folder / "hf")
        files = {}
        for split, documents in splits.items():
            files[split] = self.write(f"{task}-{split}.jsonl", "".join(json.dumps(d) + "\n" for d in documents))
        folder = self.folder / task
        folder.mkdir()
        (folder / "task.yaml").write_text(f"include: {TASKS / file}\ntask: {task}\ntag: null\ndataset_path: json\ndataset_name: null\n"
                                          f"dataset_kwargs:\n  data_files: {json.dumps(files)}\n")
        arguments = {"model": "model", "base_url": f"http://127.0.0.1:{server.port}/v1/completions", "max_length": CONTEXT, "max_retries": 1,
                     "num_concurrent": 4, **options}
        results = lm_eval.simple_evaluate(model="local-completions", model_args=arguments, tasks=[task], num_fewshot=shots, bootstrap_iters=0,
                                          log_samples=True, task_manager=TaskManager(include_path=str(folder), include_defaults=False))
        samples = sorted(results["samples"][task], key=lambda sample: (sample["doc_id"], sample.get("filter", "")))
        return results["results"][task], samples

    def ours(self, task, *arguments):
        """The result, and the records in the items' order."""
        out = self.folder / "-".join(["out", task, *arguments])
        said = self.assert_done(fathom("eval", "--model", str(self.model), "--task", task, "--data", str(DATA), "--out", str(out), "--threads", "2",
                                       "--json", "--quiet", *arguments))
        records = json_lines(out / f"{task}.jsonl")
        return json.loads(said), sorted(records, key=lambda r: r["item"])

    def value(self, result, name):
        return next(m["value"] for m in result["measures"] if m["name"] == name)

    def assert_same_choices(self, records, samples):
        self.assertEqual(len(records), len(samples))
        worst = 0
        for record, sample in zip(records, samples):
            asked = sample["arguments"]
            self.assertEqual([context for context, _ in asked], [record["prompt"]] * len(record["choices"]))
            self.assertEqual([choice for _, choice in asked], record["choices"])
            for c, (value, greedy) in enumerate(sample["filtered_resps"]):
                worst = max(worst, abs(float(value) - record["logprobs"][c]))
                self.assertEqual(greedy in (True, "True"), record["greedy"][c])
        self.assertLess(worst, 1e-4)
        return worst

    def test_mmlu(self):
        result, records = self.ours("mmlu", "--shots", "3")
        with Server(self, "--ctx", str(CONTEXT), model=str(self.model)) as server:
            for subject in ("abstract_algebra", "prehistory"):
                scores, samples = self.harness(server, f"mmlu_{subject}", f"mmlu/default/mmlu_{subject}.yaml", 3,
                                               {"test": mmlu("test", subject), "dev": mmlu("dev", subject)})
                mine = [r for r in records if r["subject"] == subject]
                worst = self.assert_same_choices(mine, samples)
                value = next(m["value"] for m in result["subjects"] if m["name"] == subject)
                self.assertAlmostEqual(scores["acc,none"], value, places=9)
                print(f"mmlu {subject}: {len(mine)} items, acc {value:.3f} in both, log probabilities within {worst:.1e}")

    def test_arc(self):
        splits = {"train": arc("Dev"), "validation": arc("Dev"), "test": arc("Test")}
        with Server(self, "--ctx", str(CONTEXT), model=str(self.model)) as server:
            for shots in (0, 2):
                with self.subTest(shots=shots):
                    result, records = self.ours("arc", "--shots", str(shots))
                    scores, samples = self.harness(server, f"arc_{shots}", "arc/arc_challenge.yaml", shots, splits)
                    worst = self.assert_same_choices(records, samples)
                    for name in ("acc", "acc_norm"):
                        self.assertAlmostEqual(scores[name + ",none"], self.value(result, name), places=9)
                    print(f"arc, {shots} shots: {len(records)} items, acc {scores['acc,none']:.3f}, acc_norm {scores['acc_norm,none']:.3f} in both, "
                          f"log probabilities within {worst:.1e}")

    def test_gsm8k(self):
        result, records = self.ours("gsm8k", "--max-tokens", "48")
        documents = {name: json_lines(DATA / f"gsm8k/{name}.jsonl") for name in ("train", "test")}
        with Server(self, "--ctx", str(CONTEXT), model=str(self.model)) as server:
            scores, samples = self.harness(server, "gsm8k", "gsm8k/gsm8k.yaml", 5, documents, max_gen_toks=48)
        strict = [s for s in samples if s["filter"] == "strict-match"]
        self.assertEqual(len(strict), len(records))
        for record, sample in zip(records, strict):
            self.assertEqual(sample["arguments"][0][0], record["prompt"])
            self.assertEqual(sample["resps"][0][0], record["answer"])
        for name, filtered in (("strict", "strict-match"), ("flexible", "flexible-extract")):
            self.assertAlmostEqual(scores["exact_match," + filtered], self.value(result, name), places=9)
        print(f"gsm8k: {len(records)} items, 5 shots, the same prompts, answers and scores")


if __name__ == "__main__":
    unittest.main()
