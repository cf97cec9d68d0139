#!/usr/bin/env python3
"""The page that `fathom plan page` writes, in a browser: plan_page_test.py PROGRAM [--screenshot FILE] [unittest's arguments]

Needs Debian's chromium and PyPI's playwright; exits 77, "skipped", without them. What the page shows must be what the program prints, for
many settings; it must raise no error, break no rule of its Content-Security-Policy, ask for nothing but the file and open no dialog of the
browser's. --screenshot takes a picture of a plan."""

import argparse
import concurrent.futures
import functools
import itertools
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/clients"))
import client_packages

client_packages.need_browser()

from playwright.sync_api import expect

from browser import BrowserTest, contrasts

options = argparse.Namespace(program="", screenshot=None)

HOSTILE = "</script><script>throw 1</script>{{script}} & <b>"
MACHINE = f"""[[device]]
name = "h800"
title = "ours {HOSTILE}"
fp8_tflops = 100
bf16_tflops = 50
f32_tflops = 10
memory_gib = 1000
memory_gbs = 2000
link_gbs = 100
network_gbs = 10
dollars_an_hour = 1.25
source.memory_gib = "measured {HOSTILE}"

[[device]]
name = "shed"
kind = "host"
f32_tflops = 1
memory_gib = 64
memory_gbs = 80
"""

MODELS = ["deepseek-v3", "deepseek-v3.2", "deepseek-v2-lite", "moonlight-16b-a3b", "llama-3.1-70b"]
GPUS = ["h800", "b200", "a100", "rtx-4090", "epyc-9654"]


def grid(kind):
    """Settings of a kind of plan: every model on every hardware, and inputs that are other ones for each."""
    layouts = {
        "memory": [
            {},
            {"gpus": "2048", "seq_len": "2048", "kv_type": "fp8"},
            {"gpus": "64", "pp": "4", "ep": "1", "weights": "q4_k_m", "context": "2,048", "batch": "33"},
            {"gpus": "16", "pp": "2", "dp": "8", "batch_size": "64", "pp_schedule": "1f1b", "moments": "f32", "ram": "1.5TB"},
            {"gpus": "32", "pp": "4", "batch_size": "2048", "pp_schedule": "dualpipev", "precision": "bf16", "micro_batch": "2"},
        ],
        "train": [
            {},
            {"gpus": "512", "tokens": "1T", "mtp": "off"},
            {"gpus": "64", "pp": "8", "pp_schedule": "zb1p", "seq_len": "1024", "price": "3.75"},
            {"gpus": "128", "pp": "4", "pp_schedule": "dualpipe", "batch_size": "8192", "ep": "4"},
            {"gpus": "24", "pp": "3", "dp": "8", "ep": "8", "batch_size": "72", "micro_batch": "3", "tokens": "2.5e9", "pp_schedule": "gpipe"},
        ],
        "serve": [
            {},
            {"gpus": "64", "ep": "32", "batch": "48", "context": "5000", "prompt": "1500", "cache_hits": "56.3%"},
            {"weights": "q4_0", "kv_type": "int8", "batch": "1", "ram": "256GiB", "ram_bandwidth": "400GB/s", "nvme_bandwidth": "12GB/s"},
            {"gpus": "16", "redundant_experts": "32", "utilization": "0.7", "price": "0", "network_bandwidth": "100GB/s"},
            {"gpus": "144", "batch": "200", "input_tokens_a_day": "608B", "output_tokens_a_day": "168B", "mtp_acceptance": "80%"},
        ],
    }[kind]
    for i, (model, gpu) in enumerate(itertools.product(MODELS, GPUS)):
        yield {"model": model, "gpu": gpu} | layouts[i % 5]
    for layout in layouts:
        yield {"model": "deepseek-v3", "gpu": "h800"} | layout
        yield {"model": "deepseek-r1", "gpu": "mi300x"} | layout
        yield {"model": "deepseek-v3.1", "gpu": "h200"} | layout


def fragment(kind, setting):
    return "#" + urllib.parse.urlencode({"plan": kind} | setting)


def command(kind, setting, *more):
    words = [options.program, "plan", kind, *more]
    for name, value in setting.items():
        words.append(f"--{'model-config' if name == 'model' else name.replace('_', '-')}={value}")
    return words


@functools.lru_cache(maxsize=None)
def printed(words):
    return subprocess.run(words, capture_output=True, encoding="utf-8")


def planned(kind, setting, *more):
    """What the program prints as JSON, or its error as a text."""
    done = printed(tuple(command(kind, setting, "--json", *more)))
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip().removeprefix("fathom: ")


def write_page(path, *arguments):
    return subprocess.run([options.program, "plan", "page", "--out", str(path), *map(str, arguments)], capture_output=True, encoding="utf-8")


READ = """async (fragments) => {
    const plans = [];
    for (const fragment of fragments) {
      if (location.hash !== fragment) {
        const told = new Promise((done) => addEventListener('hashchange', done, { once: true }));
        location.hash = fragment;
        await told;
      }
      await new Promise((done) => requestAnimationFrame(done));  // the page has asked for this frame before
      const shown = (selector) => [...document.querySelectorAll(selector)].filter((e) => !e.hidden && !e.closest('[hidden]'));
      plans.push({
        error: document.getElementById('error').textContent,
        lines: Object.fromEntries(shown('.line').map((e) => [e.dataset.line, Number(e.dataset.value)])),
        texts: Object.fromEntries(shown('.line').map((e) => [e.dataset.line, e.querySelector('.value').textContent])),
        inputs: Object.fromEntries(shown('.control').map((e) => [e.dataset.input, e.dataset.value])),
        advice: shown('#advice li').map((e) => e.textContent)
      });
    }
    return plans;
}"""


class PlanPage(BrowserTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = tempfile.TemporaryDirectory()
        cls.file = pathlib.Path(cls.folder.name) / "plan.html"
        made = write_page(cls.file)
        assert made.returncode == 0, made.stderr
        cls.url = cls.file.parent.as_uri() + "/"  # nothing from elsewhere

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.folder.cleanup()

    def open(self, kind=None, url=None, **setting):
        self.page.goto((url or self.file.as_uri()) + (fragment(kind, setting) if kind else ""))
        expect(self.page.locator("#version")).to_contain_text("fathom")
        self.until("document.body.dataset.drawn !== undefined")
        return self.page

    def control(self, name):
        return self.page.locator(f"[data-input={name}]")

    def line(self, name):
        return self.page.locator(f"[data-line={name}]")

    def shown_plans(self, kind, settings):
        self.open()
        return self.page.evaluate(READ, [fragment(kind, each) for each in settings])

    def assert_same(self, shown, plan, where):
        """A plan of the page and the program's."""
        if isinstance(plan, str):
            self.assertEqual(shown["error"], plan, where)
            return
        self.assertEqual(shown["error"], "", where)
        self.assertEqual(set(shown["lines"]), set(plan["lines"]), where)
        for name, line in plan["lines"].items():
            same = math.isclose(shown["lines"][name], line["value"], rel_tol=1e-12, abs_tol=0)
            self.assertTrue(same, f"{where}: {name} is {shown['lines'][name]!r} on the page, and {line['value']!r}")
        self.assertEqual(set(shown["inputs"]), set(plan["inputs"]), where)
        for name, value in plan["inputs"].items():
            of_page = shown["inputs"][name]
            self.assertTrue(of_page == value if isinstance(value, str) else math.isclose(float(of_page), value, rel_tol=1e-12), f"{where}: {name}")
        self.assertEqual(shown["advice"], plan["advice"], where)

    # -- The program's numbers

    def check_grid(self, kind):
        settings = list({json.dumps(each): each for each in grid(kind)}.values())
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            plans = pool.map(lambda each: planned(kind, each), settings)
            shown = self.shown_plans(kind, settings)
            plans = list(plans)
        for setting, mine, theirs in zip(settings, shown, plans):
            self.assert_same(mine, theirs, f"plan {kind} {setting}")
        self.assertGreaterEqual(sum(isinstance(each, dict) for each in plans), 30, "settings that can be planned")

    def test_memory_is_the_programs(self):
        self.check_grid("memory")

    def test_training_is_the_programs(self):
        self.check_grid("train")

    def test_serving_is_the_programs(self):
        self.check_grid("serve")

    def test_values_formulas_and_sources_read_as_the_programs(self):
        for kind, setting in [
            ("memory", {}),
            ("train", {"model": "deepseek-v3", "gpu": "h800", "tokens": "14.8T"}),
            ("serve", {"model": "deepseek-v3.2", "gpu": "h200", "gpus": "16", "mtp_acceptance": "0.85", "ram_bandwidth": "300GB/s"}),
        ]:
            shown = self.shown_plans(kind, [setting])[0]
            plan = planned(kind, setting, "--explain")
            table = printed(tuple(command(kind, setting))).stdout
            rows = [re.sub(" +", " ", row).strip() for row in table.splitlines()]
            self.page.evaluate("document.querySelectorAll('.line').forEach((e) => { e.open = true; })")
            self.page.evaluate("new Promise((done) => setTimeout(done, 100))")
            for name, line in plan["lines"].items():
                row = f"{line['title']} {int(line['value'])} " if line["unit"] == "parameters" else f"{line['title']} "
                row += shown["texts"][name] + ("" if line["basis"] == "exact" else f" {line['basis']}")
                self.assertIn(row, rows)
            others = self.page.locator("#others").all_text_contents()
            self.assertTrue(all(each in " ".join(table.split()) for each in others) and len(others) == (kind == "memory"), others)
            of_page = self.page.evaluate(
                "Object.fromEntries([...document.querySelectorAll('.line')].map((e) => [e.dataset.line, [...e.querySelectorAll('dd')].map((d) => d.textContent)]))"
            )
            for name, line in plan["lines"].items():
                said = of_page[name]
                self.assertEqual(said[0], f"{name} = {line['formula']}")
                self.assertIn(line["with_numbers"], said[1] if len(said) == 5 else line["formula"])
                self.assertEqual(said[-1], line["source"])
                self.assertTrue(said[-2].startswith(line["basis"] + ":"), said)
            sure = " ".join(table.strip().split("\n\n")[-1].split())
            self.assertTrue(sure.endswith(self.page.locator("#sureness").text_content()), sure)

    def test_what_cannot_be_is_told_in_the_programs_words(self):
        wrong = {
            "memory": [
                {"gpus": "0"},
                {"gpus": "-8"},
                {"gpus": "2.5"},
                {"gpus": "many"},
                {"gpus": "1e"},
                {"batch": "-1"},
                {"context": "1T"},
                {"context": "163841"},
                {"weights": "q3"},
                {"gpus": "16", "pp": "4", "dp": "8"},
                {"model": "llama-3.1-8b", "ep": "8"},
                {"gpus": "16", "ep": "3"},
                {"gpu": "a100", "precision": "fp8"},
                {"ram": "\x1b[1m\u0085 und " + "ü" * 40},
            ],
            "train": [
                {"pp": "128"},
                {"pp_schedule": "dualpipe", "batch_size": "128"},
                {"batch_size": "1000"},
                {"seq_len": "1M"},
                {"tokens": "0"},
                {"price": "$2"},
                {"mtp": "maybe"},
            ],
            "serve": [
                {"ep": "5"},
                {"ep": "512", "gpus": "512"},
                {"mtp_acceptance": "1.5"},
                {"mtp_acceptance": "150%"},
                {"cache_hits": "100%"},
                {"utilization": "0"},
                {"model": "deepseek-v2", "mtp_acceptance": "0.5"},
                {"network_bandwidth": "0", "gpus": "16"},
                {"price": "1e999"},
            ],
        }
        for kind, settings in wrong.items():
            for setting, shown in zip(settings, self.shown_plans(kind, settings)):
                done = printed(tuple(command(kind, setting, "--json")))
                if done.returncode == 0:
                    self.fail(f"{kind} {setting} can be planned")
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertEqual("fathom: " + shown["error"], done.stderr.strip())
        page = self.open("train", pp="128")
        expect(page.locator("#error")).to_be_visible()
        expect(page.locator("#plan")).to_be_hidden()
        expect(self.control("pp").get_by_role("textbox")).to_have_attribute("aria-invalid", "true")
        self.control("pp").get_by_role("textbox").fill("16")
        expect(page.locator("#error")).to_be_hidden()
        expect(page.locator("#plan")).to_be_visible()
        self.control("pp").get_by_role("textbox").fill("1.5")
        expect(page.locator("#error")).to_have_text("plan train: --pp 1.5: must be a whole number")
        expect(page.locator("#stale")).to_be_visible()  # what could be planned last stays, without being one's own

    # -- Controls

    def test_sliders_change_values(self):
        page = self.open("serve")
        before = float(self.line("decode_gpu").get_attribute("data-value"))
        slider = self.control("batch").get_by_role("slider")
        field = self.control("batch").get_by_role("textbox")
        expect(field).to_have_value("128")
        slider.focus()
        page.keyboard.press("ArrowLeft")
        expect(field).to_have_value("64")
        expect(slider).to_have_attribute("aria-valuetext", "64")
        setting = {"batch": "64"}
        self.until("location.hash.includes('batch=64')")
        shown = page.evaluate(READ, [page.evaluate("location.hash")])[0]
        self.assert_same(shown, planned("serve", setting), "batch 64")
        self.assertNotEqual(shown["lines"]["decode_gpu"], before)
        expect(page.locator("#command")).to_have_text("fathom plan serve --model-config deepseek-v3 --gpu h800 --batch 64")
        expect(page.locator("#announcer")).to_contain_text("Time per output token")
        self.control("batch").get_by_role("button", name="default").click()
        expect(field).to_have_value("128")
        self.assertEqual(float(self.line("decode_gpu").get_attribute("data-value")), before)
        # Every slider, moved to another place, either changes a number or says why not.
        for kind in ["memory", "train", "serve"]:
            self.open(kind)
            for name in page.evaluate("[...document.querySelectorAll('.control:has([type=range])')].map((e) => e.dataset.input)"):
                value = page.evaluate(
                    """async (name) => {
                        const control = document.querySelector(`[data-input=${name}]`), slider = control.querySelector('[type=range]');
                        const before = control.dataset.value;
                        slider.value = slider.value === slider.max ? Math.max(0, slider.max - 1) : Number(slider.value) + 1;
                        slider.dispatchEvent(new Event('input', { bubbles: true }));
                        await new Promise((done) => requestAnimationFrame(done));
                        const after = control.dataset.value, error = document.getElementById('error').textContent;
                        document.getElementById('reset').click();
                        await new Promise((done) => requestAnimationFrame(done));
                        return [before !== after, error];
                    }""",
                    name,
                )
                self.assertTrue(value[0] or value[1].startswith(f"plan {kind}: --"), f"{kind} {name} {value}")

    def test_choices_and_what_is_written(self):
        page = self.open("memory")
        self.control("weights").get_by_role("combobox").select_option("q4_k_m")
        self.control("gpus").get_by_role("textbox").fill("16")
        self.control("context").get_by_role("textbox").fill("32K")
        page.get_by_label("Hardware").select_option("h200")
        page.get_by_label("Model").select_option("deepseek-v2")
        self.until("document.body.dataset.drawn.includes('deepseek-v2')")
        setting = {"model": "deepseek-v2", "gpu": "h200", "weights": "q4_k_m", "gpus": "16", "context": "32K"}
        self.until("location.hash.includes('deepseek-v2')")
        self.assert_same(page.evaluate(READ, [page.evaluate("location.hash")])[0], planned("memory", setting), str(setting))
        # Another kind of plan has inputs of its own, and these come back.
        page.get_by_role("radio", name="Training").check()
        expect(self.control("tokens").get_by_role("textbox")).to_have_value("14.8T")
        page.get_by_role("radio", name="Memory").check()
        expect(self.control("context").get_by_role("textbox")).to_have_value("32K")
        page.get_by_role("button", name="All defaults").click()
        expect(self.control("weights").get_by_role("combobox")).to_have_value("fp8")

    def test_the_address_holds_the_plan(self):
        page = self.open()
        self.assertEqual(page.evaluate("location.hash"), "")
        page.get_by_label("Model").select_option("moonlight-16b-a3b")
        page.get_by_role("radio", name="Serving").check()
        self.control("kv_type").get_by_role("combobox").select_option("fp8")
        self.until("location.hash === '#plan=serve&model=moonlight-16b-a3b&gpu=h800&kv_type=fp8'")
        value = self.line("tpot_s").get_attribute("data-value")
        page.reload()
        expect(self.line("tpot_s")).to_have_attribute("data-value", value)
        expect(self.control("kv_type").get_by_role("combobox")).to_have_value("fp8")
        self.open("train", model="nonesuch<b>", bogus="1", tokens="1T")
        expect(page.locator("#banners")).to_have_text("The link names what this page does not have: model nonesuch<b>, bogus")
        expect(self.control("tokens").get_by_role("textbox")).to_have_value("1T")

    # -- Lines, charts

    def test_a_line_shows_its_working_and_leads_to_what_it_takes(self):
        page = self.open("train")
        line = self.line("dollars")
        expect(line.locator("dl")).to_be_hidden()
        line.locator("summary").focus()
        page.keyboard.press("Enter")
        expect(line.locator("dl")).to_contain_text("gpu_hours * price")
        expect(line.locator("dl")).to_contain_text("V3 table 1")
        line.get_by_role("button", name="gpu_hours").click()
        expect(self.line("gpu_hours").locator("summary")).to_be_focused()
        expect(self.line("gpu_hours").locator("dl")).to_be_visible()
        line.get_by_role("button", name="price").click()
        expect(self.control("price").get_by_role("textbox")).to_be_focused()
        self.control("price").get_by_role("textbox").fill("4")
        expect(line.locator(".numbers-in")).to_have_text(re.compile(r" \* 4$"))  # kept up to date while open
        self.line("attention_parameters").locator("summary").click()
        self.line("attention_parameters").get_by_role("button", name="attention_layer_parameters").click()
        expect(page.locator("#behind-attention_layer_parameters th")).to_be_focused()

    def test_bars_show_memory_against_what_there_is(self):
        page = self.open("memory", gpus="64", pp="4")
        devices = [json.loads(row) for row in printed((options.program, "plan", "hardware", "--json")).stdout.splitlines()]
        memory = next(each["gpu_memory_bytes"] for each in devices if each["name"] == "h800")
        for i, (parts, whole) in enumerate(
            [(["rank_weight_bytes", "rank_cache_bytes", "work_bytes"], memory), (["rank_copy_bytes", "rank_gradient_bytes", "rank_optimizer_bytes", "rank_activation_bytes"], memory)]
        ):
            bar = page.locator(".bar").nth(i)
            total = float(self.line(("needed_bytes", "rank_bytes")[i]).get_attribute("data-value"))
            scale = max(total, whole)
            widths = bar.locator(".piece").evaluate_all("all => all.map((e) => parseFloat(e.style.width))")
            for name, width in zip(parts, widths):
                self.assertAlmostEqual(width, 100 * float(self.line(name).get_attribute("data-value")) / scale, places=3)
            self.assertAlmostEqual(bar.locator(".mark").evaluate("e => parseFloat(e.style.left)"), 100 * whole / scale, places=3)
            self.assertEqual(bar.get_attribute("data-over"), "true" if total > whole else "false")
            self.assertRegex(bar.get_by_role("img").get_attribute("aria-label"), "Weights.*; .* of .*")
        self.open("train")
        parts = page.locator(".bar .piece").evaluate_all("all => all.reduce((sum, e) => sum + parseFloat(e.style.width), 0)")
        self.assertAlmostEqual(parts, 100, places=3)

    def test_curves_are_the_plans_of_other_batches(self):
        page = self.open("serve", gpus="16", batch="24")
        page.get_by_text("As a table").click()
        rows = page.locator("#charts tbody tr").evaluate_all("rows => rows.map((r) => [...r.cells].map((c) => c.textContent))")
        self.assertEqual([row[0] for row in rows], [str(x) for x in sorted([24, *(2**i for i in range(13))])])
        for row in rows[::4]:
            shown = page.evaluate(READ, [fragment("serve", {"gpus": "16", "batch": row[0]})])[0]
            self.assertEqual(row[1:], [shown["texts"]["decode_gpu"], shown["texts"]["tpot_s"], shown["texts"]["fits"]])
        self.assertEqual({row[3] for row in rows}, {"yes", "no"})
        expect(page.locator("#charts svg .beyond").first).to_be_attached()
        self.assertEqual(page.locator("#charts svg circle").count(), 2)

    # -- Models and hardware of one's own

    def test_own_models_and_hardware(self):
        folder = pathlib.Path(self.folder.name)
        (folder / "mine.toml").write_text(MACHINE)
        config = ROOT / "models/shakespeare.config.json"
        made = write_page(folder / "own.html", "--model-config", config, "--model-config", config, "--hardware", folder / "mine.toml")
        self.assertEqual(made.returncode, 0, made.stderr)
        page = self.open(url=(folder / "own.html").as_uri())
        name = page.locator("#model").input_value()
        self.assertEqual(page.locator("#model option").evaluate_all("all => all.slice(0, 3).map((e) => e.value)"), [name, f"{name} (2)", "deepseek-v3"])
        expect(page.locator("#gpu")).to_have_value("h800")
        expect(page.locator("#what")).to_have_text(f"{name} on ours {HOSTILE}")
        self.assertEqual(page.locator("#gpu option[value=h800]").count(), 1)
        page.locator("#behind summary").nth(1).click()
        expect(page.locator("#behind dd").first).to_have_text(f"measured {HOSTILE}")
        for kind, gpu in [("memory", "h800"), ("train", "shed"), ("serve", "shed")]:
            shown = page.evaluate(READ, [fragment(kind, {"model": name, "gpu": gpu})])[0]
            self.assert_same(shown, planned(kind, {"model": str(config), "gpu": gpu, "hardware": str(folder / "mine.toml")}), f"{kind} {gpu}")
        line = f"fathom plan serve --model-config {config} --hardware {folder}/mine.toml --gpu shed"
        expect(page.locator("#command")).to_have_text(line)

    def test_the_command(self):
        folder = pathlib.Path(self.folder.name)
        out = subprocess.run([options.program, "plan", "page"], capture_output=True, check=True)
        self.assertEqual(out.stdout, self.file.read_bytes())
        told = json.loads(write_page(folder / "b.html", "--json").stdout)
        self.assertEqual(told, {"page": str(folder / "b.html"), "bytes": len(out.stdout), "models": 12, "devices": told["devices"]})
        for arguments, code, text in [
            (["--json"], 2, "--out"),
            (["--out", str(folder / "none" / "a.html")], 1, "none"),
            (["--model-config", str(folder / "no.json")], 2, "deepseek-v3"),
            (["--hardware", str(self.file)], 1, "plan.html"),
        ]:
            done = subprocess.run([options.program, "plan", "page", *arguments], capture_output=True, encoding="utf-8")
            self.assertEqual((done.returncode, done.stdout, text in done.stderr, done.stderr.count("\n")), (code, "", True, 1), done.stderr)

    # -- Looks

    def test_no_other_script_runs(self):
        page = self.open()
        self.allowed += ["Content Security Policy", "This document requires 'Trusted"]
        ran = page.evaluate("""() => {
            const script = document.createElement('script');
            let refused = 0;
            try { script.textContent = 'window.ran = 1'; document.head.append(script); } catch { ++refused; }
            try { document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.ran = 1">'); } catch { ++refused; }
            return [window.ran ?? 0, refused];
        }""")
        self.assertEqual(ran, [0, 2])

    def test_names_for_screen_readers(self):
        for kind in ["memory", "train", "serve"]:
            self.open(kind, gpus="16")
            self.page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
            self.page.evaluate("new Promise((done) => setTimeout(done, 50))")
            self.assertEqual(self.wrong_names(), [])
            unnamed = self.page.locator("input[type=range]").evaluate_all("all => all.filter((e) => !document.getElementById(e.getAttribute('aria-labelledby'))).length")
            self.assertEqual(unnamed, 0)

    def test_contrast(self):
        page = self.open()
        for theme in ["light", "dark"]:
            page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            pairs = [("--text", "--page"), ("--muted", "--page"), ("--muted", "--side"), ("--muted", "--raised"), ("--accent", "--page"), ("--accent", "--raised")]
            pairs += [("--accent-text", "--accent"), ("--danger", "--page"), ("--danger", "--danger-page"), ("--text", "--code-page")]
            ratios = contrasts(page, pairs + [(f"--series-{i + 1}", "--page") for i in range(5)])
            self.assertEqual([each for each in ratios if not each[2] >= 4.5], [], theme)

    def test_theme(self):
        page = self.open()
        background = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = background()
        page.get_by_role("button", name="Theme: as the system").click()
        page.get_by_role("button", name="Theme: light").click()
        expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
        self.assertNotEqual(background(), light)
        dark = background()
        for _ in range(20):  # a browser writes down what a file's page stores when it likes, and may load it again in another process
            page.reload()
            if page.get_by_role("button", name="Theme: dark").is_visible():
                break
            page.wait_for_timeout(200)
        expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
        self.assertEqual(background(), dark)

    def test_keyboard_alone(self):
        page = self.open("train")
        self.assertTrue(page.evaluate("document.querySelector('a, button, input') === document.querySelector('.skip')"))
        page.focus(".skip")
        reached = []
        for _ in range(64):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("""(() => {
                    const e = document.activeElement, shown = e.matches('.choice input') ? e.nextElementSibling : e;
                    return [e.id || e.closest('[data-line]')?.dataset.line || e.name || e.type, getComputedStyle(shown).outlineStyle];
                })()""")
            )
        self.assertEqual([name for name, outline in reached if outline == "none"], [])
        names = [name for name, _ in reached]
        places = [names.index(name) for name in ["theme", "kind", "model", "gpu", "input-tokens", "input-pp", "link", "attention_parameters", "parameters"]]
        self.assertEqual(places, sorted(places))
        page.focus(".skip")
        page.keyboard.press("Enter")
        expect(page.locator("#results")).to_be_focused()
        self.assertIn("plan=train", page.evaluate("location.hash"))

    def test_phone(self):
        self.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
        for kind in ["memory", "train", "serve"]:
            page = self.open(kind, gpus="16", **({"input_tokens_a_day": "608B"} if kind == "serve" else {}))
            page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
            page.evaluate("new Promise((done) => setTimeout(done, 50))")
            wide = page.evaluate("""() => [...document.querySelectorAll('header > *, main > *, .panel, .panel > *, .control > *, .control-row > *, .line > *, .working > *')]
                .filter((e) => e.getBoundingClientRect().right > 360.5).map((e) => e.outerHTML.slice(0, 120))""")
            self.assertEqual(wide, [])
            self.assertTrue(page.evaluate("document.scrollingElement.scrollWidth <= 360"))


class Screenshot(BrowserTest):
    """Not a test: a plan as it looks."""

    def test_screenshot(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "plan.html"
            write_page(file)
            self.url = file.as_uri()
            self.new_context(viewport={"width": 1280, "height": 1000})
            self.page.goto(self.url + fragment("serve", {"model": "deepseek-v3", "gpu": "h800", "gpus": "144", "batch": "64", "mtp_acceptance": "85%"}))
            expect(self.page.locator("#charts svg").first).to_be_visible()
            self.page.screenshot(path=options.screenshot)


def load_tests(loader, _tests, _pattern):
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(PlanPage))
    if options.screenshot:
        suite.addTest(Screenshot("test_screenshot"))
    return suite


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--screenshot", metavar="FILE", help="also write a picture of a plan there")
    _, rest = parser.parse_known_args(namespace=options)
    options.program = str(pathlib.Path(options.program).resolve())
    unittest.main(argv=[sys.argv[0], *rest])
