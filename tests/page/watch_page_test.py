#!/usr/bin/env python3
"""The page of `fathom watch` in a browser: watch_page_test.py PROGRAM [--screenshot FILE [--run DIR]...] [unittest's arguments]

Needs Debian's chromium and PyPI's playwright; exits 77, "skipped", without them. Each test writes logs as a training would and looks at
what becomes of them. Whatever it does, the page must raise no error, break no rule of its Content-Security-Policy, ask no other origin and
open no dialog of the browser's. --screenshot takes a picture of the runs that --run names, or of two that it trains first."""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/clients"))
import client_packages

client_packages.need_browser()

from playwright.sync_api import expect

from browser import BrowserTest, colors_of, contrasts
from page_content import XSS

options = argparse.Namespace(program="", screenshot=None, run=[])
STEPS = 1000


def step(i, **more):
    """A line as fathom train writes it."""
    values = {
        "step": i,
        "steps": STEPS,
        "loss": round(1 + 4 / i, 4),
        "lr": 1e-3,
        "grad_norm": 1 / i,
        "tokens": i * 64,
        "tokens_per_s": 3200.0,
        "seconds": i * 0.02,
        "max_violation": 0.5,
    }
    return json.dumps({name: value for name, value in (values | more).items() if value is not ...}) + "\n"


def loads(i, layers=3, experts=8):
    return {
        "expert_load": [[(l * 7 + e * 3 + i) % 11 for e in range(experts)] for l in range(layers)],
        "bias_range": [[-0.01 * i - l, 0.01 * i + l] for l in range(layers)],
    }


class Watch(BrowserTest):
    def setUp(self):
        super().setUp()
        self.page.set_viewport_size({"width": 1280, "height": 1800})  # all plots are in sight
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_of(self, name, text=None):
        """The directory of a run, with a log where there is a text."""
        folder = self.folder / name
        folder.mkdir()
        if text is not None:
            (folder / "train.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    def append(self, run, text):
        with open(run / "train.jsonl", "ab") as log:
            log.write(text if isinstance(text, bytes) else text.encode())

    def serve(self, *runs, port=0, arguments=()):
        command = [options.program, "watch", *map(str, runs), "--port", str(port), "--quiet", *arguments]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)
        self.url = server.stdout.readline().strip()
        server.stdout.close()
        return server

    def open(self, *runs):
        self.serve(*runs)
        self.page.goto(self.url + "/")
        expect(self.page.locator(".run")).to_have_count(len(runs))
        return self.page

    def plot(self, key):
        return self.page.locator(f"[data-plot={key}]")

    def expect_values(self, key, texts, run=0):
        """What is told below a plot, of one run."""
        expect(self.plot(key).locator("tbody tr").nth(run).locator("td")).to_have_text(texts)

    def place(self, key="lr"):
        return self.plot(key).locator("thead th").first

    def number(self, name, run=0):
        return self.page.locator(f".run[data-run='{run}'] [data-number='{name}'] dd")

    def state(self, run=0):
        return self.page.locator(f".run[data-run='{run}'] .state")

    def smooth(self, window):
        self.page.locator("#window").evaluate(f"(e) => {{ e.value = {math.log10(window)}; e.dispatchEvent(new Event('input')); }}")

    def drawn(self, key, canvas="base"):
        """How many pixels of a canvas are not empty."""
        return self.plot(key).locator("." + canvas).evaluate("""(canvas) => {
            const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return new Uint32Array(data.buffer).reduce((n, pixel) => n + (pixel !== 0), 0);
        }""")

    def point(self, key, share):
        """The pointer over a plot, so far from its left to its right end; what changed before has been drawn."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box = self.plot(key).locator(".over").bounding_box()
        x, y = box["x"] + 54 + (box["width"] - 68) * share, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        return x, y

    # -- Live

    def test_a_run_from_its_beginning_to_its_end(self):
        run = self.run_of("demo")
        page = self.open(run)
        expect(self.state()).to_have_text("waiting for the log")
        expect(page.locator("#controls")).to_be_hidden()
        (run / "train.jsonl").write_text("")
        expect(self.state()).to_have_text("waiting for the first step")
        self.append(run, "".join(step(i) for i in range(1, 41)))
        expect(self.state()).to_have_text("running")
        expect(page.locator(".steps")).to_have_text("step 40 of 1,000 (4 %)")
        expect(self.number("Tokens")).to_have_text("2,560")
        expect(self.number("Left")).to_have_text("19 s")
        self.smooth(1)
        self.expect_values("loss", ["1.1000"])
        expect(self.plot("mtp_loss")).to_be_hidden()
        label = self.plot("loss").locator(".over").get_attribute("aria-label")
        self.assertEqual(label, "Loss, latest. demo: training 1.1000")
        before = self.drawn("loss")
        self.assertGreater(before, 500)
        self.append(run, step(41, loss=0.75)[:20])  # not whole yet
        page.wait_for_timeout(1200)
        self.expect_values("loss", ["1.1000"])
        self.append(run, step(41, loss=0.75)[20:] + step(42, loss=0.5, val_loss=0.9, mtp_loss=1.5, mfu=0.25, sample="Once"))
        expect(page.locator(".steps")).to_have_text("step 42 of 1,000 (4 %)")
        self.expect_values("loss", ["0.5000", "0.9000"])
        self.expect_values("mtp_loss", ["1.5000"])
        self.expect_values("mfu", ["25 %"])
        expect(self.plot("loss").locator(".over")).to_have_attribute("aria-label", "Loss, latest. demo: training 0.5000, held-out 0.9000")
        expect(page.locator("#samples pre")).to_have_text("Once")
        self.assertIn("42 / 1,000 · loss 0.5 · demo", page.title())
        self.append(run, "".join(step(i) for i in range(43, 1001)))
        expect(self.state()).to_have_text("finished")
        expect(page.locator("#announcer")).to_have_text("demo: finished")
        expect(self.number("Left")).to_have_count(0)
        expect(self.number("Time")).to_have_text("20 s")

    def test_tells_when_no_step_comes(self):
        run = self.run_of("demo", step(1) + step(2))
        ago = time.time() - 130
        os.utime(run / "train.jsonl", (ago, ago))
        self.open(run)
        expect(self.state()).to_have_text(re.compile(r"^no new step since 2 min( \d+ s)?$"))
        self.append(run, step(3))
        expect(self.state()).to_have_text("running")

    def test_a_resumed_run(self):
        before = "".join(step(i, loss=2) for i in range(1, 101))
        run = self.run_of("demo", before + "".join(step(i, loss=9, sample="dropped") for i in range(101, 121)))
        page = self.open(run)
        self.smooth(1)
        expect(page.locator(".steps")).to_contain_text("step 120 of")
        (run / "new").write_text(before)
        (run / "new").rename(run / "train.jsonl")
        expect(page.locator(".steps")).to_contain_text("step 100 of")
        self.expect_values("loss", ["2.0000"])
        expect(page.locator("#samples")).to_be_hidden()
        # In place, between two looks, and longer than before.
        (run / "train.jsonl").write_text(before + "".join(step(i, loss=3) for i in range(101, 140)))
        expect(page.locator(".steps")).to_contain_text("step 139 of")
        self.expect_values("loss", ["3.0000"])
        # Steps told again take the place of those before.
        self.append(run, step(50, loss=7))
        expect(page.locator(".steps")).to_contain_text("step 50 of")
        self.page.focus("[data-plot=lr] .over")
        page.keyboard.press("Home")
        page.keyboard.press("End")
        expect(self.place()).to_have_text("step 50")

    def test_the_server_may_go_and_come_back(self):
        self.allowed.append("Failed to load resource|ERR_CONNECTION")
        run = self.run_of("demo", step(1))
        server = self.serve(run)
        self.page.goto(self.url + "/")
        expect(self.page.locator(".steps")).to_contain_text("step 1 of")
        server.terminate()
        self.assertEqual(server.wait(timeout=20), 0)
        expect(self.page.locator("#banners")).to_contain_text("fathom watch cannot be reached")
        self.append(run, step(2))
        again = self.serve(run, port=self.url.rsplit(":", 1)[1])
        expect(self.page.locator(".steps")).to_contain_text("step 2 of")
        expect(self.page.locator("#banners")).to_be_empty()
        # Another one at the same address: its runs.
        other = self.run_of("other", step(7))
        again.terminate()
        again.wait(timeout=20)
        self.serve(other, port=self.url.rsplit(":", 1)[1])
        expect(self.page.locator(".run .run-name")).to_have_text("other")
        expect(self.page.locator(".steps")).to_contain_text("step 7 of")

    def test_key_is_asked_for(self):
        self.allow_failures()
        keys = self.folder / "keys"
        keys.write_text("sesame\n")
        keys.chmod(0o600)
        self.serve(self.run_of("demo", step(1)), arguments=["--api-key-file", keys])
        page = self.page
        page.goto(self.url + "/")
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-message")).to_have_text("this API key is not known")
        page.get_by_label("Key", exact=True).fill("sesame")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator(".steps")).to_contain_text("step 1 of")

    # -- What logs hold

    def test_what_is_no_step_is_passed_over(self):
        run = self.run_of("demo", step(1) + step(2))
        junk = [
            b"\xff\xfe\x00\x80 not text",
            b"{",
            b"null",
            b"[1]",
            b'"text"',
            b"{}",
            b'{"step":"3"}',
            b'{"step":-1}',
            b'{"step":1.5}',
            b'{"step":1e400}',
            b"[" * 100000,
            b'{"__proto__":{"step":5}}',
            b"x" * (3 << 20),
        ]
        self.append(run, b"\n".join(junk) + b"\n\n")
        self.append(run, step(3, loss=None, grad_norm=1e308, lr="fast", tokens=-5, tokens_per_s={}, seconds=[1], steps="many", max_violation=True))
        self.append(run, step(4, val_loss=1e39, expert_load=[[1, 2], [3]], bias_range=[[1, 2], [3]], sample={"a": 1}, skipped=7, mfu=..., seconds=-1))
        self.append(run, step(5, loss=1.25, expert_load=[[1, -2]], bias_range="no", tokens=None, tokens_per_s=...))
        page = self.open(run)
        expect(page.locator(".steps")).to_have_text("step 5 of 1,000 (1 %)")
        self.smooth(1)
        self.expect_values("loss", ["1.2500"])
        # The line of three megabytes does not even reach the page, an empty one is nothing.
        expect(page.locator(".progress .hint")).to_have_text(f"{len(junk) - 1} lines are no steps")
        for hidden in ("#balance", "#samples", "#skips", "[data-plot=bias]"):
            expect(page.locator(hidden)).to_be_hidden()
        self.append(run, step(6, **loads(6)) + step(7, expert_load=[[0, 0, 0]], bias_range=[[0, 0]], sample=""))
        expect(page.locator("#balance")).to_be_visible()
        self.expect_values("layer_max_violation", ["0.000"])

    def test_texts_stay_texts(self):
        name = "<img src=x onerror=alert(1)>"
        hostile = [text.replace("\x00", "") for text in XSS]
        log = "".join(step(i + 1, sample=text, skipped=text) for i, text in enumerate(hostile))
        page = self.open(self.run_of(name, log), self.run_of("<b>bold", step(1)))
        expect(page.locator(".run .run-name").first).to_have_text(name)
        page.locator("#skips summary").click()
        before = page.evaluate("document.querySelectorAll('*').length")
        for i in range(len(hostile)):
            page.locator("#sample-step").select_option(index=len(hostile) - 1 - i)
            self.assertEqual(page.locator("#samples pre").evaluate("(e) => e.textContent"), hostile[i])
            self.assertEqual(page.locator("#samples pre > *").count(), 0)
        self.assertEqual(page.evaluate("document.querySelectorAll('*').length"), before)
        told = page.locator("#skips li .untrusted")
        self.assertEqual(told.first.evaluate("(e) => e.textContent"), hostile[-1][:300])
        self.assertEqual(page.locator("#skips li .untrusted > *, .note > *").count(), 0)
        self.assertEqual(page.locator("img, iframe, script:not([src]), object, embed, form:not(dialog form)").count(), 0)

    def test_skipped_steps_are_told(self):
        lines = [step(i, **({"skipped": f"reason {i}", "loss": None} if i in (20, 60) else {})) for i in range(1, 101)]
        page = self.open(self.run_of("demo", "".join(lines)))
        expect(self.number("Skipped")).to_have_text("2")
        page.locator("#skips summary").click()
        expect(page.locator("#skips li")).to_have_text(["step 60reason 60", "step 20reason 20"])
        note = self.plot("loss").locator(".note")
        self.point("loss", 59 / 99)
        expect(note).to_have_text("Step 60 was skipped: reason 60")
        self.point("loss", 0.4)
        expect(note).not_to_contain_text("skipped")

    def test_samples_old_and_new(self):
        run = self.run_of("demo", "".join(step(i, **({"sample": f"text {i}"} if i % 10 == 0 else {})) for i in range(1, 41)))
        page = self.open(run)
        text = page.locator("#samples pre")
        expect(text).to_have_text("text 40")
        page.get_by_role("button", name="Older sample").click()
        expect(text).to_have_text("text 30")
        self.append(run, "".join(step(i, **({"sample": f"text {i}"} if i % 10 == 0 else {})) for i in range(41, 51)))
        expect(page.locator("#sample-step option")).to_have_count(5)
        expect(text).to_have_text("text 30")  # what is read is not taken away
        page.locator("#sample-step").select_option(label="step 50 (latest)")
        expect(text).to_have_text("text 50")
        self.append(run, step(51, sample="text 51"))
        expect(text).to_have_text("text 51")
        expect(page.get_by_role("button", name="Newer sample")).to_be_disabled()

    # -- Plots

    def test_values_under_the_crosshair(self):
        first = [step(i, loss=i / 8, val_loss=i if i % 10 == 0 else ...) for i in range(1, 201)]
        page = self.open(self.run_of("a", "".join(first)), self.run_of("b", "".join(step(i, loss=i / 4) for i in range(1, 101))))
        self.smooth(1)
        self.expect_values("loss", ["25.0000", "200.0000"], run=0)
        self.expect_values("loss", ["25.0000", "–"], run=1)
        self.point("loss", 54 / 199)
        expect(self.place("loss")).to_have_text("step 55")
        self.expect_values("loss", ["6.8750", "50.0000"], run=0)  # of step 50
        self.expect_values("loss", ["13.7500", "–"], run=1)
        self.expect_values("grad_norm", ["0.01818"], run=0)  # all plots follow
        self.assertGreater(self.drawn("grad_norm", "over"), 100)
        self.point("loss", 150 / 199)
        expect(self.place("loss")).to_have_text("step 151")
        self.expect_values("loss", ["–", "–"], run=1)  # it ended before
        page.mouse.move(2, 2)
        expect(self.place("loss")).to_have_text("latest")

    def test_smoothing(self):
        page = self.open(self.run_of("demo", "".join(step(i, loss=2 + i % 2) for i in range(1, 401))))
        self.smooth(100)
        expect(page.locator("#window-text")).to_have_text("100 steps")
        self.expect_values("loss", [re.compile(r"^2\.(49|50)\d\d$"), "2.0000"])
        page.reload()
        expect(page.locator("#window-text")).to_have_text("100 steps")
        self.smooth(1)
        expect(page.locator("#window-text")).to_have_text("off")
        self.expect_values("loss", ["2.0000"])

    def test_zoom_by_pointer(self):
        run = self.run_of("demo", "".join(step(i) for i in range(1, 201)))
        page = self.open(run)
        expect(page.locator("#whole")).to_be_disabled()
        self.point("loss", 0.25)
        page.mouse.down()
        x, y = self.point("loss", 0.5)
        self.assertGreater(self.drawn("loss", "over"), 5000)
        page.mouse.up()
        expect(page.locator("#part")).to_have_value("chosen")
        self.point("loss", 0)
        expect(self.place("loss")).to_have_text("step 51")
        self.point("lr", 1)
        expect(self.place("loss")).to_have_text(re.compile("^step 10[01]$"))
        self.append(run, step(201))  # what is looked at stays
        expect(page.locator(".steps")).to_contain_text("step 201 of")
        self.point("loss", 0)
        expect(self.place("loss")).to_have_text("step 51")
        page.mouse.dblclick(x, y)
        expect(page.locator("#part")).to_have_value("all")
        self.point("loss", 0)
        expect(self.place("loss")).to_have_text("step 1")
        page.locator("#part").select_option("tenth")
        self.point("loss", 0)
        expect(self.place("loss")).to_have_text("step 181")
        self.append(run, "".join(step(i) for i in range(202, 401)))
        expect(page.locator(".steps")).to_contain_text("step 400 of")
        self.point("loss", 0)
        expect(self.place("loss")).to_have_text(re.compile("^step 36[01]$"))  # the end is followed
        page.locator("#whole").click()
        expect(page.locator("#part")).to_have_value("all")

    def test_keyboard_alone(self):
        page = self.open(self.run_of("demo", "".join(step(i, loss=i) for i in range(1, 101))))
        self.smooth(1)
        self.assertTrue(page.evaluate("document.querySelector('a, button, input') === document.querySelector('.skip')"))
        page.focus(".skip")
        reached = []
        for _ in range(24):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("""(() => {
                    const e = document.activeElement, shown = e.matches('.choice input') ? e.nextElementSibling : e;
                    return [e.id || e.closest('[data-plot]')?.dataset.plot || e.name, getComputedStyle(shown).outlineStyle];
                })()""")
            )
            if reached[-1][0] == "lr":
                break
        self.assertEqual([name for name, outline in reached if outline == "none"], [])
        order = ["theme", "axis", "window", "part", "loss", "grad_norm", "lr"]
        places = [[name for name, _ in reached].index(name) for name in order]
        self.assertEqual(places, sorted(places))
        said = page.locator("#announcer")
        page.keyboard.press("ArrowLeft")
        expect(said).to_have_text("step 99: rate 0.001")
        page.focus("[data-plot=loss] .over")
        page.keyboard.press("Home")
        expect(said).to_have_text("step 1: training 1.0000")
        page.keyboard.press("ArrowRight")
        expect(said).to_have_text("step 2: training 2.0000")
        page.keyboard.press("+")
        expect(said).to_have_text(re.compile("^step 2 to step 51. step 2: "))
        page.keyboard.press("PageDown")
        expect(said).to_have_text(re.compile("^step 26 to step 76. "))
        page.keyboard.press("0")
        expect(said).to_have_text(re.compile("^step 1 to step 100. "))
        page.keyboard.press("Escape")
        expect(self.place("loss")).to_have_text("latest")

    def test_along_tokens_and_time(self):
        slow = "".join(step(i, tokens=i * 100, seconds=i * 2.0) for i in range(1, 101))
        old = "".join(step(i, tokens=i * 200, tokens_per_s=400.0, seconds=...) for i in range(1, 51))  # of before `seconds`
        page = self.open(self.run_of("new", slow), self.run_of("old", old))
        self.smooth(1)
        page.get_by_role("radio", name="Tokens").check()
        self.point("lr", 0.5)
        expect(self.place()).to_have_text(re.compile("^(4,9|5,0).. tokens$"))
        self.expect_values("grad_norm", ["0.02"], run=0)
        self.expect_values("grad_norm", ["0.04"], run=1)
        page.get_by_role("radio", name="Time").check()
        self.point("lr", 0.06)
        expect(self.place()).to_have_text("12 s")
        self.expect_values("grad_norm", ["0.1667"], run=0)
        self.expect_values("grad_norm", ["0.04167"], run=1)  # half a second a step
        page.reload()
        expect(page.get_by_role("radio", name="Time")).to_be_checked()

    def test_pauses_do_not_count(self):
        lines = [step(i, seconds=i * 1.0) for i in range(1, 11)] + [step(i, seconds=(i - 10) * 1.0) for i in range(11, 21)]
        self.open(self.run_of("demo", "".join(lines)))  # a log that was begun again somewhere else
        expect(self.number("Time")).to_have_text(re.compile(r"^1[89]"))

    def test_logarithmic_axis(self):
        page = self.open(self.run_of("demo", "".join(step(i, loss=10 ** (i % 5 - 2)) for i in range(1, 101))))
        button = page.get_by_role("button", name="Loss: logarithmic axis")
        expect(button).to_have_attribute("aria-pressed", "false")
        before = self.plot("loss").locator(".base").evaluate("(c) => c.toDataURL()")
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        self.assertNotEqual(self.plot("loss").locator(".base").evaluate("(c) => c.toDataURL()"), before)
        page.reload()
        expect(button).to_have_attribute("aria-pressed", "true")

    def test_runs_are_hidden_and_shown(self):
        page = self.open(self.run_of("a", step(1, loss=1) + step(2, loss=1)), self.run_of("b", step(1, loss=2) + step(2, loss=2)))
        self.smooth(1)
        rows = self.plot("loss").locator("tbody tr")
        expect(rows).to_have_count(2)
        page.get_by_role("button", name="a", exact=True).click()
        expect(page.get_by_role("button", name="a", exact=True)).to_have_attribute("aria-pressed", "false")
        expect(rows).to_have_count(1)
        self.expect_values("loss", ["2.0000"])
        page.get_by_role("button", name="a", exact=True).click()
        expect(rows).to_have_count(2)

    def test_a_long_log_stays_fluid(self):
        text = "".join(step(i, steps=200000, loss=2 + math.sin(i / 5000), **({"val_loss": 2} if i % 100 == 0 else {})) for i in range(1, 200001))
        page = self.open(self.run_of("long", text))
        expect(self.state()).to_have_text("finished", timeout=60000)
        times = page.evaluate("""async () => {
            const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            const part = document.getElementById('part'), times = [];
            for (const value of ['half', 'tenth', 'hundredth', 'all']) {
              const begin = performance.now();
              part.value = value;
              part.dispatchEvent(new Event('change'));
              await frame();
              times.push(performance.now() - begin);
            }
            return times;
        }""")
        self.assertLess(sorted(times)[1], 500, times)  # tens of milliseconds on a machine with nothing else to do
        self.point("loss", 0.5)
        expect(self.place("loss")).to_have_text(re.compile(r"^step \d+,\d+$"))

    # -- Balance

    def test_loads_of_experts(self):
        run = self.run_of("demo", "".join(step(i, **(loads(i) if i % 10 == 0 else {})) for i in range(1, 41)))
        page = self.open(run)
        expect(page.locator("#load-step")).to_have_text("step 40 (latest)")
        self.assertGreater(colors_of(page, "load-canvas"), 8)
        page.focus("#load-canvas")
        for key in ["ArrowRight", "ArrowRight", "ArrowDown"]:
            page.keyboard.press(key)
        row = loads(40)["expert_load"][1]
        beside = f"{row[1] / (sum(row) / 8):.4g}"
        expect(page.locator("#load-cell")).to_have_text(f"MoE layer 2, expert 1: {row[1]} tokens, {beside} × the even load")
        page.locator("#balance summary").click()
        expect(page.locator("#load-table tr")).to_have_count(3)
        expect(page.locator("#load-table tr").nth(1).locator("td").first).to_have_text(re.compile(rf"^{max(row) / (sum(row) / 8) - 1:.3f}"))
        self.assertIn("8 experts in each of 3 MoE layers", page.get_attribute("#load-canvas", "aria-label"))
        page.locator("#load-time").fill("1")
        expect(page.locator("#load-step")).to_have_text("step 20")
        self.append(run, step(41, **loads(41)))
        expect(page.locator("#load-time")).to_have_attribute("max", "4")
        expect(page.locator("#load-step")).to_have_text("step 20")  # stays where it was put
        page.get_by_role("button", name="Play").click()
        expect(page.locator("#load-step")).to_have_text("step 41 (latest)")
        expect(page.get_by_role("button", name="Play")).to_be_visible()
        self.append(run, step(42, **loads(42)))
        expect(page.locator("#load-step")).to_have_text("step 42 (latest)")
        # The ranges of biases, and MaxVio of each layer.
        for l in range(3):
            self.expect_values("bias", [f"−{0.42 + l:.3f}", f"{0.42 + l:.3f}"], run=l)
        expect(self.plot("layer_max_violation").locator("tbody tr")).to_have_count(3)

    def test_loads_of_the_chosen_run(self):
        page = self.open(self.run_of("a", step(1, **loads(1), sample="of a")), self.run_of("b", step(1, **loads(1, layers=2), sample="of b")))
        expect(page.locator("#load-table tr")).to_have_count(3)
        expect(page.locator("#samples pre")).to_have_text("of a")
        page.locator("#balance").get_by_label("Run").select_option("b")
        expect(page.locator("#load-table tr")).to_have_count(2)
        expect(page.locator("#samples pre")).to_have_text("of b")
        expect(self.plot("bias").locator("figcaption .hint")).to_have_text("by MoE layer, b")

    # -- Looks

    def test_names_for_screen_readers(self):
        lines = step(1, **loads(1), sample="a", skipped="b") + step(2)
        self.open(self.run_of("a", lines), self.run_of("b", lines))
        expect(self.page.locator("#balance")).to_be_visible()
        self.assertEqual(self.wrong_names(), [])

    def test_contrast(self):
        page = self.open(self.run_of("demo", step(1)))
        for theme in ["light", "dark"]:
            page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            ratios = contrasts(page, [(f"--series-{i + 1}", "--page") for i in range(8)])
            self.assertEqual([each for each in ratios if not each[2] >= 4.5], [], theme)

    def test_theme(self):
        page = self.open(self.run_of("demo", "".join(step(i) for i in range(1, 50))))
        picture = lambda: self.plot("loss").locator(".base").evaluate("(c) => c.toDataURL()")
        expect(page.locator(".steps")).to_contain_text("step 49")
        light = picture()
        page.get_by_role("button", name="Theme: as the system").click()
        page.get_by_role("button", name="Theme: light").click()
        expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
        page.wait_for_timeout(200)
        self.assertNotEqual(picture(), light)
        page.reload()
        expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()

    def test_reduced_motion(self):
        self.page.emulate_media(reduced_motion="reduce")
        self.open(self.run_of("demo", step(1)))
        expect(self.state()).to_have_text("running")
        self.assertEqual(self.page.evaluate("document.getAnimations().length"), 0)

    def test_phone(self):
        self.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
        long = "name-" * 40
        lines = "".join(step(i, **loads(i, layers=58, experts=256), sample="w" * 500, skipped="r" * 400, val_loss=1, mfu=0.4) for i in range(1, 12))
        page = self.open(self.run_of(long, lines), self.run_of("b", lines))
        expect(page.locator("#balance")).to_be_visible()
        page.locator("#skips summary").click()
        page.locator("#balance summary").click()
        wide = page.evaluate("""() => [...document.querySelectorAll('header > *, main > *, .run > *, .run-head > *, .plot, .plot > *, .values th, .values td, .panel > *, .panel-head > *, #controls > *, #skips li')]
            .filter((e) => e.getBoundingClientRect().right > 360.5).map((e) => e.outerHTML.slice(0, 120))""")
        self.assertEqual(wide, [])
        self.assertTrue(page.evaluate("document.scrollingElement.scrollWidth <= 360"))
        self.assertTrue(page.locator("#load-scroll").evaluate("e => e.scrollWidth > e.clientWidth"))


class Screenshot(BrowserTest):
    """Not a test: runs as they look."""

    def trained(self, folder):
        """A model with the demo's shape, at two learning rates."""
        for name, lr in (("lr-4e-3", "4e-3"), ("lr-1e-3", "1e-3")):
            command = [options.program, "train", "--model-config", "models/shakespeare.config.json", "--tokenizer", "bytes"]
            command += ["--out", str(folder / name), "--data", "data/tinyshakespeare-train.txt", "--val-data", "data/tinyshakespeare-val.txt"]
            command += ["--val-every", "50", "--steps", "1000", "--seq-len", "128", "--batch-size", "8", "--lr", lr, "--min-lr", "0", "--warmup", "60"]
            command += ["--schedule", "wsd", "--decay-fraction", "0.28", "--mtp-weight", "1", "--beta2", "0.98", "--bias-update-speed", "0.003"]
            command += ["--sample-every", "100", "--prompt", "ROMEO:", "--seed", "1", "--quiet"]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            yield folder / name

    def test_screenshot(self):
        with tempfile.TemporaryDirectory() as folder:
            runs = options.run or list(self.trained(pathlib.Path(folder)))
            server = subprocess.Popen([options.program, "watch", *map(str, runs), "--port", "0", "--quiet"], stdout=subprocess.PIPE, encoding="utf-8")
            self.addCleanup(server.wait)
            self.addCleanup(server.terminate)
            self.url = server.stdout.readline().strip()
            server.stdout.close()
            self.new_context(viewport={"width": 1280, "height": 1840})
            self.page.goto(self.url + "/")
            expect(self.page.locator(".steps").last).to_contain_text("of")
            self.page.wait_for_timeout(1500)
            self.page.screenshot(path=options.screenshot)


def load_tests(loader, _tests, _pattern):
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(Watch))
    if options.screenshot:
        suite.addTest(Screenshot("test_screenshot"))
    return suite


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--screenshot", metavar="FILE", help="also write a picture of runs there")
    parser.add_argument("--run", metavar="DIR", action="append", default=[], help="of these; may be given again")
    _, rest = parser.parse_known_args(namespace=options)
    unittest.main(argv=[sys.argv[0], *rest])
