#!/usr/bin/env python3
"""Runs that are killed at random steps and resumed, by any number of threads, end with the bits of one that was not.

FATHOM_FAULTS=full: 200 steps and 20 kills instead of 40 and 6.
"""
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import unittest

from program import PROGRAM, Case, fathom

FULL = os.environ.get("FATHOM_FAULTS") == "full"
STEPS, KILLS = (200, 20) if FULL else (40, 6)
CONFIG = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 258, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "intermediate_size": 48, "moe_intermediate_size": 16,
    "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "norm_topk_prob": True, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 2, "hidden_act": "silu",
    "attention_bias": False, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "initializer_range": 0.05, "tie_word_embeddings": False,
}


class Resume(Case):
    def setUp(self):
        super().setUp()
        self.config = self.write("config.json", json.dumps(CONFIG))
        self.text = self.write_text(400)

    def write_text(self, n_lines):
        return self.write("text.txt", "".join(f"line {i} of the text that the model learns from\n" for i in range(n_lines)))

    def arguments(self, out, threads=1, save=("--save-every", "3", "--keep", "2")):
        return ["train", "--model-config", self.config, "--data", self.text, "--val-data", self.text, "--val-every", "10",
                "--tokenizer", "bytes", "--out", str(out), "--steps", str(STEPS), "--seq-len", "33", "--batch-size", "8",
                "--micro-batch", "4", "--lr", "3e-3", "--warmup", "10", "--precision", "fp8", "--threads",
                str(threads), *save]

    def result(self, out):
        """Weights and log, times aside."""
        log = re.sub(r'"(tokens_per_s|mfu)":[^,}]*,?', "", (out / "train.jsonl").read_text())
        return (out / "model.safetensors").read_bytes(), log

    def unbroken(self, name, threads=1):
        out = self.folder / name
        self.assert_done(fathom(*self.arguments(out, threads)))
        return self.result(out)

    def assert_same(self, result, wanted):
        self.assertEqual(result[1].count("\n"), STEPS)
        self.assertEqual(result[1], wanted[1])
        self.assertTrue(result[0] == wanted[0], "the weights differ")

    def test_any_number_of_threads(self):
        wanted = self.unbroken("threads-1")
        for threads in 2, 3, 4:
            self.assert_same(self.unbroken(f"threads-{threads}", threads), wanted)

    def test_killed_at_random_steps(self):
        wanted, out, rng = self.unbroken("unbroken"), self.folder / "killed", random.Random(1)
        killed = {signal.SIGKILL: 0, signal.SIGTERM: 0}
        removed = 0
        for step in sorted(rng.sample(range(STEPS - 5), KILLS)):
            with subprocess.Popen([PROGRAM, *self.arguments(out, rng.choice([1, 2])), "--resume"],
                                  stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8") as run:
                while run.poll() is None and not self.has_logged(out, step):
                    time.sleep(0.0005)
                time.sleep(rng.uniform(0, 0.02))
                sent = rng.choice(list(killed))
                run.send_signal(sent)
                errors = run.communicate(timeout=120)[1]
            removed += errors.count("left by a run that was cut off")
            # One that is done before the signal comes has saved its model; the next then only writes it again.
            if run.returncode != 0:
                self.assertEqual(run.returncode, -9 if sent == signal.SIGKILL else 143, errors)
                killed[sent] += 1
        self.assert_done(fathom(*self.arguments(out), "--resume"))
        print(f"{STEPS} steps, killed by SIGKILL {killed[signal.SIGKILL]} times and by SIGTERM {killed[signal.SIGTERM]}, "
              f"{removed} half-written checkpoints removed", file=sys.stderr)
        self.assertGreaterEqual(sum(killed.values()), KILLS // 2)
        self.assert_same(self.result(out), wanted)

    @staticmethod
    def has_logged(out, step):
        try:
            return (out / "train.jsonl").read_bytes().count(b"\n") >= step
        except FileNotFoundError:
            return False

    def run_with_small_files(self, *save):
        """A limit on the size of files, in KiB, stands for a full disk: the text's tokens fit, the model does not."""
        self.text = self.write_text(100)
        return subprocess.run(["bash", "-c", 'ulimit -f 16; exec "$0" "$@"', PROGRAM,
                               *self.arguments(self.folder / save[-1], save=save)],
                              stderr=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", timeout=120)

    def test_a_checkpoint_that_cannot_be_written_stops_the_run_or_is_told(self):
        reason = r"no checkpoint of step {}: .*File too large; earlier checkpoints are untouched"
        for mode in "async", "sync":
            stopped = self.run_with_small_files("--save-every", "1", "--save-mode", mode)
            self.assertEqual(stopped.returncode, 1, stopped.stderr)
            self.assertRegex(stopped.stderr, "fathom: " + reason.format(1))
            self.assertEqual(list((self.folder / mode / "checkpoints").iterdir()), [])
        told = self.run_with_small_files("--save-every", "10", "--log", "/dev/null", "--save-failure", "warn")
        self.assertEqual(told.returncode, 1, told.stderr)
        self.assertEqual(told.stderr.count("; training goes on"), (STEPS - 1) // 10)
        self.assertRegex(told.stderr, "fathom: " + reason.format(STEPS))

    def test_tells_where_other_steps_move_the_learning_rate(self):
        arguments = self.arguments(self.folder / "out")
        steps = arguments.index("--steps") + 1
        for n, told in (("20", ""), ("40", "step 20 had the learning rate 0.0003; with --steps 40 its schedule has 0.003 there")):
            arguments[steps] = n
            result = fathom(*arguments, "--schedule", "wsd", "--resume")
            self.assert_done(result)
            self.assertIn(told, result.stderr)
            self.assertEqual(told != "", "its schedule has" in result.stderr)

    def test_refuses_ways_to_save_that_there_are_not(self):
        for save in (["--save-mode", "later"], ["--save-failure", "ignore"], ["--keep-every", "5"], ["--keep-every", "-1"]):
            self.assert_refused(fathom(*self.arguments(self.folder / "out", save=save)), 2, save[0])


if __name__ == "__main__":
    unittest.main()
