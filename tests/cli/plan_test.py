#!/usr/bin/env python3
"""fathom plan. usage: plan_test.py PROGRAM"""
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

PROGRAM = sys.argv.pop(1)
DATA = pathlib.Path(__file__).resolve().parent.parent / "data" / "parallel"


def plan(*arguments, stdin=""):
    return subprocess.run([PROGRAM, "plan", *arguments], input=stdin, capture_output=True, text=True, timeout=60)


class Schedule(unittest.TestCase):
    def test_is_the_published_one(self):
        for expected in json.loads((DATA / "pipeline.schedules.json").read_text()):
            sim = expected["sim"][1]
            done = plan("schedule", "--kind", expected["schedule"], "--ranks", str(expected["ranks"]), "--chunks", str(expected["chunks"]),
                        "--f", str(sim["F"]), "--b", str(sim["B"]), "--w", str(sim["W"]), "--fb", str(sim["FB"]), "--json")
            self.assertEqual(done.stderr, "")
            told = json.loads(done.stdout)
            self.assertEqual(told["ops"], expected["ops"])
            self.assertEqual({key: told[key] for key in ("makespan", "idle", "peak_live")}, {key: sim[key] for key in ("makespan", "idle", "peak_live")})

    def test_is_drawn(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "schedule.svg"
            done = plan("schedule", "--kind", "1f1b", "--ranks", "4", "--chunks", "8", "--svg", str(file))
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("by formula 9", done.stdout)
            xml.dom.minidom.parse(str(file))

    def test_wrong_use(self):
        for arguments in (["--kind", "dualpipe", "--ranks", "3"], ["--kind", "dualpipev", "--ranks", "8", "--chunks", "15"], ["--ranks", "0"], ["--f", "-1"],
                          ["--f", "nan"], ["--w", "5", "--b", "2"], ["--kind", "zb2p"], ["--ranks", "1024", "--chunks", "65536"]):
            done = plan("schedule", *arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertEqual(done.stderr.count("\n"), 1)
        self.assertIn("--f: 0 is no number from 1e-09 to 1e+09", plan("schedule", "--f", "0").stderr)
        self.assertIn("--transfer: -1 is no number from 0 to 1e+09", plan("schedule", "--transfer=-1").stderr)
        for arguments, words in ((["foo"], "foo is no subcommand: must be one of memory, train, "), ([], "A subcommand is required: memory, train, "), (["--nonsense"], "required: memory")):
            done = plan(*arguments)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1))
            self.assertIn(words, done.stderr)
        done = plan("schedule", "--svg", "/nowhere/at/all.svg")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr.count("\n"), 1)


def event(name, category, rank, begin, length, **arguments):
    return {"name": name, "cat": category, "ph": "X", "pid": rank, "tid": 0, "ts": begin, "dur": length, "args": arguments}


# Two ranks, two steps: the second one of 4 ms.
STEPS = [event("step 6", "step", 0, 0, 1000), event("step 7", "step", 0, 1000, 4000), event("step 7", "step", 1, 1000, 3500)]
PIECES = [event("F0", "pass", 0, 0, 900, chunk=0, direction=0), event("F0", "pass", 0, 1000, 1000, chunk=0, direction=0), event("wait for messages", "wait", 0, 2000, 400),
          event("W0", "pass", 0, 2400, 600, chunk=0, direction=0), event("adding gradients", "sum", 0, 3000, 200), {**event("sum", "sum", 0, 2500, 0, bytes=4, seconds=2.5e-3), "ph": "b"}, event("wait for a stage", "wait", 1, 1000, 1000),
          event("B1", "pass", 1, 2000, 2000, chunk=12, direction=1), event("I1", "pass", 1, 4000, 1000, chunk=3, direction=1), event("dispatch", "rows", 1, 4000, 10, bytes=5),
          {"name": "process_name", "ph": "M", "pid": 0, "args": {"name": "rank 0"}}]


class Trace(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def plan(self, trace, *arguments):
        file = self.folder / "a<b.json"
        file.write_text(trace if isinstance(trace, str) else json.dumps(trace))
        return plan("schedule", "--from-trace", str(file), *arguments)

    def test_is_drawn(self):
        trace = {"traceEvents": STEPS + PIECES}
        svg = self.folder / "trace.svg"
        done = self.plan(trace, "--svg", str(svg))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines()[:2], ["F" * 25 + ":" * 10 + "W" * 15 + "S" * 50, "." * 25 + "b" * 50 + "i" * 25])
        drawn = xml.dom.minidom.parse(str(svg))
        boxes = [box.getAttribute("fill") for box in drawn.getElementsByTagName("rect") if box.getAttribute("height") == "20.00"]
        self.assertEqual(len(boxes), 2 + 5 + 2)  # two rows, and what is no wait for a stage
        texts = [text.firstChild.data for text in drawn.getElementsByTagName("text")]
        self.assertIn("a<b: step 7, 2 ranks, measured", texts)
        for text in ("12", "3", "waits for messages", "sums of gradients", "4 ms"):
            self.assertIn(text, texts)
        told = json.loads(self.plan(trace, "--json").stdout)
        self.assertEqual((told["step"], round(told["makespan_s"], 9)), (7, 0.004))
        self.assertEqual([{name: round(1e3 * value, 9) for name, value in rank.items()} for rank in told["ranks"]],
                         [{"computed_s": 1.6, "exposed_s": 0.4, "starved_s": 0, "sums_beside_s": 0.7, "sums_alone_s": 1.8}, {"computed_s": 3, "exposed_s": 0, "starved_s": 1, "sums_beside_s": 0, "sums_alone_s": 0}])
        self.assertEqual(json.loads(self.plan(trace, "--json", "--step", "6").stdout)["ranks"], [{"computed_s": 0.0009, "exposed_s": 0, "starved_s": 0, "sums_beside_s": 0, "sums_alone_s": 0}])

    def test_what_is_no_trace(self):
        def broken(name, category="pass", rank=0, begin=1000, length=5, **arguments):
            return {"traceEvents": [*STEPS, event(name, category, rank, begin, length, **arguments)]}

        good = {"chunk": 0, "direction": 0}
        for trace, word in (("", ""), ("{", ""), ("[" * 100000, ""), ("[]", "traceEvents"), ({"traceEvents": {}}, "traceEvents"), ({"traceEvents": [5]}, "traceEvents[0]"),
                            ({"traceEvents": []}, "has no steps"), ({"traceEvents": PIECES}, "has no steps"), ({"traceEvents": STEPS}, "step 7 takes no time"),
                            (broken("F0", rank=-1, **good), "pid"), (broken("F0", rank=1024, **good), "pid"), (broken("F0", rank=0.5, **good), "pid"),
                            (broken("F0", begin=-1, **good), "ts"), (broken("F0", begin="1", **good), "ts"), (broken("F0", length=1e300, **good), "dur"),
                            (broken("F0", length=None, **good), "dur"), (broken("X0", **good), "X0"), (broken("", **good), "neither"), (broken("F0", chunk=-1, direction=0), "chunk"),
                            (broken("F0", chunk=10**9, direction=0), "chunk"), (broken("F0", chunk=0, direction=2), "direction"), (broken("F0", chunk=0), "direction"),
                            (broken("F0", "wait"), "F0"), (broken("wait for a stage", "pass", **good), "neither"), (broken("step x\x1b[31m", "step"), "\\x1b"),
                            (broken("step 99999999999999999999", "step"), "number"), (json.dumps(broken("F0", **good)).replace('"ts": 1000', '"ts": 1e999'), "")):
            done = self.plan(trace, "--svg", str(self.folder / "none.svg"))
            self.assertEqual(done.returncode, 1, (trace, done.stderr))
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertIn("a<b.json", done.stderr)
            self.assertIn(word, done.stderr)
            self.assertFalse((self.folder / "none.svg").exists())
        self.assertIn("has no step 5, but 6 to 7", self.plan({"traceEvents": STEPS + PIECES}, "--step", "5").stderr)
        self.assertEqual(plan("schedule", "--from-trace", "/nowhere/at/all.json").returncode, 1)
        self.assertEqual(self.plan({"traceEvents": STEPS + PIECES}, "--kind", "1f1b").returncode, 2)
        self.assertEqual(plan("schedule", "--step", "1").returncode, 2)
        large = self.folder / "large.json"
        with large.open("w") as file:
            file.truncate((256 << 20) + 1)
        done = plan("schedule", "--from-trace", str(large))
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1))


class Eplb(unittest.TestCase):
    def test_is_the_published_one(self):
        lines = (DATA / "eplb.vectors.jsonl").read_text().splitlines()
        inputs = [{key: each[key] for key in ("weight", "num_replicas", "num_groups", "num_nodes", "num_gpus")} for each in map(json.loads, lines)]
        done = plan("eplb", "--json", stdin="\n".join(map(json.dumps, inputs)))
        self.assertEqual(done.stderr, "")
        told = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual(len(told), len(lines))
        for ours, theirs in zip(told, map(json.loads, lines)):
            for key in ("physical_to_logical", "logical_to_physical", "expert_count"):
                self.assertEqual(ours[key], theirs[key])

    def test_wrong_input(self):
        good = {"weight": [[1, 2]], "num_replicas": 2, "num_groups": 1, "num_nodes": 1, "num_gpus": 2}
        self.assertIn("GPU by GPU: 0 | 1", plan("eplb", stdin=json.dumps(good)).stdout)
        for change in ({"weight": 5}, {"weight": []}, {"weight": [[]]}, {"weight": [["a"]]}, {"num_gpus": 0}, {"num_gpus": 1.5}, {"num_replicas": 10**9},
                       {"num_nodes": None}, {"weight": [[1, -2]]}, {"weight": [[1e308, 1e308]]}, {"num_groups": 3}):
            done = plan("eplb", stdin=json.dumps({**good, **change}))
            self.assertEqual(done.returncode, 1, change)
            self.assertTrue(done.stderr.startswith("fathom: standard input: line 1: "), done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)
        self.assertEqual(plan("eplb", stdin="[" * 100000).returncode, 1)
        large = {**good, "weight": [[1e100] * 64], "num_replicas": 64, "num_gpus": 64}
        self.assertAlmostEqual(json.loads(plan("eplb", "--json", stdin=json.dumps(large)).stdout)["max_over_mean_gpu_load"][0], 1)


ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHAKESPEARE = str(ROOT / "models" / "shakespeare.config.json")


class Costs(unittest.TestCase):
    def told(self, *arguments):
        done = plan(*arguments, "--json")
        self.assertEqual((done.returncode, done.stderr), (0, ""), arguments)
        self.assertEqual(done.stdout.count("\n"), 1)
        return json.loads(done.stdout)

    def refused(self, code, words, *arguments):
        done = plan(*arguments)
        self.assertEqual((done.returncode, done.stdout), (code, ""), (arguments, done.stderr))
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_figures_of_the_reports(self):
        memory = self.told("memory", "--model-config", "deepseek-v3", "--gpu", "h100", "--gpus", "8")["lines"]
        self.assertEqual(memory["parameters"], {"value": 671026419200, "unit": "parameters", "basis": "exact"})
        self.assertEqual(memory["cache_token_bytes"]["value"], 70272)
        train = self.told("train", "--model-config", "deepseek-v3", "--gpus", "2048", "--gpu", "h800")
        self.assertAlmostEqual(train["lines"]["gpu_hours"]["value"] / 2.664e6, 1, 2)
        self.assertEqual((train["inputs"]["pp"], train["inputs"]["ep"], train["inputs"]["pp_schedule"]), (16, 64, "dualpipe"))
        serve = self.told("serve", "--network-bandwidth", "50GB/s")["lines"]
        self.assertAlmostEqual(serve["limit_network_s"]["value"] * 7000 / 7168, 14.76e-3, 5)

    def test_a_plan_and_inspect_count_the_same(self):
        for model in (SHAKESPEARE, str(ROOT / "models" / "shakespeare"), str(ROOT / "tests" / "data" / "oracle" / "v3_tiny")):
            lines = self.told("memory", "--model-config", model)["lines"]
            done = subprocess.run([PROGRAM, "inspect", model, "--json"], capture_output=True, text=True, timeout=60)
            inspected = json.loads(done.stdout)
            for ours, theirs in (("parameters", "total"), ("active_parameters", "active")):
                self.assertEqual(lines[ours]["value"], inspected["parameters"][theirs], model)
            self.assertEqual(lines["cache_token_bytes"]["value"], inspected["cache_bytes_per_token"]["bf16"])

    def test_every_line_is_explained(self):
        for kind in ("memory", "train", "serve"):
            told = self.told(kind, "--explain")
            for name, line in told["lines"].items():
                self.assertTrue(line["formula"] and line["with_numbers"] and line["source"] and line["title"], name)
            text = plan(kind, "--explain").stdout
            self.assertIn("Constants\n", text)
            for name in told["lines"]:
                self.assertIn(f"      {name} = ", text)
            self.assertIn("docs/planner.md" if kind != "memory" else "Estimates", plan(kind).stdout.splitlines()[-1] + plan(kind).stdout.splitlines()[-2])

    def test_tables_and_constants_of_the_documents_are_the_programs(self):
        document = (ROOT / "docs/planner.md").read_text()
        tables = subprocess.run([sys.executable, ROOT / "bench/plan_tables.py", PROGRAM], capture_output=True, text=True, check=True).stdout
        rows = [line for line in tables.splitlines() if line.startswith("| ")]
        self.assertGreater(len(rows), 40)
        for row in rows:
            self.assertIn(row, document)
        told = {}
        for line in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]*) \|", document, re.M):
            told |= dict(zip(re.findall(r"\w+", line[0]), line[1].split(", "), strict=True))
        units = {"MB": 1e6, "GB": 1e9, "us": 1e-6}
        constants = {}
        for kind in ("memory", "train", "serve"):
            constants |= self.told(kind)["constants"]
        for name, value in constants.items():
            number, _, unit = told[name].partition(" ")
            self.assertAlmostEqual(float(number) * units.get(unit, 1) / (value["value"] if isinstance(value, dict) else value), 1, 6, name)

    def test_errors_told_are_those_of_the_tables(self):
        tables = (ROOT / "docs" / "planner.md").read_text()

        def blind(section):
            rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.split(f"### {section}\n")[1].split("\n#")[0].split("What the tables say")[0].splitlines() if line.startswith("|")]
            return [(figure, abs(float(error.rstrip(" %")))) for figure, _, _, error, basis in rows if basis == "blind" and error != "within"]

        def sureness(kind):
            return " ".join(plan(kind).stdout.split())

        bubbles, others = [[error for figure, error in blind("Training") if ("bubble" in figure) == is_bubble] for is_bubble in (True, False)]
        within, bubble = map(int, re.search(r"within (\d+) % .* bubble .* (\d+) % too low", sureness("train")).groups())
        self.assertLessEqual(max(others), within)
        self.assertEqual([round(error) for error in bubbles], [bubble])
        hosts, gpus = [[error for figure, error in blind("Serving") if bool(re.search("Xeon|EPYC|DDR", figure)) == is_host] for is_host in (True, False)]
        self.assertLessEqual(max(gpus), int(re.search(r"within (\d+) % .* hosts within a third", sureness("serve")).group(1)))
        self.assertLessEqual(max(hosts), 100 / 3)

    @unittest.skipUnless(shutil.which("node"), "no node")
    def test_formulas_with_numbers_are_javascript(self):
        lines = [line for kind in ("memory", "train", "serve") for model in ("deepseek-v3.2", "llama-3.1-8b")
                 for line in self.told(kind, "--model-config", model, "--explain")["lines"].values()]
        lines = [line for line in lines if "least_parts" not in line["formula"]]  # the planner's own
        script = ("const {min, max, ceil, floor, round, sqrt, pow, log, exp} = Math; const lines = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
                  "for (const line of lines) console.log(Number(eval(line.with_numbers)))")
        done = subprocess.run(["node", "-e", script], input=json.dumps(lines), capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        values = [float(value) for value in done.stdout.split()]
        self.assertEqual(len(values), len(lines))
        for line, value in zip(lines, values):  # numbers are shown with six digits
            self.assertAlmostEqual(value, line["value"], delta=1e-3 * abs(line["value"]) + 1e-9, msg=line["formula"])

    def test_a_table_over_an_option(self):
        done = plan("serve", "--over", "batch=1,32,256", "--json")
        plans = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([each["inputs"]["batch"] for each in plans], [1, 32, 256])
        times = [each["lines"]["tpot_s"]["value"] for each in plans]
        self.assertEqual(times, sorted(times))
        text = plan("serve", "--over", "batch=1,32,256").stdout
        self.assertIn("Time per output token", text)
        self.assertNotIn("Attention, all layers", text)  # the same for all
        self.assertRegex(plan("train", "--gpus", "8", "--over", "tokens=1T,2T").stdout, r"\n  Fits +no +no\n")  # so is this, and it is told
        for over in ("batch", "batch=", "nothing=1", "=1", "batch=1,,2", "batch=1,x", "tokens=1"):
            self.refused(2, ["plan serve"], "serve", "--over", over)
            self.refused(2, ["plan serve"], "serve", "--over", over, "--json")
        self.refused(2, ["--over batch=1,,2", "should be an option and its values"], "serve", "--over", "batch=1,,2")
        self.refused(2, ["--over", "--explain", "--json"], "serve", "--over", "batch=1,2", "--explain")
        told = [json.loads(line) for line in plan("serve", "--over", "batch=1,2", "--explain", "--json").stdout.splitlines()]
        self.assertEqual([bool(each["lines"]["tpot_s"]["formula"]) for each in told], [True, True])

    def test_numbers_that_no_integer_holds(self):
        done = plan("train", "--tokens", "1e18", "--json")
        self.assertIn('"tokens":1e+18', done.stdout)
        self.assertGreater(json.loads(done.stdout)["lines"]["flops_total"]["value"], 2.5e29)

    def test_wrong_use(self):
        self.refused(2, ["no GPU", "h800"], "memory", "--gpu", "h900")
        self.refused(2, ["no model", "deepseek-v3"], "memory", "--model-config", "deepseek-v9")
        self.refused(2, ["--batch -1", "from 1"], "serve", "--batch=-1")
        self.refused(2, ["--batch 1,64", "as 1,024"], "serve", "--batch", "1,64")
        for option in ("--batch", "--weights", "--gpu", "--over", "--hardware", "--model-config"):
            self.refused(2, [f"{option}: is empty"], "serve", option, "")
        self.refused(2, ["--pp 7", "--gpus 2048"], "train", "--pp", "7")
        self.refused(2, ["--ep 3"], "train", "--ep", "3")
        self.refused(2, ["q4_0"], "memory", "--weights", "int3")
        self.refused(2, ["number"], "train", "--tokens", "lots")
        self.refused(2, ["no FP8"], "train", "--gpu", "a100", "--precision", "fp8")
        self.refused(2, ["--nonsense"], "serve", "--nonsense", "1")
        self.refused(1, ["nothere"], "serve", "--hardware", "/nowhere/nothere.toml")
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "config.json"
            file.write_text("{")
            self.refused(1, ["config.json"], "memory", "--model-config", str(file))

    def test_what_other_hardware_holds(self):
        def others(*arguments):
            done = plan("memory", *arguments)
            self.assertEqual((done.returncode, done.stderr), (0, ""), arguments)
            text = " ".join(done.stdout.split())
            format_name, counts = re.search(r"Weights in (\S+) and caches would fit into ([^,]*(?:, [^,]*)*?)\. ", text).groups()
            return text, format_name, dict(reversed(each.split(" x ")) for each in counts.split(", "))

        text, format_name, counts = others("--gpu", "a100")
        self.assertEqual((format_name, f"; --gpus {counts['a100']} would do" in text), ("bf16", True), text)
        for arguments in (["--gpu", "h800"], ["--gpu", "a100", "--weights", "q4_0"], ["--gpu", "epyc-9654", "--ram", "200GB"], ["--gpu", "epyc-9654"]):
            counts = others(*arguments)[2]
            self.assertEqual(float(counts[arguments[1]]), self.told("memory", *arguments)["lines"]["gpus_needed"]["value"], arguments)
        # One that nothing fits into is left out and stops no plan of another.
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "small.toml"
            file.write_text('[[device]]\nname = "tiny"\nbf16_tflops = 10\nmemory_gib = 2\nmemory_gbs = 100\n')
            counts = others("--hardware", str(file), "--gpu", "h800")[2]
            self.assertIn("h200", counts)
            self.assertNotIn("tiny", counts)
            self.refused(2, ["memory"], "memory", "--hardware", str(file))

    def test_as_many_gpus_as_are_needed_and_no_more(self):
        arguments = ["memory", "--model-config", "deepseek-v2-lite", "--gpu", "rtx-4090", "--batch", "64", "--gpus"]
        needed = int(self.told(*arguments, "8")["lines"]["gpus_needed"]["value"])
        fits = lambda gpus: self.told(*arguments, str(gpus))["lines"]["fits"]["value"]
        self.assertEqual((fits(needed), fits(needed - 1)), (1, 0), needed)

    def test_experts_in_main_memory_beside_a_gpu(self):
        def lines(*arguments):
            return {name: line["value"] for name, line in self.told("serve", "--ram-bandwidth", "200GB", *arguments)["lines"].items()}

        v3 = lines("--gpu", "h200", "--weights", "q4_0", "--ram", "1TB", "--gpus", "1")
        self.assertEqual(v3["disk_experts_share"], 0)
        self.assertTrue(0 < v3["gpu_experts_share"] < 0.5, v3)
        self.assertTrue(v3["host_tokens_s"] < v3["hybrid_tokens_s"] < v3["hybrid_most_tokens_s"], v3)
        little = lines("--gpu", "h200", "--weights", "q4_0", "--ram", "200GB", "--gpus", "1")
        self.assertTrue(0 < little["disk_experts_share"] < 1, little)
        self.assertLess(little["hybrid_tokens_s"], v3["hybrid_tokens_s"])
        none = lines("--gpu", "rtx-4090", "--weights", "bf16", "--ram", "2TB", "--gpus", "1")
        self.assertNotIn("hybrid_tokens_s", none)  # the rest has no room on it

    def test_what_would_be_ignored_is_refused(self):
        self.refused(2, ["--ram", "leave it out"], "train", "--gpu", "h800", "--ram", "1TB")
        self.refused(2, ["--output-tokens-a-day", "--input-tokens-a-day"], "serve", "--output-tokens-a-day", "1e9")

    def test_hardware_of_ones_own(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "own.toml"
            file.write_text('[[device]]\nname = "own"\nfp8_tflops = 1000\nbf16_tflops = 500\nf32_tflops = 50\nmemory_gib = 1000\nmemory_gbs = 10000\nlink_gbs = 100\nnetwork_gbs = 50\ndollars_an_hour = 9\n')
            told = self.told("serve", "--hardware", str(file))
            self.assertEqual((told["gpu"], told["inputs"]["price"]), ("own", 9))
            self.assertEqual(self.told("serve", "--hardware", str(file), "--gpu", "h200")["gpu"], "h200")
            names = [json.loads(line)["name"] for line in plan("hardware", "--hardware", str(file), "--json").stdout.splitlines()]
            self.assertEqual(names[:2], ["own", "h800"])
            self.assertIn("its assumption", plan("hardware", "--explain").stdout)
            machine = {"test": "machine", "threads": 1, "memory_gbs": 30.0, "l3_gbs": 70.0, "l2_gbs": 100.0, "f32_gflops": 110.0, "i8_gops": 230.0, "i8_dot_gops": None}
            file.write_text(json.dumps(machine) + "\n" + json.dumps({**machine, "threads": 2, "f32_gflops": 220.0}) + "\n")
            one = self.told("train", "--hardware", str(file), "--model-config", SHAKESPEARE, "--seq-len", "128", "--batch-size", "16", "--micro-batch", "16")
            self.assertEqual((one["gpu"], one["inputs"]["precision"]), ("machine", "f32"))
            self.assertGreater(one["lines"]["tokens_per_s"]["value"], 1000)
            file.write_text('[[device]]\nname = "\x1b"\n')
            self.refused(1, ["own.toml"], "serve", "--hardware", str(file))


if __name__ == "__main__":
    unittest.main()
