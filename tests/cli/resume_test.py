#!/usr/bin/env python3
"""Runs that are killed at random steps and resumed, by any number of threads, end with the bits of one that was not.

FATHOM_FAULTS=full: 200 steps and 20 kills instead of 40 and 6.
"""
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
import unittest
import unittest.mock

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
                "--tokenizer", "bytes", "--out", str(out), "--steps", str(STEPS), "--seq-len", "20", "--batch-size", "8",
                "--micro-batch", "4", "--lr", "3e-3", "--warmup", "10", "--precision", "fp8", "--extend-seq-len", "40", "--extend-at",
                str(STEPS // 2), "--batch-start", "4", "--batch-ramp", str(STEPS // 4), "--ema-decay", "0.9", "--mtp-late-at",
                str(STEPS // 3), "--mtp-weight-late", "0.1", "--bias-freeze", "0.2", "--mask-documents", "--threads", str(threads),
                *save]

    def result(self, out):
        """Weights, their average and log, times aside."""
        log = re.sub(r'"(tokens_per_s|seconds|mfu)":[^,}]*,?', "", (out / "train.jsonl").read_text())
        return (out / "model.safetensors").read_bytes() + (out / "average/model.safetensors").read_bytes(), log

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
                sent = rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
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
        reason = r"no checkpoint of step {}: .*File too large; none was saved before"
        for mode in "async", "sync":
            stopped = self.run_with_small_files("--save-every", "1", "--save-mode", mode)
            self.assertEqual(stopped.returncode, 1, stopped.stderr)
            self.assertRegex(stopped.stderr, "fathom: " + reason.format(1))
            self.assertEqual(list((self.folder / mode / "checkpoints").iterdir()), [])
        told = self.run_with_small_files("--save-every", "10", "--log", "/dev/null", "--save-failure", "warn")
        self.assertEqual(told.returncode, 1, told.stderr)
        self.assertEqual(told.stderr.count("; training goes on"), (STEPS - 1) // 10)
        self.assertRegex(told.stderr, "fathom: " + reason.format(STEPS))

    def test_a_log_that_cannot_be_written_loses_no_step(self):
        stopped = fathom(*self.arguments(self.folder / "stopped", save=()), "--log", "/dev/full")
        self.assertEqual(stopped.returncode, 1, stopped.stderr)
        self.assertIn("cannot write the log: No space left on device; stopped after step 1, go on with --resume", stopped.stderr)
        self.assertTrue((self.folder / "stopped/checkpoints/step-1").is_dir())
        told = fathom(*self.arguments(self.folder / "told", save=("--save-failure", "warn")), "--log", "/dev/full")
        self.assert_done(told)
        self.assertEqual(told.stderr.count("cannot write the log"), STEPS)

    def test_a_run_whose_checkpoints_are_all_broken_is_not_begun_anew(self):
        out = self.folder / "out"
        self.assert_done(fathom(*self.arguments(out)))
        log = (out / "train.jsonl").read_bytes()
        for manifest in out.glob("checkpoints/*/manifest.json"):
            manifest.write_bytes(b"{}")
        refused = fathom(*self.arguments(out), "--resume")
        self.assertEqual(refused.returncode, 1, refused.stderr)
        self.assertIn("none of its 2 checkpoints is whole", refused.stderr)
        self.assertEqual((out / "train.jsonl").read_bytes(), log)

    def test_what_diverges_names_the_last_good_checkpoint(self):
        # At this rate, without anything that holds it, weights overflow within a few steps.
        out = self.folder / "out"
        arguments = self.arguments(out, save=("--save-every", "1", "--keep", "1", "--max-skips", "3"))
        for option, value in (("--lr", "100"), ("--precision", "f32")):
            arguments[arguments.index(option) + 1] = value
        ended = fathom(*arguments, "--clip", "0", "--weight-decay", "100", "--eps", "1e-30", "--min-lr", "100")
        self.assertEqual(ended.returncode, 1, ended.stderr)
        named = re.search(r"The last good checkpoint is (\S+step-(\d+))", ended.stderr)
        self.assertTrue(named, ended.stderr)
        self.assertTrue(pathlib.Path(named[1]).is_dir(), ended.stderr)
        steps = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
        self.assertNotIn("skipped", steps[int(named[2])], "the step behind a good checkpoint was taken")

    def test_tells_where_other_steps_move_the_learning_rate(self):
        arguments = self.arguments(self.folder / "out")
        steps = arguments.index("--steps") + 1
        for name in "--extend-at", "--batch-ramp", "--mtp-late-at":
            arguments[arguments.index(name) + 1] = "10"
        for n, told in (("20", ""), ("40", "step 20 had the learning rate 0.0003; with --steps 40 its schedule has 0.003 there")):
            arguments[steps] = n
            result = fathom(*arguments, "--schedule", "wsd", "--resume")
            self.assert_done(result)
            self.assertIn(told, result.stderr)
            self.assertEqual(told != "", "its schedule has" in result.stderr)

    def test_tells_where_another_instruction_set_changes_bits(self):
        arguments = self.arguments(self.folder / "out")
        for name, value in ("--steps", "12"), ("--extend-at", "6"), ("--batch-ramp", "6"), ("--mtp-late-at", "6"):
            arguments[arguments.index(name) + 1] = value
        with unittest.mock.patch.dict(os.environ, {"FATHOM_ISA": "baseline"}):
            self.assert_done(fathom(*arguments))
        arguments[arguments.index("--steps") + 1] = "14"
        result = fathom(*arguments, "--resume")
        self.assert_done(result)
        others = " ".join(re.search("found ([^;\n]*)", fathom("--version").stdout)[1].split()) != "baseline"
        self.assertEqual("was saved by a CPU that computes with baseline, this one does with" in result.stderr, others, result.stderr)

    def test_refuses_ways_to_save_that_there_are_not(self):
        for save in (["--save-mode", "later"], ["--save-failure", "ignore"], ["--keep-every", "5"], ["--keep-every", "-1"]):
            self.assert_refused(fathom(*self.arguments(self.folder / "out", save=save)), 2, save[0])

    def test_options_that_would_change_nothing_are_told(self):
        model = self.arguments(self.folder / "out", save=())
        self.assert_refused(fathom(*model, "--schedule", "cosine", "--decay-fraction", "0.1"), 2, "--decay-fraction", "wsd")
        without = [part for i, part in enumerate(model) if "--mtp-late-at" not in (part, model[i - 1])]
        self.assert_refused(fathom(*without), 2, "--mtp-weight-late", "--mtp-late-at")
        model[model.index("--warmup") + 1] = str(STEPS + 1)
        result = fathom(*model)
        self.assert_done(result)
        self.assertIn(f"--warmup {STEPS + 1} ends behind the last step {STEPS}", result.stderr)


if __name__ == "__main__":
    unittest.main()
