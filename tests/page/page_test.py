#!/usr/bin/env python3
"""The page of `fathom serve` in a browser: page_test.py PROGRAM or --url http://127.0.0.1:8080, [--screenshot FILE] [unittest's arguments]

Needs Debian's chromium and PyPI's playwright; exits 77, "skipped", without them. Most tests put a server of their own in front, which hands the page on as it comes, with its
headers, and answers for the model as the test has it. Whatever a test does, the page must raise no error, break no rule of its
Content-Security-Policy, ask no other origin and open no dialog of the browser's."""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/clients"))
import client_packages

client_packages.need_browser()

from playwright.sync_api import expect

import page_content
from browser import TIMINGS, Gate, PageTest, arguments, colors_of, in_turn, refuse, say


class Chat(PageTest):
    # -- The server's own model

    def test_real_model_answers(self):
        self.real()
        self.send("ROMEO:")
        expect(self.content()).not_to_be_empty()
        expect(self.answer().locator(".stats")).to_contain_text(re.compile(r"tokens/s · \d+ tokens? · prompt \d+"))
        expect(self.page.locator("#line")).to_contain_text(re.compile(r"Context: \d+ of"))
        self.assertEqual(self.answer().get_attribute("data-status"), "done")

    def test_real_model_goes_on(self):
        self.real()
        self.send("ROMEO:")
        before = self.content().text_content()
        if self.answer().get_by_role("button", name="Continue").count():  # it may have ended by itself
            self.action("Continue")
            self.settle()
            self.assertTrue(self.content().text_content().startswith(before))
            self.assertGreater(len(self.content().text_content()), len(before))

    def test_model_without_template_continues_plainly(self):
        self.server.answers["/apply-template"] = (200, {"prompt": "fathom?"})
        self.server.script = say("* one\n\n* two  *three*")
        self.open()
        expect(self.page.locator(".welcome")).to_contain_text("no chat template")
        self.send("A list:")
        expect(self.content()).to_have_class(re.compile("plain"))
        self.assertEqual(self.content().text_content(), "* one\n\n* two  *three*")
        expect(self.answer().locator(".who")).to_have_text("Continuation")
        self.assertEqual(self.server.requests[0]["max_tokens"], 256)

    # -- Sending

    def test_enter_sends_and_shift_enter_breaks(self):
        page = self.open()
        page.locator("#text").press_sequentially("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.keyboard.press("Enter")
        self.settle()
        request = self.server.requests[0]
        self.assertEqual(request["messages"], [{"role": "user", "content": "one\ntwo"}])
        self.assertTrue(request["stream"] and request["stream_options"]["include_usage"])
        expect(self.content()).to_have_text("Hello.")
        expect(page.locator("#text")).to_have_value("")
        expect(page.locator("#text")).to_be_focused()

    def test_nothing_is_sent_for_nothing(self):
        page = self.open()
        expect(page.locator("#send")).to_be_disabled()
        self.send(" \n ", waits=False)
        page.wait_for_timeout(200)
        self.assertEqual(self.server.requests, [])

    def test_history_is_sent(self):
        self.open()
        self.send("one")
        self.send("two")
        self.assertEqual([message["content"] for message in self.server.requests[1]["messages"]], ["one", "Hello.", "two"])

    def test_text_streams(self):
        gate = Gate()
        self.server.script = say("Half **bold** ", gate, "whole")
        page = self.open()
        self.send(waits=False)
        expect(self.content()).to_have_text("Half bold")
        self.assertEqual(self.answer().get_attribute("aria-busy"), "true")
        expect(page.locator("#stop")).to_be_visible()
        expect(page.locator("#send")).to_be_hidden()
        gate.opened.set()
        self.settle()
        expect(self.content()).to_have_text("Half bold whole")
        self.assertEqual(self.answer().get_attribute("aria-busy"), "false")
        expect(self.answer().locator(".stats")).to_have_text("12.5 tokens/s · 7 tokens · prompt 12, 4 cached, 20 ms")

    def test_events_are_read_however_they_are_cut(self):
        page = self.open()
        read = page.evaluate("""async () => {
            const { EventReader } = await import('/stream.js');
            const whole = ': hi\\r\\n\\r\\ndata: {"a": 1}\\r\\n\\r\\nid: 3\\ndata:x\\ndata:  y\\n\\ndata: [DONE]\\n\\n';
            const results = new Set();
            for (let n = 1; n <= whole.length; ++n) {
              const reader = new EventReader(), events = [];
              for (let i = 0; i < whole.length; i += n) events.push(...reader.push(whole.slice(i, i + n)));
              results.add(JSON.stringify(events));
            }
            return [...results];
        }""")
        self.assertEqual(read, ['["{\\"a\\": 1}","x\\n y","[DONE]"]'])

    def test_characters_cut_in_two(self):
        def script(relay):
            relay.begin()
            for byte in (
                "data: " + json.dumps({"choices": [{"delta": {"content": "鲸🐋é"}}]}, ensure_ascii=False) + "\r\n\r\ndata: [DONE]\n\n"
            ).encode():
                relay.wfile.write(bytes([byte]))
                relay.wfile.flush()

        self.server.script = script
        self.open()
        self.send()
        expect(self.content()).to_have_text("鲸🐋é")

    def test_stream_of_no_json(self):
        self.server.script = lambda relay: (relay.begin(), relay.event("{"))
        self.open()
        self.send()
        expect(self.answer().locator(".error")).to_contain_text("no JSON")

    def test_stop_button(self):
        gate = Gate()
        self.server.script = say("Half ", gate)
        page = self.open()
        self.send(waits=False)
        expect(self.content()).to_have_text("Half")
        page.click("#stop")
        self.settle()
        self.assertTrue(gate.gone.wait(5), "the server still thinks that somebody listens")
        expect(self.content()).to_have_text("Half")
        expect(self.answer().locator(".stats")).to_contain_text("stopped")

    def test_escape_stops_and_continue_goes_on(self):
        gate = Gate()
        self.server.script = in_turn(say({"reasoning_content": "Hm."}, "Half ", gate), say("whole."))
        page = self.open()
        self.send(waits=False)
        expect(self.content()).to_have_text("Half")
        page.keyboard.press("Escape")
        self.settle()
        self.action("Continue")
        self.settle()
        expect(self.content()).to_have_text("Half whole.")
        self.assertEqual(
            self.server.requests[1]["messages"][-1], {"role": "assistant", "content": "Half ", "prefix": True, "reasoning_content": "Hm."}
        )

    def test_regenerate_keeps_both_versions(self):
        self.server.script = in_turn(say("first"), say("second"), say("third"))
        page = self.open()
        self.send()
        self.action("Regenerate")
        self.settle()
        expect(self.content()).to_have_text("second")
        self.assertEqual(self.server.requests[1]["messages"], self.server.requests[0]["messages"])
        expect(self.answer().locator(".version")).to_have_text("2/2")
        self.action("Previous version")
        expect(self.content()).to_have_text("first")
        self.send("more")
        self.assertEqual(self.server.requests[2]["messages"][1]["content"], "first")
        self.action("Next version", self.answer(0))
        expect(self.content()).to_have_text("second")
        expect(page.locator(".message")).to_have_count(2)

    def test_edit_and_send_again(self):
        self.server.script = in_turn(say("one"), say("two"))
        page = self.open()
        self.send("qestion")
        question = page.locator(".message[data-role=user]")
        self.action("Edit and send again", question)
        field = question.get_by_label("Edit your message")
        expect(field).to_be_focused()
        page.keyboard.press("Escape")
        expect(question.locator(".content")).to_have_text("qestion")
        self.action("Edit and send again", question)
        field.fill("question")
        field.press("Enter")
        self.settle()
        expect(self.content()).to_have_text("two")
        self.assertEqual(self.server.requests[1]["messages"], [{"role": "user", "content": "question"}])
        self.action("Previous version", question)
        expect(question.locator(".content")).to_have_text("qestion")
        expect(self.content()).to_have_text("one")

    def test_delete_and_undo(self):
        page = self.open()
        self.send("one")
        self.send("two")
        self.action("Delete message", page.locator(".message").nth(2))
        expect(page.locator(".message")).to_have_count(2)
        page.get_by_role("button", name="Undo").click()
        expect(page.locator(".message")).to_have_count(4)
        self.assertEqual(len(self.stored()[0]["nodes"]), 4)

    def test_copy(self):
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.say_now("**bold**\n```py\nx = 1\n```")
        self.action("Copy message")
        expect(self.page.locator("#announcer")).to_have_text("Copied")
        self.assertEqual(self.page.evaluate("navigator.clipboard.readText()"), "**bold**\n```py\nx = 1\n```")
        self.page.get_by_role("button", name="Copy code").click()
        self.until("navigator.clipboard.readText().then((text) => text === 'x = 1')")

    # -- Thoughts and tools

    def test_thoughts_are_folded(self):
        gate = Gate()
        self.server.script = say({"reasoning_content": "Let me **see**"}, gate, {"reasoning_content": "."}, "Answer.")
        self.open()
        self.send(waits=False)
        thoughts = self.answer().locator("details.thinking")
        expect(thoughts.locator("summary")).to_have_text(re.compile(r"^Thinking… \d"))
        self.assertIsNone(thoughts.get_attribute("open"))
        thoughts.locator("summary").click()
        expect(thoughts.locator(".body")).to_have_text("Let me see")
        gate.opened.set()
        self.settle()
        expect(thoughts.locator("summary")).to_have_text(re.compile(r"^Thought for \d.* m?s$"))
        expect(thoughts.locator(".body")).to_have_text("Let me see.")
        expect(self.content()).to_have_text("Answer.")
        self.page.reload()
        self.page.locator("#conversations .open").click()
        expect(self.answer().locator("summary")).to_have_text(re.compile("^Thought for"))
        self.assertIsNone(self.answer().locator("details.thinking").get_attribute("open"))

    def test_tool_calls(self):
        call = lambda **function: {"tool_calls": [{"index": 0, "function": function}]}
        first = {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}]}
        self.server.script = in_turn(
            say({"reasoning_content": "Ask."}, first, call(arguments='{"city":'), call(arguments='"Oslo"}'), finish="tool_calls"),
            say("Rain."),
        )
        page = self.open()
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Tools (JSON)").fill('[{"type": "function", "function": {"name": "weather"}}]')
        page.get_by_role("button", name="Save").click()
        self.send("Weather?")
        self.assertEqual(self.server.requests[0]["tools"][0]["function"]["name"], "weather")
        expect(self.answer().locator(".call strong")).to_have_text("weather")
        expect(self.answer().locator(".call pre")).to_have_text('{\n  "city": "Oslo"\n}')
        page.get_by_label("Result of weather").fill("rain")
        page.get_by_role("button", name="Send results").click()
        self.settle()
        expect(self.content()).to_have_text("Rain.")
        _, asked, result = self.server.requests[1]["messages"]
        self.assertEqual(
            asked["tool_calls"], [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}]
        )
        self.assertEqual(asked["reasoning_content"], "Ask.")
        self.assertEqual(result, {"role": "tool", "tool_call_id": "call_1", "content": "rain"})

    # -- Failures

    def test_error_and_retry(self):
        self.allow_failures()
        self.server.script = in_turn(refuse(500, "the cache is on fire"), say("Better."))
        page = self.open()
        self.send()
        expect(self.answer().locator(".error")).to_contain_text("the cache is on fire")
        page.get_by_role("button", name="Retry").click()
        self.settle()
        expect(self.content()).to_have_text("Better.")
        expect(page.locator(".error:visible")).to_have_count(0)
        expect(page.locator(".message")).to_have_count(2)

    def test_error_in_the_middle_keeps_the_text(self):
        self.server.script = say("Half ", {"error": {"message": "the server is shutting down"}})
        self.open()
        self.send()
        expect(self.content()).to_have_text("Half")
        expect(self.answer().locator(".error")).to_contain_text("shutting down")

    def test_lost_connection_keeps_the_text(self):
        self.server.script = in_turn(say("Half ", ends=False), say("whole."))
        page = self.open()
        self.send()
        expect(self.answer().locator(".error")).to_contain_text("connection was lost")
        expect(self.content()).to_have_text("Half")
        self.action("Continue")
        self.settle()
        expect(self.content()).to_have_text("Half whole.")
        expect(page.locator(".error:visible")).to_have_count(0)

    def test_busy_server_says_when(self):
        self.allow_failures()
        self.server.script = refuse(429, "the server is busy", Retry_After="3")
        self.open()
        self.send()
        expect(self.answer().locator(".error")).to_contain_text("the server is busy (try again in 3 s)")

    def test_unreachable_server(self):
        self.allow_failures()
        page = self.open()
        page.route("**/v1/chat/completions", lambda route: route.abort())
        self.send("precious words")
        expect(self.answer().locator(".error")).to_contain_text("cannot be reached")
        expect(page.locator(".message[data-role=user] .content")).to_have_text("precious words")

    def test_page_waits_for_the_model(self):
        self.allow_failures()
        loading = (503, {"error": {"message": "the model is being loaded"}})
        self.server.answers["/ready"] = [loading, (200, {})]
        page = self.page
        page.goto(self.url + "/")
        expect(page.locator("#banners")).to_contain_text("The model is being loaded")
        expect(page.locator("#banners")).to_be_empty()
        self.send()
        expect(self.content()).to_have_text("Hello.")

    def test_key_is_asked_for(self):
        self.allow_failures()
        self.server.key = "sesame"
        page = self.page
        page.goto(self.url + "/")
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-message")).to_have_text("this API key is not known")
        page.get_by_label("Key", exact=True).fill("sesame")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#model")).to_have_text("mock")
        self.send()
        expect(self.content()).to_have_text("Hello.")
        self.assertEqual(
            page.evaluate("[sessionStorage.getItem('fathom.key'), JSON.stringify(localStorage).includes('sesame')]"), ["sesame", False]
        )
        self.server.key = "new"  # and again, with the question kept
        self.send("second")
        expect(page.locator("#key-dialog")).to_be_visible()
        page.get_by_label("Key", exact=True).fill("new")
        page.keyboard.press("Enter")
        self.settle()
        expect(self.content()).to_have_text("Hello.")
        expect(page.locator(".message")).to_have_count(4)

    # -- Conversations

    def test_conversations_are_kept(self):
        page = self.open()
        self.send("first question")
        page.get_by_role("button", name="New chat").click()
        expect(page.locator(".message")).to_have_count(0)
        self.send("second question")
        page.reload()
        expect(page.locator("#conversations .open")).to_have_text(["second question", "first question"])
        page.locator("#conversations .open").nth(1).click()
        expect(page.locator(".message[data-role=user] .content")).to_have_text("first question")
        expect(page.locator("#title")).to_have_text("first question")

    def test_rename(self):
        page = self.open()
        self.send("question")
        page.locator("#conversations li").hover()
        page.get_by_role("button", name="Rename question").click()
        page.keyboard.type("A name")
        page.keyboard.press("Enter")
        expect(page.locator("#conversations .open")).to_have_text("A name")
        self.send("again")
        page.reload()
        expect(page.locator("#conversations .open")).to_have_text("A name")

    def test_rename_while_an_answer_ends(self):
        gate = Gate()
        self.server.script = say("Half ", gate, "whole.")
        page = self.open()
        self.send("question", waits=False)
        expect(self.content()).to_have_text("Half")
        page.locator("#conversations .open").dblclick()
        page.keyboard.type("A na")
        gate.opened.set()
        self.settle()
        page.keyboard.type("me")
        page.keyboard.press("Enter")
        expect(page.locator("#conversations .open")).to_have_text("A name")
        expect(page.locator("#title")).to_have_text("A name")

    def test_delete_conversation_and_undo(self):
        page = self.open()
        self.send("question")
        page.locator("#conversations li").hover()
        page.get_by_role("button", name="Delete question").click()
        expect(page.locator("#conversations .open")).to_have_count(0)
        expect(page.locator(".message")).to_have_count(0)
        self.assertEqual(self.stored(), [])
        page.get_by_role("button", name="Undo").click()
        expect(page.locator(".message")).to_have_count(2)
        self.assertEqual(len(self.stored()), 1)

    def test_search(self):
        page = self.open()
        self.server.script = in_turn(say("whales sing"), say("fish do not"))
        self.send("one")
        page.keyboard.press("Control+Shift+O")
        self.send("two")
        page.get_by_label("Search conversations").fill("WHALES one")
        expect(page.locator("#conversations .open")).to_have_text(["one"])
        page.get_by_label("Search conversations").fill("nowhere")
        expect(page.locator("#conversations")).to_have_text("Nothing found.")

    def test_export_and_import(self):
        page = self.open()
        self.send("question")
        with page.expect_download() as download:
            page.get_by_role("button", name="Export all").click()
        exported = pathlib.Path(download.value.path()).read_text()
        self.assertEqual(json.loads(exported)["format"], "fathom-conversations")
        self.new_context()
        page = self.open()
        page.set_input_files("#import-file", {"name": "a.json", "mimeType": "application/json", "buffer": exported.encode()})
        expect(page.locator(".message[data-role=user] .content")).to_have_text("question")
        expect(self.content()).to_have_text("Hello.")
        expect(page.locator("#toasts")).to_contain_text("Imported 1 conversation")

    def test_import_of_what_is_none(self):
        page = self.open()
        node = {"id": "n00000001", "parent": None, "role": "user", "content": "kept"}
        circle = node | {"id": "n00000002", "parent": "n00000002"}
        odd = {
            "id": "c00000001",
            "title": 3,
            "leaf": "nowhere",
            "nodes": [node, circle, {"id": "__proto__"}, None, node | {"id": "n00000003", "role": "god"}],
        }
        for text, says in [
            ("{", "no JSON"),
            ("[]", "no conversations"),
            (json.dumps({"format": "fathom-conversations", "conversations": [odd, 7]}), "Imported 1 conversation, 1 left out"),
        ]:
            page.set_input_files("#import-file", {"name": "a.json", "mimeType": "application/json", "buffer": text.encode()})
            expect(page.locator("#toasts")).to_contain_text(says)
        expect(page.locator(".message .content")).to_have_text(["kept"])

    def test_full_storage(self):
        self.page.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };")
        page = self.open()
        self.send("question")
        expect(page.locator("#banners")).to_contain_text("storage is full")
        expect(self.content()).to_have_text("Hello.")
        self.send("another")
        expect(page.locator(".message")).to_have_count(4)
        with page.expect_download() as download:
            page.locator("#banners").get_by_role("button", name="Export all").click()
        self.assertIn("another", pathlib.Path(download.value.path()).read_text())

    def test_bounded_storage_makes_room_when_told(self):
        page = self.open()
        page.evaluate("""() => {
            for (let i = 0; i < 8; ++i) {
              const node = { id: 'n0000000' + i, parent: null, role: 'user', content: String(i).repeat(520000) };
              localStorage['fathom.conversation.c0000000' + i] = JSON.stringify({ id: 'c0000000' + i, title: 't' + i, updated: i + 1, nodes: { [node.id]: node } });
            }
        }""")
        page.reload()
        self.send("x" * 200000)
        expect(page.locator("#banners")).to_contain_text("storage is full")
        page.get_by_role("button", name="Delete the oldest half").click()
        expect(page.locator("#banners")).to_be_empty()
        expect(page.locator("#conversations .open")).to_have_count(5)
        self.assertEqual(len(self.stored()), 5)

    def test_no_storage(self):
        self.page.add_init_script(
            "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });"
        )
        page = self.open()
        expect(page.locator("#banners")).to_contain_text("keeps nothing")
        self.send()
        expect(self.content()).to_have_text("Hello.")

    def test_drafts_stay_with_their_conversation(self):
        page = self.open()
        self.send("question")
        page.fill("#text", "half a thought")
        page.get_by_role("button", name="New chat").click()
        expect(page.locator("#text")).to_have_value("")
        page.reload()
        page.locator("#conversations .open").click()
        expect(page.locator("#text")).to_have_value("half a thought")

    def test_closed_tab_keeps_what_came(self):
        gate = Gate()
        self.server.script = say("Half ", gate)
        page = self.open()
        self.send(waits=False)
        expect(self.content()).to_have_text("Half")
        page.reload()
        page.locator("#conversations .open").click()
        expect(self.content()).to_have_text("Half")
        expect(self.answer().locator(".stats")).to_contain_text("stopped")
        expect(self.answer().get_by_role("button", name="Continue")).to_be_visible()

    def test_answer_goes_on_behind_another_conversation(self):
        gate = Gate()
        self.server.script = in_turn(say("Half ", gate, "whole."), say("Other."))
        page = self.open()
        self.send("long", waits=False)
        expect(self.content()).to_have_text("Half")
        page.get_by_role("button", name="New chat").click()
        self.send("short")
        expect(self.content()).to_have_text("Other.")
        expect(page.locator("#conversations .busy")).to_have_count(1)
        gate.opened.set()
        expect(page.locator("#conversations .busy")).to_have_count(0)
        page.locator("#conversations .open", has_text="long").click()
        expect(self.content()).to_have_text("Half whole.")

    def test_two_tabs(self):
        self.open()
        other = self.new_page()
        other.goto(self.url + "/")
        self.send("question")
        expect(other.locator("#conversations .open")).to_have_text("question")
        other.locator("#conversations .open").click()
        self.send("and more")
        expect(other.locator(".message")).to_have_count(4)

    # -- Settings

    def test_settings_are_sent_and_kept(self):
        page = self.open()
        page.get_by_role("button", name="Settings").click()
        values = {
            "System prompt": "Be brief.",
            "Temperature": "0.5",
            "Top p": "0.9",
            "Top k": "40",
            "Min p": "0.05",
            "Max tokens": "99",
            "Seed": "7",
            "Stop texts": "END\n\\n\\n",
        }
        for label, value in values.items():
            page.get_by_label(label, exact=True).fill(value)
        page.get_by_label("Thinking").select_option("On")
        page.get_by_role("button", name="Save").click()
        page.reload()
        self.send()
        request = self.server.requests[0]
        self.assertEqual(request["messages"][0], {"role": "system", "content": "Be brief."})
        wanted = {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.05,
            "max_tokens": 99,
            "seed": 7,
            "stop": ["END", "\n\n"],
            "thinking": {"type": "enabled"},
        }
        self.assertEqual({name: request.get(name) for name in wanted}, wanted)

    def test_empty_settings_are_not_sent(self):
        self.open()
        self.send()
        known = {"model", "messages", "stream", "stream_options", "timings_per_token", "expert_counts"}
        self.assertEqual(set(self.server.requests[0]), known)

    def test_settings_out_of_range(self):
        page = self.open()
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Temperature").fill("5")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#settings")).to_be_visible()
        page.get_by_label("Temperature").fill("1")
        page.get_by_label("Tools (JSON)").fill("{")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#settings-error")).to_have_text("Tools (JSON): is no JSON")
        page.keyboard.press("Escape")
        expect(page.locator("#settings")).to_be_hidden()
        self.send()
        self.assertNotIn("temperature", self.server.requests[0])

    def test_theme(self):
        page = self.open()
        background = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = background()
        page.emulate_media(color_scheme="dark")
        dark = background()
        self.assertNotEqual(light, dark)
        page.get_by_role("button", name="Theme: as the system").click()
        self.assertEqual(background(), light)
        page.get_by_role("button", name="Theme: light").click()
        page.emulate_media(color_scheme="light")
        self.assertEqual(background(), dark)
        page.reload()
        self.assertEqual(background(), dark)
        expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()

    # -- Speed, drafts, experts

    def test_speed_and_drafts_live(self):
        gates = Gate(), Gate()
        chunk = {
            "choices": [{"delta": {"content": "w "}}],
            "timings": {"predicted_n": 9, "predicted_per_second": 31.4, "draft_n": 10, "draft_n_accepted": 7},
        }
        self.server.script = say(
            *["w "] * 8, gates[0], chunk, gates[1], timings=TIMINGS | {"draft_n": 20, "draft_n_accepted": 15}, pause_s=0.02
        )
        page = self.open()
        self.send(waits=False)
        expect(page.locator("#line")).to_have_text(re.compile(r"^≈ [\d.]+ tokens/s · ≈ 8 tokens$"))
        gates[0].opened.set()
        expect(page.locator("#line")).to_have_text("31.4 tokens/s · 9 tokens · 70 % of 10 drafts accepted")
        gates[1].opened.set()
        self.settle()
        expect(self.answer().locator(".stats")).to_contain_text("75 % of 20 drafts accepted")
        expect(page.locator("#line")).to_have_text("Context: 19 of 4,096 tokens")

    def test_experts(self):
        counts = [[(i * 7 + j * 3) % 11 for j in range(16)] for i in range(3)]
        self.server.script = say("Hello.", experts={"layers": [1, 2, 3], "counts": counts})
        page = self.open()
        expect(page.locator("#toggle-experts")).to_be_hidden()
        self.send()
        self.assertTrue(self.server.requests[0]["expert_counts"])
        page.get_by_role("button", name="Experts", exact=True).click()
        expect(page.locator("#experts-label")).to_have_text("Answer 1 of “Hi”")
        self.assertGreater(colors_of(page, "experts-canvas"), 8)
        page.focus("#experts-canvas")
        for key in ["ArrowRight", "ArrowRight", "ArrowDown"]:
            page.keyboard.press(key)
        expect(page.locator("#experts-cell")).to_have_text(
            re.compile(rf"^Layer 2, expert 1: {counts[1][1]} tokens, [\d.]+ % \(evenly: 6.3 %\)$")
        )
        expect(page.locator("#experts-table tr")).to_have_count(3)
        expect(page.locator("#experts-table tr").first.locator("td").first).to_have_text(f"{sum(n > 0 for n in counts[0])} of 16")
        self.assertIn("3 layers with 16 experts", page.get_attribute("#experts-canvas", "aria-label"))
        page.keyboard.press("Escape")
        expect(page.locator("#experts")).to_be_hidden()
        expect(page.get_by_role("button", name="Experts", exact=True)).to_be_focused()

    def test_experts_of_no_shape(self):
        self.server.script = say("Hello.", experts={"layers": [1, 2], "counts": [[1, 2], [3]]})
        page = self.open()
        self.send()
        page.get_by_role("button", name="Experts", exact=True).click()
        expect(page.locator("#experts-figure")).to_be_hidden()


class Screenshot(PageTest):
    """Not a test: a conversation with the server's own model, as it looks."""

    def test_screenshot(self):
        self.real()
        self.page.evaluate(
            "localStorage.setItem('fathom.settings', JSON.stringify({ max_tokens: '160', seed: '11', temperature: '0.7', theme: 'light' }))"
        )
        self.page.reload()
        expect(self.page.locator("#line")).to_contain_text("Context")
        self.send("ROMEO:\nWhat light through yonder window breaks?")
        self.send("JULIET:")
        self.page.mouse.move(640, 5)
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=arguments.screenshot)


def load_tests(loader, _tests, _pattern):
    suite = unittest.TestSuite()
    for case in (Chat, page_content.Content, page_content.Hostile, page_content.Use):
        suite.addTests(loader.loadTestsFromTestCase(case))
    if arguments.screenshot:
        suite.addTest(Screenshot("test_screenshot"))
    return suite


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("program", nargs="?", help="serves the page with the model that ships")
    parser.add_argument("--url", help="or where it is served already")
    parser.add_argument("--screenshot", metavar="FILE", help="also write a picture of a conversation there")
    _, rest = parser.parse_known_args(namespace=arguments)
    if bool(arguments.program) == bool(arguments.url):
        parser.error("give PROGRAM or --url")
    server = None
    if arguments.program:
        command = [arguments.program, "serve", "--model", str(ROOT / "models/shakespeare"), "--port", "0", "--no-access-log"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
        arguments.url = server.stdout.readline().strip()
    try:
        unittest.main(argv=[sys.argv[0], *rest])
    finally:
        if server:
            server.terminate()
            server.wait()
