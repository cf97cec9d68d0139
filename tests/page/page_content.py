"""The page's tests of what answers hold, hostile ones too, and of how the page is read and used; page_test.py runs them."""

import json
import pathlib
import re

from playwright.sync_api import expect

from browser import Gate, PageTest, contrasts, in_turn, refuse, say

XSS = [line.replace("⏎", "\n") for line in (pathlib.Path(__file__).resolve().parent / "xss.txt").read_text().splitlines()]
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Content(PageTest):
    """What answers hold, as it is shown."""

    def test_markdown(self):
        text = (
            "# Title\n\nA *b* **c** ~~d~~ `e<f` &amp; &lt;i&gt;\nnext\n\n1. one\n2. two\n   - [x] done\n\n> said\n\n| a | b |\n|:-:|--:|\n| 1 | `2` |\n\n---\n"
            "<b>raw</b> [link](https://example.org/?a=1&b=2) <mail@example.org> https://example.org/x\n"
        )
        body = self.say_now(text)
        for selector, shown in {
            "h3": "Title",
            "em": "b",
            "strong": "c",
            "del": "d",
            "p code": "e<f",
            "blockquote": "said",
            "td.align-center": "1",
            "td code": "2",
        }.items():
            expect(body.locator(selector).first).to_have_text(shown)
        expect(body.locator("p").first).to_contain_text("& <i>")
        expect(body.locator("ol > li")).to_have_count(2)
        expect(body.locator("li input[disabled]:checked")).to_have_count(1)
        expect(body).to_contain_text("<b>raw</b>")
        links = body.locator("a").evaluate_all("all => all.map((a) => [a.href, a.rel, a.target])")
        wanted = ["https://example.org/?a=1&b=2", "mailto:mail@example.org", "https://example.org/x"]
        self.assertEqual(links, [[href, "noopener noreferrer nofollow", "_blank"] for href in wanted])

    def test_code_is_coloured(self):
        body = self.say_now(
            "```python\ndef f(x):\n    return 'a<b'  # why\n```\n\n```c++\nint x = 1;\n```\n\n```php\n<?php echo 1; ?>\n```\n\n```nolang\nx < y\n```\n\n```\nopen"
        )
        expect(body.locator("figure.code")).to_have_count(5)
        expect(body.locator(".token.keyword").first).to_have_text("def")
        expect(body.locator("figure").nth(0).locator("code")).to_have_text("def f(x):\n    return 'a<b'  # why")
        expect(body.locator("figure").nth(1).locator(".token.keyword")).to_have_text("int")
        expect(body.locator("figure").nth(2).locator(".token.keyword")).to_have_text("echo")
        expect(body.locator("figure").nth(3).locator("code")).to_have_text("x < y")
        colors = body.evaluate("b => new Set([...b.querySelectorAll('.token')].map((t) => getComputedStyle(t).color)).size")
        self.assertGreater(colors, 3)

    def test_maths(self):
        body = self.say_now(
            "$E = mc^2$ and \\(a_1\\), $5 or $6, `$x$`\n\n$$\\sum_{i=1}^n \\frac{1}{i^2} = \\sqrt{2}$$\n\n\\[\nx < y\n\\]\n\n$\\nonsense{$"
        )
        expect(body.locator(".katex")).to_have_count(4)
        expect(body.locator(".math-display")).to_have_count(2)
        expect(body.locator("math annotation").first).to_have_text("E = mc^2")
        expect(body).to_contain_text("$5 or $6")
        expect(body.locator(".math-source")).to_have_text("$\\nonsense{$")
        self.until("[...document.fonts].some((font) => font.family === 'KaTeX_Main' && font.status === 'loaded')")
        self.assertGreater(body.locator(".katex [style]").count(), 5)  # lengths come through
        self.assertGreater(body.locator(".katex .vlist").first.evaluate("e => e.getBoundingClientRect().height"), 5)

    def test_pictures_come_from_the_text_alone(self):
        body = self.say_now(f"![here]({PIXEL}) ![there](https://example.org/x.png)")
        expect(body.locator("img")).to_have_count(1)
        self.assertEqual(body.locator("img").get_attribute("alt"), "here")
        expect(body.locator("a")).to_have_text("picture: there")

    def test_endless_text_stays_plain(self):
        self.server.script = in_turn(say("**a " * 12000), say("*fine*"))
        page = self.open()
        self.send()
        self.assertLess(
            page.evaluate("new Promise((done) => { const t = performance.now(); setTimeout(() => done(performance.now() - t), 10); })"),
            1000,
        )
        self.send("next")
        expect(self.content().locator("em")).to_have_text("fine")  # after the other has been given up
        self.assertEqual(self.content(0).text_content(), "**a " * 12000)

    def test_long_answer_in_small_pieces(self):
        text = "".join(f"## Part {i}\n\nSome *text* with `code` and $x_{i}$.\n\n- item\n- item\n\n" for i in range(120))
        self.server.script = say(*[text[i : i + 5] for i in range(0, len(text), 5)])
        self.open()
        self.send()
        expect(self.content().locator("h4")).to_have_count(120)
        expect(self.content().locator(".katex")).to_have_count(120)
        expect(self.content().locator("li")).to_have_count(240)


class Hostile(PageTest):
    """Texts that would like to be more than text."""

    HOSTILE = """() => {
        const wrong = [];
        const tags = 'script,iframe,frame,object,embed,base,meta,link,style,video,audio,source,template,applet,foreignObject,animate,set,image,annotation-xml,input:not([type=checkbox][disabled]),select,textarea,body,head,form';
        for (const element of document.querySelectorAll('body *')) {
          const ours = !element.closest('#log, .toast, #conversations, header');
          const say = (what) => wrong.push(what + ': ' + element.outerHTML.slice(0, 200));
          if (!ours && !element.closest('.results, .edit') && element.matches(tags)) say('element');
          for (const { name, value } of element.attributes) {
            if (/^on|^formaction|^srcset|^srcdoc|^xlink|^action/i.test(name)) say(name);
            if (name === 'style' && !ours && !element.closest('.katex')) say(name);
            if (/javascript:|vbscript:/i.test(value) && /^(href|src)$/.test(name)) say(name);
            if (name === 'href' && !ours && !/^(https?:|mailto:|#icon-)/.test(value)) say(name);
            if (name === 'src' && !/^(data:image[/](png|jpeg|gif|webp);base64,|[/]\\w+[.]js$)/.test(value)) say(name);
            if (name === 'id' && document.querySelectorAll('#' + CSS.escape(value)).length > 1) say('id twice');
          }
          if (element.matches('.body a') && (element.rel !== 'noopener noreferrer nofollow' || element.target !== '_blank')) say('rel');
          if (!ours && getComputedStyle(element).position === 'fixed') say('fixed');
        }
        return wrong;
    }"""

    def check_hostile(self):
        self.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        self.page.wait_for_timeout(300)
        for link in self.page.locator(".body a, .body .dead-link").all()[:60]:
            link.evaluate(
                "e => { e.addEventListener('click', (event) => event.preventDefault()); e.click(); e.dispatchEvent(new MouseEvent('mouseover')); }"
            )
        self.assertEqual(self.page.evaluate(self.HOSTILE), [])

    def test_hostile_texts_kept_and_imported(self):
        self.assertEqual(len(XSS), 100)
        nodes, parent = [], None
        for i, text in enumerate(XSS):
            nodes.append(
                {
                    "id": f"n{i:08d}",
                    "parent": parent,
                    "role": "assistant",
                    "content": text,
                    "reasoning": text,
                    "status": "error",
                    "error": {"message": text},
                    "finish": text,
                    "tool_calls": [{"id": text, "name": text, "arguments": text}],
                }
            )
            parent = nodes[-1]["id"]
        page = self.open()
        saved = {"format": "fathom-conversations", "conversations": [{"id": "c00000001", "title": XSS[0], "nodes": nodes}]}
        page.set_input_files("#import-file", {"name": "a.json", "mimeType": "application/json", "buffer": json.dumps(saved).encode()})
        expect(page.locator(".message")).to_have_count(100)
        self.until("!document.querySelector('.content.plain')")
        self.check_hostile()
        squeezed = lambda text: re.sub(r"\s+", "", text)
        raw = [i for i, text in enumerate(XSS) if text.startswith("<") and not re.search(r"[*_`\[\]\\$&~]|^<javascript", text)]
        self.assertGreater(len(raw), 50)
        for i in raw:
            with self.subTest(text=XSS[i]):
                self.assertEqual(squeezed(self.content(i).text_content()), squeezed(XSS[i]))

    def test_hostile_texts_streamed(self):
        text = "\n\n".join(XSS)
        self.server.script = say(*[text[i : i + 7] for i in range(0, len(text), 7)], pause_s=0.0005)
        self.open()
        self.send(XSS[0])
        self.assertEqual(self.page.evaluate(self.HOSTILE), [])
        self.server.script = in_turn(
            *[say(*[{"reasoning_content": x[:9]}, {"reasoning_content": x[9:]}, x[:5], x[5:]]) for x in XSS[:8] + XSS[66:74]]
        )
        for text in XSS[:8] + XSS[66:74]:
            self.send(text)
        self.until("!document.querySelector('.message[data-role=assistant] .content.plain')")
        self.check_hostile()

    def test_hostile_server(self):
        self.allow_failures()
        text = XSS[5]
        self.server.answers["/v1/models"] = (200, {"data": [{"id": text, "max_model_len": text}]})
        call = {"tool_calls": [{"index": 0, "id": text, "function": {"name": text, "arguments": json.dumps({"a": text})}}]}
        self.server.script = in_turn(
            say(call, finish=text),
            refuse(500, text),
            say("x", timings={"predicted_n": text, "predicted_per_second": text, "draft_n": text}),
        )
        page = self.open()
        for _ in range(3):
            self.send(text)
        expect(page.locator("#model")).to_have_text(text)
        self.check_hostile()

    def test_headers(self):
        for path in ["/", "/app.js", "/worker.js", "/style.css", "/lib/katex.css"]:
            answer = self.context.request.get(self.url + path)
            self.assertEqual(answer.status, 200)
            rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
            self.assertEqual(rules["default-src"], "'none'")
            self.assertEqual(
                {name: rules[name] for name in ("script-src", "style-src", "connect-src")},
                dict.fromkeys(("script-src", "style-src", "connect-src"), "'self'"),
            )
            self.assertEqual(answer.headers["x-content-type-options"], "nosniff")

    def test_policy_refuses_what_the_page_does_not_do(self):
        page = self.open()
        self.allowed.append("Content.Security.Policy|Refused|violates|Trusted")
        ran = page.evaluate("""() => {
            window.ran = false;
            const script = document.createElement('script');
            try { script.textContent = 'window.ran = true'; } catch { return false; }
            document.body.append(script);
            return window.ran;
        }""")
        self.assertFalse(ran)


class Use(PageTest):
    """Scrolling, keyboard, screen readers, sizes."""

    def test_scrolling_does_not_fight(self):
        gates = Gate(), Gate(), Gate()
        lines = "line\n\n" * 60
        self.server.script = say(lines, gates[0], lines, gates[1], lines, gates[2])
        page = self.open()
        self.send(waits=False)
        at_end = "(() => { const log = document.getElementById('log'); return log.scrollHeight - log.scrollTop - log.clientHeight < 2; })()"
        shown = lambda n: self.until(f"document.querySelectorAll('.content p').length === {n}")
        shown(60)
        self.until(at_end)
        expect(page.locator("#to-end")).to_be_hidden()
        page.locator("#log").hover()
        page.mouse.wheel(0, -400)
        expect(page.locator("#to-end")).to_be_visible()
        top = page.evaluate("document.getElementById('log').scrollTop")
        gates[0].opened.set()
        shown(120)
        self.assertEqual(page.evaluate("document.getElementById('log').scrollTop"), top)
        page.get_by_role("button", name="To the latest message").click()
        self.until(at_end)
        gates[1].opened.set()
        shown(180)
        self.until(at_end)
        gates[2].opened.set()
        self.settle()

    def test_keyboard(self):
        page = self.open()
        self.send()
        page.keyboard.press("Control+Shift+O")
        expect(page.locator(".message")).to_have_count(0)
        expect(page.locator("#text")).to_be_focused()
        page.reload()
        page.locator("#conversations .open").click()
        self.assertTrue(page.evaluate("document.querySelector('a, button, input') === document.querySelector('.skip')"))
        page.focus(".skip")
        reached = []
        for _ in range(30):
            page.keyboard.press("Tab")
            name, outline = page.evaluate(
                "[document.activeElement.id || document.activeElement.getAttribute('aria-label') || document.activeElement.textContent, "
                "(document.activeElement.id === 'text' ? document.activeElement.parentElement : document.activeElement)].map((x) => x.nodeType ? getComputedStyle(x).outlineStyle : x)"
            )
            self.assertNotEqual(outline, "none", name)
            reached.append(name)
            if name == "text":
                break
        # In the order in which they are read.
        order = [
            "new-chat",
            "search",
            "import",
            "export",
            "toggle-sidebar",
            "theme",
            "open-settings",
            "log",
            "Copy message",
            "Regenerate",
            "text",
        ]
        places = [reached.index(name) for name in order]
        self.assertEqual(places, sorted(places))
        page.get_by_role("button", name="Settings").press("Enter")
        expect(page.locator("#settings")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Settings")).to_be_focused()

    def test_names_for_screen_readers(self):
        self.server.script = say(
            {"reasoning_content": "Hm."},
            f"```c\nx\n```\n\n|a|b|\n|-|-|\n|1|2|\n\n![p]({PIXEL})",
            experts={"layers": [1], "counts": [[1, 2]]},
        )
        page = self.open()
        self.send()
        page.get_by_role("button", name="Experts", exact=True).click()
        page.get_by_role("button", name="Settings").click()
        self.assertEqual(self.wrong_names(), [])
        log = page.locator("#log")
        self.assertEqual([log.get_attribute("role"), log.get_attribute("aria-live")], ["log", "polite"])
        expect(page.locator("#announcer")).to_have_text("The answer is complete")

    def test_contrast(self):
        page = self.open()
        pairs = [("--accent-text", "--accent"), ("--danger", "--danger-page"), ("--muted", "--side"), ("--accent", "--side"), ("--accent", "--raised")]
        pairs += [(name, on) for name in ["--text", "--muted", "--accent"] for on in ["--page", "--raised"]]
        pairs += [(f"--code-{name}", "--code-page") for name in ["comment", "keyword", "string", "number", "function", "type", "gone"]]
        for theme in ["light", "dark"]:
            page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            ratios = contrasts(page, pairs)
            self.assertEqual([each for each in ratios if not each[2] >= 4.5], [], theme)

    def test_reduced_motion(self):
        gate = Gate()
        self.server.script = say({"reasoning_content": "Hm."}, gate)
        page = self.open()
        page.emulate_media(reduced_motion="reduce")
        self.send(waits=False)
        expect(self.answer().locator("summary")).to_be_visible()
        self.assertEqual(page.evaluate("document.getAnimations().length"), 0)
        gate.opened.set()
        self.settle()

    def test_phone(self):
        wide = (
            f"{'word' * 80}\n\n```c\nint {'x' * 300};\n```\n\n|{'| column '.join(map(str, range(14)))}|\n|{'-|' * 14}\n|{'|'.join(['value'] * 14)}|\n\n$$"
            + "+".join(f"x_{{{i}}}" for i in range(60))
            + "$$\n"
        )
        self.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
        self.server.script = say({"reasoning_content": wide}, wide, experts={"layers": list(range(58)), "counts": [list(range(256))] * 58})
        page = self.open()
        self.send("question " + "w" * 200)
        self.content().locator(".katex").first.wait_for()
        self.answer().locator("summary").click()
        fits = lambda: page.evaluate(
            "document.scrollingElement.scrollWidth <= 360 && [...document.querySelectorAll('#main, #log, header, #composer, dialog[open]')].every((e) => e.scrollWidth <= Math.max(e.clientWidth, 360) && e.getBoundingClientRect().right <= 360.5)"
        )
        self.assertTrue(fits())
        for inside in [".content .table", ".content .code pre", ".content .math-display"]:
            self.assertTrue(
                page.locator(inside).first.evaluate("e => e.scrollWidth > e.clientWidth && e.getBoundingClientRect().right <= 360"), inside
            )
        page.get_by_role("button", name="List of conversations").click()
        expect(page.locator("#close-sidebar")).to_be_focused()
        self.assertTrue(page.evaluate("document.getElementById('main').inert"))
        page.keyboard.press("Escape")
        expect(page.locator("#sidebar")).to_be_hidden()
        expect(page.locator("#toggle-sidebar")).to_be_focused()
        page.get_by_role("button", name="Settings").click()
        self.assertTrue(fits())
        page.get_by_role("button", name="Close settings").click()
        page.get_by_role("button", name="Experts", exact=True).click()
        self.assertTrue(page.locator("#experts").evaluate("e => e.scrollWidth <= e.clientWidth && e.clientWidth <= 360"))
        self.assertTrue(page.locator("#experts-scroll").evaluate("e => e.scrollWidth > e.clientWidth"))
        small = page.evaluate(
            "[...document.querySelectorAll('header button, #composer button')].filter((b) => b.offsetParent && (b.offsetWidth < 32 || b.offsetHeight < 32)).length"
        )
        self.assertEqual(small, 0)
