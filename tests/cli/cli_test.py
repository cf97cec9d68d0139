"""Runs the real program: exit codes, one line on stderr, --config, and what generate gives. usage: cli_test.py PROGRAM"""
import ctypes
import json
import os
import pathlib
import pty
import resource
import signal
import subprocess
import sys
import unittest

sys.dont_write_bytecode = True
from program import MTP, ORACLE, PROGRAM, TINY, Case, fathom  # noqa: E402

CHAT = ORACLE.parent / "chat"
BEGIN = "<｜begin▁of▁sentence｜>"


def tensors(path):
    """name -> (shape, list of numbers) of a safetensors file's integer tensors."""
    data = path.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    found = {}
    for name, entry in header.items():
        size = {"I32": 4, "I64": 8}.get(entry.get("dtype"))
        if size:
            begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
            raw = data[begin:end]
            found[name] = (entry["shape"], [int.from_bytes(raw[i : i + size], "little", signed=True) for i in range(0, len(raw), size)])
    return found


class Program(Case):
    def test_version_names_instruction_sets_and_backends(self):
        text = self.assert_done(fathom("--version"))
        for word in ("fathom 0.", "baseline", "CPU", "CUDA", "MPI", "NCCL"):
            self.assertIn(word, text)

    def test_help_of_every_subcommand(self):
        text = self.assert_done(fathom("--help"))
        commands = [line.split()[0] for line in text.split("Subcommands:")[1].splitlines() if line.strip()]
        self.assertIn("generate", commands)
        for command in commands:
            text = self.assert_done(fathom(command, "--help"))
            self.assertIn(f"fathom {command}", text)

    def test_no_subcommand_is_wrong_usage(self):
        result = fathom()
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertIn("Usage: fathom", result.stderr)

    def test_wrong_usage(self):
        self.assert_refused(fathom("--bogus"), 2, "--bogus", "--help")
        self.assert_refused(fathom("nothing"), 2, "nothing")
        self.assert_refused(fathom("generate"), 2, "--model", "fathom generate --help")
        self.assert_refused(fathom("generate", "--model"), 2, "--model")
        self.assert_refused(self.generate("--threads", "many"), 2, "--threads")
        self.assert_refused(self.generate("--threads", "-1"), 2, "--threads")
        self.assert_refused(self.generate("--seed", "-1"), 2, "--seed")
        self.assert_refused(self.generate("--device", "cuda"), 2, "CUDA")
        self.assert_refused(self.generate("--gpu-memory", "20GB"), 2, "--gpu-memory", "--device cuda")
        self.assert_refused(self.generate("--gpu-memory", "many"), 2, "--gpu-memory")
        self.assert_refused(self.generate("--device", "abacus"), 2, "abacus")
        self.assert_refused(fathom("generate", "--model", "x", "--new\nline"), 2)

    def test_wrong_instruction_set(self):
        self.assert_refused(fathom("--version", env={"FATHOM_ISA": "mmx"}), 2, "FATHOM_ISA")

    def test_common_options_stand_before_or_after_the_subcommand(self):
        arguments = ["--model", TINY, "--tokens", "0,5", "--max-tokens", "1"]
        for line in (["--json", "--threads", "1", "generate", *arguments], ["generate", *arguments, "--threads", "1", "--json"]):
            self.assertEqual(len(json.loads(self.assert_done(fathom(*line)))["ids"]), 1)

    def test_stdout_that_takes_nothing_is_reported(self):
        with open("/dev/full", "w") as full:
            self.assert_refused(fathom("--version", stdout=full), 1, "standard output")
            self.assert_refused(self.generate("--tokens", "0,5", "--quiet", "--json", stdout=full), 1, "standard output")

    def test_a_reader_that_left_ends_it_quietly(self):
        reading, writing = os.pipe()
        os.close(reading)
        result = fathom("--help", stdout=writing)
        os.close(writing)
        self.assertEqual((result.returncode, result.stderr), (0, ""))


class ConfigFile(Case):
    def ids(self, config, *arguments):
        path = self.write("options.toml", config)
        return self.generate_json("--config", path, "--ignore-eos", *arguments)["ids"]

    def test_flat_keys_and_sections_are_options_and_the_command_line_wins(self):
        self.assertEqual(len(self.ids('# a comment\ntokens = "0, 5" # another\nmax-tokens = 3\n')), 3)
        self.assertEqual(len(self.ids('quiet = true\nthreads = 1\n[generate]\ntokens = "0,5"\nmax-tokens = 4\n')), 4)
        self.assertEqual(len(self.ids('tokens = "0,5"\nmax-tokens = 3\n', "--max-tokens", "6")), 6)

    def test_environment_variables_are_options_too(self):
        def ids(*arguments, **variables):
            return self.generate_json("--tokens", "0,5", "--ignore-eos", *arguments, env={**os.environ, **variables})["ids"]
        self.assertEqual(len(ids(FATHOM_GENERATE_MAX_TOKENS="3")), 3)
        self.assertEqual(len(ids("--max-tokens", "2", FATHOM_GENERATE_MAX_TOKENS="3")), 2)
        self.assertEqual(len(ids("--config", self.write("options.toml", "max-tokens = 4"), FATHOM_GENERATE_MAX_TOKENS="3")), 4)
        refused = self.generate("--tokens", "0", env={**os.environ, "FATHOM_GENERATE_TOP_P": "2"})
        self.assert_refused(refused, 2, "--top-p")
        refused = self.generate("--tokens", "0", env={**os.environ, "FATHOM_THREADS": "many"})
        self.assert_refused(refused, 2, "--threads")
        self.assertNotIn("Env:", fathom("generate", "--help").stdout)

    def test_strings_keep_their_characters(self):
        for text in (r'"a # b, \"c\" [d] = \u00e9"', "'a # b, \"c\" [d] = é'"):
            path = self.write("options.toml", f"prompt = {text}\nmax-tokens = 1")
            self.assertEqual(
                self.generate_json("--config", path)["prompt_tokens"],
                self.generate_json("--prompt", 'a # b, "c" [d] = é', "--max-tokens", "1")["prompt_tokens"],
            )

    def test_a_section_of_another_command_is_checked_and_not_run(self):
        self.assertEqual(len(self.ids('tokens = "0,5"\nmax-tokens = 2\n[score]\nmodel = "elsewhere"\n')), 2)

    def test_refuses_what_it_does_not_know(self):
        for text, word in (
            ("max-token = 3", "max-token"),
            ("[generate]\nbogus = 1", "line 2"),
            ("[nonsense]", "nonsense"),
            ("max-tokens = 3\nmax-tokens = 4", "twice"),
            ("max-tokens 3", "'='"),
            ("prompt = unquoted text", "line 1"),
            ('prompt = "no end', "line 1"),
            ("max-tokens = [1, 2]", "max-tokens"),
            ("max-tokens = 'many'", "max-tokens"),
            ("config = 'x'", "config"),
            ("prompt = \"\"\"x\"\"\"", "line 1"),
            ("\0", "line 1"),
        ):
            result = self.generate("--tokens", "0", "--config", self.write("options.toml", text))
            self.assert_refused(result, 2, word)

    def test_a_missing_file_is_reported(self):
        self.assert_refused(self.generate("--config", str(self.folder / "none.toml")), 2, "none.toml")
        self.assert_refused(self.generate("--config", str(self.folder)), 2)


class Generate(Case):
    def test_greedy_ids_are_those_of_the_reference(self):
        for model in sorted(ORACLE.iterdir()):
            if not (model / "expected.safetensors").is_file() or "v32" in model.name:
                continue
            expected = tensors(model / "expected.safetensors")
            offsets, ids = expected["seq_offsets"][1], expected["input_ids"][1]
            greedy = expected["greedy_ids"][1]
            for s, (begin, end) in enumerate(zip(offsets, offsets[1:])):
                prompt = ",".join(map(str, ids[begin:end]))
                result = fathom("generate", "--model", str(model), "--tokens", prompt, "--json", "--temperature", "0",
                                "--max-tokens", "32", "--ignore-eos")
                answer = json.loads(self.assert_done(result))
                self.assertEqual(answer["ids"], greedy[s * 32 : s * 32 + 32], model.name)
                self.assertEqual(answer["prompt_tokens"], end - begin)

    def test_prompt_and_stdin_are_the_same(self):
        a = self.generate_json("--prompt", "The hollow window hides", "--max-tokens", "8")
        b = self.generate_json("--max-tokens", "8", stdin="The hollow window hides")
        self.assertEqual(a["ids"], b["ids"])
        self.assertEqual(a["text"], self.assert_done(self.generate("--prompt", "The hollow window hides", "--max-tokens", "8")))

    def test_same_seed_same_tokens_for_any_number_of_threads(self):
        def run(seed, threads):
            return self.generate_json("--tokens", "0,5,9", "--temperature", "1", "--seed", seed, "--threads", threads)["ids"]

        self.assertEqual(run("3", "1"), run("3", "4"))
        self.assertNotEqual(run("3", "1"), run("4", "1"))

    def test_stop_texts_cut_the_text(self):
        whole = self.generate_json("--tokens", "0,5,9", "--max-tokens", "40", "--ignore-eos")["text"]
        stop = whole[10:13]
        cut = self.generate_json("--tokens", "0,5,9", "--max-tokens", "40", "--ignore-eos", "--stop", "[never]", "--stop", stop)
        self.assertEqual(cut["text"], whole[: whole.index(stop)])
        self.assertEqual(cut["finish_reason"], "stop")

    def test_every_cache_type_generates_and_drafts_change_nothing(self):
        arguments = ["generate", "--model", MTP, "--tokens", "0,5,9", "--max-tokens", "40", "--ignore-eos", "--json"]
        default = json.loads(self.assert_done(fathom(*arguments)))["ids"]
        for kv_type in ("f32", "bf16", "f16", "fp8", "int8"):
            ids = json.loads(self.assert_done(fathom(*arguments, "--kv-type", kv_type)))["ids"]
            drafted = json.loads(self.assert_done(fathom(*arguments, "--kv-type", kv_type, "--draft", "mtp")))["ids"]
            self.assertEqual(len(ids), 40)
            self.assertEqual(drafted, ids, kv_type)
            if kv_type == "f32":
                self.assertEqual(ids, default)
            rates = fathom("bench", "--model", MTP, "--prompt", "3", "--gen", "2", "--reps", "1", "--kv-type", kv_type, "--json")
            self.assertEqual(len(self.assert_done(rates).splitlines()), 2)

    def test_tokens_may_look_like_a_list(self):
        want = self.generate_json("--tokens", "0,5,9", "--max-tokens", "3")["ids"]
        for tokens in (" 0 , 5 , 9 ", "[0,5,9]", "[0, 5, 9]\n"):
            self.assertEqual(self.generate_json("--tokens", tokens, "--max-tokens", "3")["ids"], want)

    def test_a_model_that_is_cut_while_it_is_used_ends_with_one_line(self):
        model = self.folder / "packed"
        self.assert_done(fathom("convert", MTP, str(model), "--to", "q8_0"))
        bench = subprocess.Popen([PROGRAM, "bench", "--model", str(model), "--prompt", "0", "--gen", "120", "--reps", "1000", "--depth", "4", "--quiet"],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        weights = next(model.glob("*.safetensors"))
        while str(weights) not in pathlib.Path(f"/proc/{bench.pid}/maps").read_text():
            self.assertIsNone(bench.poll())
        os.truncate(weights, 1)
        output, errors = bench.communicate(timeout=60)
        self.assertEqual((bench.returncode, output, errors.count("\n")), (1, "", 1), errors)
        self.assertIn("model.safetensors: was cut", errors)

    def test_drafts_are_counted_and_told(self):
        arguments = ["generate", "--model", MTP, "--tokens", "0,5,9", "--max-tokens", "40", "--ignore-eos"]
        plain = fathom(*arguments, "--json")
        drafted = fathom(*arguments, "--json", "--draft", "mtp", "--draft-tokens", "3")
        a, b = json.loads(self.assert_done(plain)), json.loads(self.assert_done(drafted))
        self.assertEqual((a["ids"], a["text"]), (b["ids"], b["text"]))
        self.assertEqual((a["main_passes"], a["drafted"], a["accepted"]), (40, 0, 0))
        self.assertEqual(b["main_passes"] + b["accepted"], 40)
        self.assertLess(0, b["accepted"])
        self.assertEqual(b["acceptance"], b["accepted"] / b["drafted"])
        self.assertGreater(b["speedup"], 0)
        self.assertNotIn("acceptance", a)
        self.assertNotIn("speedup", a)
        self.assertIn(f"{b['accepted']} of {b['drafted']} drafts accepted", drafted.stderr)
        self.assertNotIn("drafts", plain.stderr)

    def test_numbers_are_finite(self):
        serve, schedule = ["serve", "--model", "none"], ["plan", "schedule"]
        options = [(serve, o) for o in ("--header-timeout", "--body-timeout", "--idle-timeout", "--write-timeout", "--drain-timeout")]
        options += [(schedule, o) for o in ("--f", "--b", "--w", "--fb", "--transfer")]
        options += [(["train"], o) for o in ("--lr", "--min-lr", "--clip", "--balance-alpha", "--mtp-weight")]
        options += [(["score", "--model", "none"], "--mtp-weight"), (["generate", "--model", "none"], "--temperature")]
        for command, option in options:
            for value in ("nan", "NaN", "-nan", "inf", "-inf"):
                with self.subTest(option=option, value=value):
                    self.assert_refused(fathom(*command, f"{option}={value}"), 2, option, value)

    def test_a_model_without_mtp_module_goes_on_without_drafts(self):
        plain, drafted = self.generate("--tokens", "0,5"), self.generate("--tokens", "0,5", "--draft", "mtp")
        self.assertEqual(self.assert_done(drafted), self.assert_done(plain))
        self.assertEqual([line for line in drafted.stderr.splitlines() if "MTP" in line],
                         ["the model has no MTP module: it goes on without drafts"])
        self.assertEqual(self.generate("--tokens", "0,5", "--draft", "mtp", "--quiet").stderr, "")

    def test_wrong_options(self):
        for arguments, word in (
            (["--temperature", "-1"], "--temperature"),
            (["--temperature", "nan"], "--temperature"),
            (["--top-p", "0"], "--top-p"),
            (["--top-k", "-2"], "--top-k"),
            (["--min-p", "2"], "--min-p"),
            (["--max-tokens", "-1"], "--max-tokens"),
            (["--max-tokens", "1e3"], "--max-tokens"),
            (["--draft", "other"], "--draft"),
            (["--draft", "mtp", "--draft-tokens", "0"], "--draft-tokens"),
            (["--draft", "mtp", "--draft-tokens", "9"], "--draft-tokens"),
            (["--draft-tokens", "3"], "--draft"),
            (["--kv-type", "q4_0"], "--kv-type"),
            (["--prompt", "x"], "--prompt"),
            (["--stop", ""], "stop"),
        ):
            self.assert_refused(self.generate("--tokens", "0,5", *arguments), 2, word)
        for tokens in ("1,x", "1.5", "99999999999", ",", "1;2", "1,,2", "", "1 2", "[1,2", "1,"):
            self.assert_refused(self.generate("--tokens", tokens), 2, "--tokens")

    def test_prompts_that_cannot_be_read(self):
        self.assert_refused(self.generate("--tokens", "0,640"), 1, "640", "position 1")
        self.assert_refused(self.generate("--tokens=-1"), 1, "-1")
        self.assert_refused(self.generate("--no-bos", stdin=""), 1, "empty")

    def test_missing_models(self):
        self.assert_refused(fathom("generate", "--model", "/nonexistent", "--prompt", "x"), 1, "/nonexistent")
        self.assert_refused(fathom("generate", "--model", str(self.folder), "--tokens", "1"), 1, "config.json")

    def test_a_signal_stops_it_with_its_code(self):
        arguments = [PROGRAM, "generate", "--model", TINY, "--tokens", "0,5", "--ignore-eos", "--max-tokens", "1000000"]
        for number in (signal.SIGINT, signal.SIGTERM):
            with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                process.stdout.read(1)  # it generates
                process.send_signal(number)
                process.communicate(timeout=60)
                self.assertEqual(process.returncode, 128 + number)


class Score(Case):
    def score(self, *arguments):
        return fathom("score", "--model", TINY, "--tokens", self.write("ids.json", "[[0, 5, 9]]"), *arguments)

    def test_one_file_cannot_take_both_results(self):
        for out, grads in (("a.st", "./a.st"), ("a.st", "../" + self.folder.name + "/a.st")):
            names = [str(self.folder) + "/" + name for name in (out, grads)]
            self.assert_refused(self.score("--out", names[0], "--grads", names[1]), 2, "same file")
        (self.folder / "link.st").symlink_to("b.st")
        self.assert_refused(self.score("--out", str(self.folder / "link.st"), "--grads", str(self.folder / "b.st")), 2, "same file")
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["ids.json", "link.st"])

    def test_windows_are_of_texts(self):
        self.assert_refused(self.score("--window", "8"), 2, "--window")


class Tokenize(Case):
    def tokenize(self, *arguments, **options):
        return fathom("tokenize", "--model", TINY, *arguments, **options)

    def ids(self, text):
        return json.loads(self.assert_done(self.tokenize(stdin=text)))

    def chat(self, objects, *arguments):
        lines = "".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects)
        return [json.loads(line) for line in self.assert_done(self.tokenize("--chat", *arguments, stdin=lines)).splitlines()]

    def vectors(self, name):
        return [json.loads(line) for line in (CHAT / name).read_text(encoding="utf-8").splitlines()]

    def test_chat_uses_the_models_template(self):
        vectors = self.vectors("tiny_vectors.jsonl")
        self.assertGreater(len(vectors), 5)
        variables = ("add_generation_prompt", "thinking")
        answers = self.chat([{"messages": v["messages"], "kwargs": {name: v[name] for name in variables}} for v in vectors])
        self.assertEqual([a["text"] for a in answers], [v["text"] for v in vectors])
        for answer in answers[:3]:
            self.assertEqual(answer["ids"], self.ids(answer["text"]))
            self.assertEqual(answer["ids"][0], 0)  # the begin token, once
            self.assertNotIn(0, answer["ids"][1:])

    def test_chat_with_another_template(self):
        by_template = {}
        for vector in self.vectors("vectors.jsonl"):
            by_template.setdefault(vector["template"], []).append(vector)
        for name in ("deepseek-v3", "deepseek-v3.1", "deepseek-v3.2-encoding"):
            template = name if name.endswith("encoding") else str(CHAT / (name + ".jinja"))
            vectors = by_template[name]
            objects = [{"messages": v["messages"], "kwargs": v["kwargs"]} for v in vectors]
            answers = self.chat(objects, "--template", template)
            for answer, vector in zip(answers, vectors, strict=True):
                if (name, vector["case"]) == ("deepseek-v3", "tool call with text"):  # which the template loses, and the program mends
                    self.assertRegex(answer["text"], r"(?s)Let me search\..*<｜tool▁sep｜>search\n```json\n.*\[1, 2, 3\]")
                else:
                    self.assertEqual(answer["text"], vector["text"], name)

    def test_chat_without_generation_prompt_unless_asked_for(self):
        messages = [{"role": "user", "content": "Hi"}]
        plain, asked = self.chat([{"messages": messages}, {"messages": messages, "kwargs": {"add_generation_prompt": True}}])
        self.assertEqual(plain["text"], BEGIN + "<｜User｜>Hi")
        self.assertEqual(asked["text"], BEGIN + "<｜User｜>Hi<｜Assistant｜></think>")

    def test_chat_gives_tools_to_the_template(self):
        template = self.write("t.jinja", "{{ tools[0].name }} {{ messages|length }} {{ eos_token }}")
        tools = [{"name": "now"}]
        answer = self.chat([{"messages": [], "tools": tools}], "--template", template)
        self.assertEqual(answer[0]["text"], "now 0 <｜end▁of▁sentence｜>")

    def test_chat_refuses_what_is_no_conversation(self):
        for line, word in (
            ("[]", "messages"),
            ('{"text": "x"}', "messages"),
            ('{"messages": 1}', "messages"),
            ('{"messages": [], "kwargs": []}', "kwargs"),
            ('{"messages": [], "tools": 1}', "tools"),
            ('{"messages": [', "line 2"),
            ('{"messages": [], "messages": []}', "messages"),
        ):
            self.assert_refused(self.tokenize("--chat", stdin="\n" + line), 1, "standard input: line 2", word)
        line = '{"messages": []}'
        self.assert_refused(fathom("tokenize", "--model", "bytes", "--chat", stdin=line), 1, "no chat template")
        self.assert_refused(self.tokenize("--chat", "--template", "/nonexistent", stdin=line), 1, "/nonexistent")
        self.assert_refused(self.tokenize("--chat", "--decode", stdin=line), 2, "--decode")
        self.assert_refused(self.tokenize("--template", "x", stdin=line), 2, "--chat")


class Chat(Case):
    def chat(self, *arguments, model=TINY, **options):
        return fathom("chat", "--model", model, "--max-tokens", "12", *arguments, **options)

    def turns(self, stdin, *arguments):
        return [json.loads(line) for line in self.assert_done(self.chat("--json", *arguments, stdin=stdin)).splitlines()]

    def completion(self, prompt):
        arguments = ["generate", "--model", TINY, "--prompt", prompt, "--max-tokens", "12", "--json"]
        return json.loads(self.assert_done(fathom(*arguments)))

    def test_an_answer_is_the_completion_of_the_templates_prompt(self):
        for arguments, begin, end in (
            ([], "", "</think>"),
            (["--system", "Be brief."], "Be brief.", "</think>"),
            (["--thinking", "on"], "", "<think>"),
            (["--thinking", "off"], "", "</think>"),
        ):
            expected = self.completion(BEGIN + begin + "<｜User｜>Who carries the lantern?<｜Assistant｜>" + end)
            turn = self.turns("Who carries the lantern?\n", *arguments)[0]
            self.assertEqual(turn["ids"], expected["ids"], arguments)
            self.assertEqual(turn["prompt_tokens"], expected["prompt_tokens"])

    def test_later_turns_see_the_earlier_and_reset_forgets_them(self):
        first, second, third = self.turns("Who?\n\nWhere?\n/reset\nWho?")
        head = BEGIN + "<｜User｜>Who?<｜Assistant｜></think>"
        expected = self.completion(head + first["text"] + "<｜end▁of▁sentence｜><｜User｜>Where?<｜Assistant｜></think>")
        self.assertEqual(second["ids"], expected["ids"])
        self.assertGreater(second["cached_tokens"], 0)
        self.assertEqual(third["ids"], first["ids"])

    def test_drafts_change_no_answer(self):
        stdin = "Who?\nWhere?\n/reset\nWho?\n"
        plain, drafted = ([json.loads(line) for line in self.assert_done(self.chat("--json", *arguments, model=MTP, stdin=stdin)).splitlines()]
                          for arguments in ([], ["--draft", "mtp", "--draft-tokens", "2"]))
        self.assertEqual([t["ids"] for t in drafted], [t["ids"] for t in plain])
        self.assertGreater(drafted[1]["cached_tokens"], drafted[0]["prompt_tokens"])
        self.assertGreater(sum(t["accepted"] for t in drafted), 0)
        self.assertEqual([(t["drafted"], t["accepted"]) for t in plain], [(0, 0)] * 3)

    def test_stdout_holds_the_answers_alone(self):
        turns = self.turns("Who?\nWhere?\n")
        result = self.chat(stdin="/help\nWho?\n/nothing\nWhere?\n/exit\nNever\n")
        text = "".join(t["text"] + ("" if t["text"].endswith("\n") else "\n") for t in turns)
        self.assertEqual(self.assert_done(result), text)
        self.assertIn("/reset", result.stderr)
        self.assertIn("there is no command /nothing", result.stderr)
        self.assertEqual(self.assert_done(self.chat(stdin="")), "")

    def test_a_model_without_a_template_continues_the_text(self):
        for file in pathlib.Path(TINY).iterdir():
            if file.is_file() and file.name != "tokenizer_config.json":
                (self.folder / file.name).symlink_to(file)
        config = json.loads((pathlib.Path(TINY) / "tokenizer_config.json").read_text(encoding="utf-8"))
        del config["chat_template"]
        self.write("tokenizer_config.json", json.dumps(config))
        result = self.chat("--json", model=str(self.folder), stdin="The hollow\n")
        self.assertEqual(json.loads(self.assert_done(result))["ids"], self.completion("The hollow")["ids"])
        self.assertIn("no chat template", result.stderr)
        self.assert_refused(self.chat("--thinking", "on", model=str(self.folder), stdin="x"), 2, "--thinking")

    def test_a_full_context_is_told(self):
        result = self.chat("--ctx", "16", stdin="Who?\n")
        self.assert_done(result)
        self.assertIn("the context of 16 tokens is full; /reset", result.stderr)
        self.assert_refused(self.chat("--ctx", "4", stdin="Who carries the lantern?\n"), 1, "context holds 4", "/reset")

    def test_wrong_options(self):
        for arguments in (["--thinking", "maybe"], ["--temperature", "-1"], ["--max-tokens", "x"], ["--ctx", "-1"]):
            self.assert_refused(self.chat(*arguments, stdin="x"), 2, arguments[0])
        self.assert_refused(self.chat("--template", "/nonexistent", stdin="x"), 1, "/nonexistent")
        self.assert_refused(fathom("chat", "--model", "/nonexistent"), 1, "/nonexistent")

    def test_ctrl_c_on_a_terminal_stops_the_answer_and_not_the_program(self):
        try:
            ours, theirs = pty.openpty()
        except OSError as error:
            self.skipTest(str(error))
        arguments = [PROGRAM, "chat", "--model", TINY, "--max-tokens", "1000000", "--stop", "[never]"]
        with subprocess.Popen(arguments, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            os.write(ours, b"Who?\n")
            process.stdout.read(1)  # it answers
            process.send_signal(signal.SIGINT)
            os.write(ours, b"/help\n/exit\n")
            _, log = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, log)
            self.assertIn(b"/reset", log)
        os.close(ours)
        os.close(theirs)

    def test_a_signal_ends_it_where_stdin_is_no_terminal(self):
        with subprocess.Popen([PROGRAM, "chat", "--model", TINY, "--quiet"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdin.write(b"Who?\n")
            process.stdin.flush()
            process.stdout.read(1)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            self.assertEqual(process.returncode, 128 + signal.SIGTERM)


class Bench(Case):
    def test_nothing_to_measure_is_refused(self):
        self.assert_refused(fathom("bench", "--model", MTP, "--prompt", "0", "--gen", "0"), 2, "nothing to measure")

    def bench(self, *arguments):
        return fathom("bench", "--model", TINY, "--reps", "2", *arguments)

    def test_rates_stand_under_the_names_of_their_tests(self):
        lines = []
        for arguments in (["--prompt", "8", "--gen", "4"], ["--prompt", "0", "--gen", "4", "--batch", "2", "--depth", "8"]):
            lines += self.assert_done(self.bench(*arguments, "--json")).splitlines()
        tests = [json.loads(line) for line in lines]
        self.assertEqual([t["test"] for t in tests], ["pp8", "tg4", "tg4x2@d8"])
        for test in tests:
            self.assertGreater(test["avg_ts"], 0)
            self.assertGreaterEqual(test["stddev_ts"], 0)
            self.assertEqual(len(test["samples_ts"]), 2)
            self.assertAlmostEqual(sum(test["samples_ts"]) / 2, test["avg_ts"], delta=1e-6 * test["avg_ts"])
        self.assertIn("tokens/s", self.assert_done(self.bench("--prompt", "2", "--gen", "0")))

    def test_wrong_usage(self):
        self.assert_refused(self.bench("--depth", "163840"), 2, "--depth 163840", "163840 that the model reads")
        self.assert_refused(self.bench("--batch", "0"), 2, "--batch")
        self.assert_refused(self.bench("--reps", "0"), 2, "--reps")
        self.assert_refused(self.bench("--gen", "-1"), 2, "--gen")
        self.assert_refused(fathom("bench"), 2, "--model")
        self.assert_refused(fathom("bench", "--model", "/nonexistent"), 1, "/nonexistent")
        self.assert_refused(fathom("bench", "--model", TINY, "--machine"), 2, "--machine", "--model")

    def test_drafts_are_measured_beside_none(self):
        arguments = ["bench", "--model", MTP, "--prompt", "0", "--gen", "24", "--depth", "5", "--reps", "2", "--draft", "mtp", "--draft-tokens", "2"]
        plain, drafted = (json.loads(line) for line in self.assert_done(fathom(*arguments, "--json")).splitlines())
        self.assertEqual((plain["test"], drafted["test"]), ("tg24@d5", "tg24+mtp2@d5"))
        self.assertEqual([len(test["samples_ts"]) for test in (plain, drafted)], [2, 2])
        self.assertAlmostEqual(drafted["speedup"], drafted["avg_ts"] / plain["avg_ts"])
        self.assertAlmostEqual(drafted["acceptance"], drafted["accepted"] / drafted["drafted"])
        self.assertIn("of the drafts accepted", self.assert_done(fathom(*arguments)))
        none = self.bench("--prompt", "0", "--gen", "4", "--draft", "mtp")
        self.assertEqual(len(self.assert_done(none).splitlines()), 1)
        self.assertIn("no MTP module", none.stderr)
        self.assert_refused(fathom(*arguments, "--batch", "2"), 2, "--draft", "--batch 1")
        arguments[arguments.index("--depth") + 1] = "163800"
        self.assert_refused(fathom(*arguments), 2, "--depth 163800")

    def test_the_machine_is_measured_for_each_number_of_threads(self):
        lines = self.assert_done(fathom("bench", "--machine", "--threads", "2", "--json")).splitlines()
        for n, line in enumerate(lines, 1):
            rates = json.loads(line)
            self.assertEqual((rates.pop("test"), rates.pop("threads")), ("machine", n))
            dot = rates.pop("i8_dot_gops")  # null where the CPU has no such instruction
            self.assertTrue(dot is None or dot > 0, dot)
            self.assertEqual(list(rates), ["memory_gbs", "memory_4k_gbs", "l3_gbs", "l2_gbs", "f32_gflops", "i8_gops", "i8_short_gops", "latency_ns", "memory_gib"])
            self.assertTrue(all(rate > 0 for rate in rates.values()), rates)
        self.assertEqual(len(lines), 2)


def without_right_to_lock():
    """In the process to be: root may lock what it likes, unless this right is out of its bounds."""
    libc = ctypes.CDLL(None, use_errno=True)
    pr_capbset_drop, cap_ipc_lock = 24, 14
    libc.prctl(pr_capbset_drop, cap_ipc_lock, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16))


class Placement(Case):
    def setUp(self):
        super().setUp()
        self.packed = str(self.folder / "packed")
        self.assert_done(fathom("convert", TINY, self.packed, "--to", "q8_0", "--quiet"))
        self.arguments = ["--tokens", "0,5,9", "--max-tokens", "8", "--ignore-eos", "--json"]

    def run_packed(self, *options, **more):
        return fathom("generate", "--model", self.packed, *self.arguments, *options, **more)

    def test_changes_no_token(self):
        plain = json.loads(self.assert_done(self.run_packed()))
        self.assertNotIn("expert_hit_rate", plain)
        for options in (["--mlock"], ["--hugepages"], ["--hugepages", "--mlock"], ["--pin"], ["--read-ahead", "on"], ["--read-ahead", "off"]):
            result = self.run_packed(*options)
            self.assertEqual(json.loads(self.assert_done(result))["ids"], plain["ids"], options)
        for command in (["score", "--tokens", self.write("t.json", "[[0, 5, 9]]")], ["bench", "--prompt", "4", "--gen", "2", "--reps", "1"]):
            self.assert_done(fathom(*command, "--model", self.packed, "--hugepages", "--mlock", "--pin", "--quiet"))
        self.assert_done(fathom("chat", "--model", self.packed, "--max-tokens", "1", "--mlock", stdin="a\n"))

    def test_hit_rate_when_asked_for(self):
        result = self.run_packed("--read-ahead", "on")
        self.assertGreater(json.loads(self.assert_done(result))["expert_hit_rate"], 0.5)
        self.assertIn("were in memory", result.stderr)
        line = self.assert_done(fathom("bench", "--model", self.packed, "--prompt", "0", "--gen", "4", "--reps", "1", "--json", "--read-ahead", "on"))
        self.assertGreater(json.loads(line)["expert_hit_rate"], 0.5)
        result = self.generate(*self.arguments, "--read-ahead", "on")  # packed at load: nothing is mapped
        self.assertNotIn("expert_hit_rate", json.loads(self.assert_done(result)))
        self.assertIn("the weights are in memory", result.stderr)

    def test_lock_beyond_the_limit_is_refused_with_the_limit(self):
        for model in (self.packed, TINY):
            result = fathom("generate", "--model", model, *self.arguments, "--mlock", preexec_fn=without_right_to_lock)
            self.assert_refused(result, 1, "--mlock", "64.0 KiB", "RLIMIT_MEMLOCK", "ulimit -l")

    def test_wrong_usage(self):
        self.assert_refused(self.run_packed("--pin", "--threads", "1000"), 2, "--pin", "1000 threads", "--threads")
        self.assert_refused(self.run_packed("--read-ahead", "maybe"), 2, "--read-ahead")
        self.assert_refused(self.run_packed("--read-ahead", "on", "--hugepages"), 2, "--read-ahead", "--hugepages")
        score = ["score", "--model", TINY, "--tokens", self.write("t.json", "[[0, 5]]"), "--grads", str(self.folder / "g.safetensors")]
        self.assert_refused(fathom(*score, "--mlock"), 2, "--mlock", "--grads")


class Inspect(Case):
    def inspect(self, *arguments):
        return json.loads(self.assert_done(fathom("inspect", *arguments, "--json")))

    def test_says_what_fits(self):
        memory = self.inspect(TINY)["memory"]
        self.assertEqual((memory["fits"], memory["runs_from_disk"]), (True, False))
        self.assertGreater(memory["available_bytes"], memory["weight_bytes"])
        self.assertEqual(memory["context_that_fits"]["f32"], 163840)  # all that the model reads
        self.assertNotIn("memory", self.inspect(TINY + "/config.json"))
        self.assertIn("fits with a context of 163840 tokens in f32", self.assert_done(fathom("inspect", TINY)))

    def test_packed_tensors_have_their_formats_and_shapes(self):
        packed = str(self.folder / "packed")
        self.assert_done(fathom("convert", TINY, packed, "--to", "q8_0", "--quiet"))
        found = self.inspect(packed, "--tensors")
        self.assertEqual(set(found["bytes_by_type"]), {"q8_0", "bf16", "f32"})  # bf16: rows that are no whole blocks
        self.assertEqual(sum(found["bytes_by_type"].values()), found["bytes"])
        self.assertEqual(found["memory"]["weight_bytes"], found["bytes"])
        self.assertEqual(found["n_tensors"], len(found["tensors"]))
        config = found["config"]
        listed = {t["name"]: (t["dtype"], t["shape"]) for t in found["tensors"]}
        self.assertEqual(listed["lm_head.panels.q8_0"], ("q8_0", [config["vocab_size"], config["hidden_size"]]))
        self.assertEqual(listed["model.norm.rows.f32"], ("f32", [config["hidden_size"]]))
        text = self.assert_done(fathom("inspect", packed, "--tensors"))
        self.assertNotIn("U8", text)
        self.assertGreater(self.inspect(TINY)["memory"]["weight_bytes"], found["bytes"])


if __name__ == "__main__":
    unittest.main(verbosity=1)
