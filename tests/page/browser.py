"""What the page's tests share: a server between the browser and the real one, scripts for its answers, and a page for each test."""

import argparse
import http.client
import json
import re
import threading
import time
import unittest
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from playwright.sync_api import expect, sync_playwright

TIMINGS = {
    "prompt_n": 8,
    "cache_n": 4,
    "prompt_ms": 20.0,
    "predicted_n": 7,
    "predicted_per_second": 12.5,
    "draft_n": 0,
    "draft_n_accepted": 0,
}
arguments = argparse.Namespace(url="", screenshot=None)  # page_test.py fills it


# ---- A server between


class Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self):
        path = self.path.split("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        asks = path.startswith(("/v1/", "/apply-template"))
        if server.key and asks and self.headers.get("Authorization") != "Bearer " + server.key:
            message = "this API key is not known" if self.headers.get("Authorization") else "an API key is needed"
            return self.json(401, {"error": {"message": message, "code": "invalid_api_key"}})
        if path == "/v1/chat/completions" and server.script:
            server.requests.append(json.loads(body))
            return server.script(self)
        if path in server.answers:
            status, value = server.answers[path].pop(0) if isinstance(server.answers[path], list) else server.answers[path]
            return self.json(status, value)
        self.hand_on(body)

    def hand_on(self, body):
        to = http.client.HTTPConnection(urllib.parse.urlparse(arguments.url).netloc)
        to.request(
            self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() not in ("host", "origin", "connection")}
        )
        answer = to.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.close_with_end()
        try:
            while piece := answer.read1(65536):
                self.wfile.write(piece)
        except OSError:
            pass
        to.close()

    def close_with_end(self):
        self.close_connection = True
        self.send_header("Connection", "close")
        self.end_headers()

    def json(self, status, value, **headers):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, header in headers.items():
            self.send_header(name.replace("_", "-"), header)
        self.close_with_end()
        self.wfile.write(json.dumps(value).encode())

    def begin(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.close_with_end()

    def event(self, value):
        self.wfile.write(b"data: " + (value if isinstance(value, str) else json.dumps(value)).encode() + b"\n\n")


def colors_of(page, canvas):
    """How many colors are in the canvas of this id."""
    return page.evaluate(
        """(id) => {
            const canvas = document.getElementById(id), { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return new Set(new Uint32Array(data.buffer)).size;
        }""",
        canvas,
    )


def contrasts(page, pairs):
    """Of each pair of the style's colors their names and WCAG 2's contrast ratio."""
    return page.evaluate(
        """(pairs) => {
            const style = getComputedStyle(document.documentElement);
            const light = (name) => {
              const c = style.getPropertyValue(name).trim();
              const [r, g, b] = [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16) / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
              return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            return pairs.map(([a, b]) => [a, b, [light(a), light(b)].sort((x, y) => y - x)]).map(([a, b, [x, y]]) => [a, b, (x + 0.05) / (y + 0.05)]);
        }""",
        pairs,
    )


class Gate:
    """Where a script waits for its test; meanwhile it learns whether the page still listens."""

    def __init__(self):
        self.opened = threading.Event()
        self.gone = threading.Event()

    def wait(self, relay):
        while not self.opened.wait(0.05):
            relay.wfile.write(b": keep-alive\n\n")


def say(*parts, finish="stop", timings=None, experts=None, ends=True, pause_s=0):
    """A script: texts are content, dicts deltas or whole chunks, gates are waited for."""

    def script(relay):
        relay.begin()
        try:
            for part in parts:
                if isinstance(part, Gate):
                    part.wait(relay)
                elif isinstance(part, dict) and ("choices" in part or "error" in part):
                    relay.event(part)
                else:
                    relay.event(
                        {"choices": [{"index": 0, "delta": {"content": part} if isinstance(part, str) else part, "finish_reason": None}]}
                    )
                time.sleep(pause_s)
            if not ends:
                return
            relay.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
            last = {
                "choices": [],
                "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19},
                "timings": timings or TIMINGS,
            }
            relay.event(last | ({"experts": experts} if experts else {}))
            relay.event("[DONE]")
        except OSError:
            for part in parts:
                if isinstance(part, Gate):
                    part.gone.set()

    return script


def refuse(status, message, **headers):
    return lambda relay: relay.json(status, {"error": {"message": message, "type": "x", "code": "x"}}, **headers)


def in_turn(*scripts):
    left = list(scripts)
    return lambda relay: left.pop(0)(relay)


# ---- A page for each test


class BrowserTest(unittest.TestCase):
    """A browser, a page of its own for each test, and what must not happen there. `url`: where the page comes from."""

    url = ""

    @classmethod
    def setUpClass(cls):
        expect.set_options(timeout=15000)
        cls.playwright = sync_playwright().start()
        cls.browser = cls.playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.playwright.stop()

    def setUp(self):
        self.wrong, self.allowed = [], []
        self.new_context()

    def new_context(self, **options):
        self.context = self.browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        self.addCleanup(self.context.close)
        self.page = self.new_page()

    def new_page(self):
        page = self.context.new_page()
        page.set_default_timeout(15000)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("console", lambda said: self.wrong.append(f"console: {said.text}") if said.type == "error" else None)
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((self.url, "data:", "blob:" + self.url)) else self.wrong.append(f"asks {request.url}")
            ),
        )
        return page

    def tearDown(self):
        # The browser tells of every answer above 399, which some tests want.
        told = [each for each in self.wrong if not (self.allowed and any(re.search(pattern, each) for pattern in self.allowed))]
        self.assertEqual(told, [])

    def allow_failures(self):
        self.allowed.append("Failed to load resource")

    def until(self, condition, seconds=15):
        """Like playwright's wait_for_function, which the Content-Security-Policy does not let evaluate texts."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            self.assertLess(time.monotonic(), end, f"still not: {condition}")
            time.sleep(0.05)

    def wrong_names(self):
        """What a screen reader could not name, and what else it would stumble over."""
        return self.page.evaluate("""() => {
            const wrong = [];
            const say = (what, element) => wrong.push(what + ': ' + element.outerHTML.slice(0, 160));
            const byIds = (ids) => ids.split(/\\s+/).map((id) => document.getElementById(id));
            for (const e of document.querySelectorAll('button, a, input, textarea, select, [role=group], [role=img], [role=log], nav, aside, dialog, article')) {
              const label = e.labels?.[0]?.textContent || e.getAttribute('aria-label') || byIds(e.getAttribute('aria-labelledby') ?? '').map((x) => x?.textContent ?? '').join('') ||
                            (e.matches('button, a') ? e.textContent : '');
              if (!label.trim()) say('no name', e);
            }
            for (const e of document.querySelectorAll('[aria-labelledby], [aria-describedby], [aria-controls], [for]')) {
              for (const name of ['aria-labelledby', 'aria-describedby', 'aria-controls', 'for']) {
                if (e.hasAttribute(name) && byIds(e.getAttribute(name)).includes(null)) say(name, e);
              }
            }
            const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
            if (new Set(ids).size !== ids.length) wrong.push('ids twice');
            for (const e of document.querySelectorAll('img:not([alt]), [tabindex]:not([tabindex="0"]):not([tabindex="-1"]), svg:not([aria-hidden]):not(.katex svg), [aria-hidden=true] button')) say('odd', e);
            if (!document.documentElement.lang || document.querySelectorAll('h1').length !== 1 || document.querySelectorAll('main').length !== 1) wrong.push('page');
            return wrong;
        }""")


class PageTest(BrowserTest):
    """The page of `fathom serve` behind the relay, and what the tests say about it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
        cls.server.daemon_threads = True
        cls.url = f"http://127.0.0.1:{cls.server.server_port}"
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.server.shutdown()

    def setUp(self):
        self.server.requests, self.server.script, self.server.key = [], say("Hello."), None
        self.server.answers = {
            "/v1/models": (200, {"data": [{"id": "mock", "max_model_len": 4096}]}),
            "/ready": (200, {}),
            "/apply-template": (200, {"prompt": "<User>fathom?<Assistant>"}),
        }
        super().setUp()

    def open(self):
        self.page.goto(self.url + "/")
        expect(self.page.locator("#model")).not_to_be_empty()
        return self.page

    def send(self, text="Hi", waits=True):
        self.page.fill("#text", text)
        self.page.keyboard.press("Enter")
        if waits:
            self.settle()

    def settle(self):
        expect(self.page.locator("#send")).to_be_visible()
        self.until("!document.querySelector('[data-status=streaming]')")

    def answer(self, i=-1):
        return self.page.locator(".message[data-role=assistant]").nth(i)

    def content(self, i=-1):
        return self.answer(i).locator(".content")

    def say_now(self, text):
        """Shows a text as an answer and gives its place."""
        self.server.script = say(text)
        self.open()
        self.send()
        expect(self.content()).not_to_have_class(re.compile("plain"))
        return self.content()

    def action(self, label, message=None):
        (message or self.answer()).get_by_role("button", name=label).click()

    def stored(self):
        return [
            json.loads(text)
            for text in self.page.evaluate(
                "Object.entries(localStorage).filter(([k]) => k.startsWith('fathom.conversation.')).map(([, v]) => v)"
            )
        ]

    def real(self):
        self.server.script, self.server.answers = None, {}
        self.page.goto(self.url + "/")
        self.page.evaluate("localStorage.setItem('fathom.settings', JSON.stringify({ max_tokens: '24', seed: '1' }))")
        self.page.reload()
        expect(self.page.locator("#model")).not_to_be_empty()
        expect(self.page.locator("#line")).to_contain_text("Context")
