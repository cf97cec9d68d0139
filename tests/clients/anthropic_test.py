#!/usr/bin/env python3
"""fathom serve as users of the package anthropic see it: /v1/messages.

    anthropic_test.py FATHOM [CASE]...
"""
import json
import os
import unittest

import client_packages

client_packages.need("anthropic")

import anthropic

from program import TINY, Case
from serve_test import SHAKESPEARE, Server

TEMPLATES = client_packages.ROOT / "tests/data/chat"
GREEDY = {"extra_body": {"temperature": 0}}  # the package itself knows of none
USER = [{"role": "user", "content": "ROMEO:"}]
WEATHER = {"name": "get_weather", "description": "What the sky does", "input_schema": {
    "type": "object", "additionalProperties": False, "required": ["city", "days"],
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}}}


class Messages(Case):
    def serve(self, *arguments, **options):
        server = self.enterContext(Server(self, *arguments, **options))
        return anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.port}", api_key="sk-none", max_retries=0, timeout=120)

    def test_whole_and_streamed_are_the_same(self):
        client = self.serve()
        ask = {"model": "shakespeare", "messages": USER, "max_tokens": 40, **GREEDY}
        whole = client.messages.create(**ask)
        self.assertEqual((whole.type, whole.role, whole.model, whole.stop_reason), ("message", "assistant", "shakespeare", "max_tokens"))
        self.assertEqual([b.type for b in whole.content], ["text"])
        self.assertEqual((whole.usage.input_tokens, whole.usage.output_tokens), (6, 40))
        with client.messages.stream(**ask) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, whole.content[0].text)
        self.assertEqual([b.text for b in final.content], [text])
        self.assertEqual((final.stop_reason, final.usage.output_tokens), ("max_tokens", 40))
        stop = text[8:12]
        stopped = client.messages.create(**ask, stop_sequences=["§", stop])
        self.assertEqual((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", stop))
        self.assertEqual(stopped.content[0].text, text[: text.index(stop)])
        begun = client.messages.create(**{**ask, "max_tokens": 20, "messages": [*USER, {"role": "assistant", "content": text[:20]}]})
        self.assertEqual(begun.content[0].text, text[20:])
        count = client.messages.count_tokens(model="m", messages=USER, system="x")
        self.assertEqual(count.input_tokens, client.messages.create(**{**ask, "max_tokens": 1}, system="x").usage.input_tokens)

    def test_a_long_beginning_is_found_again(self):
        client = self.serve()
        ask = {"model": "m", "messages": [{"role": "user", "content": "First Citizen: " * 20}], "max_tokens": 2}
        first, second = client.messages.create(**ask).usage, client.messages.create(**ask).usage
        self.assertEqual((first.input_tokens, first.cache_read_input_tokens), (300, 0))
        self.assertEqual((second.input_tokens, second.cache_read_input_tokens), (300 - 256, 256))

    def test_tools_are_called_whole_and_streamed(self):
        for template in "deepseek-v3", "deepseek-v3.1":
            with self.subTest(template):
                client = self.serve("--template", str(TEMPLATES / f"{template}.jinja"), model=TINY)
                messages = [{"role": "user", "content": "Rain?"}]
                ask = {"model": "m", "messages": messages, "tools": [WEATHER], "max_tokens": 400, **GREEDY,
                       "tool_choice": {"type": "tool", "name": "get_weather"}}
                whole = client.messages.create(**ask)
                self.assertEqual((whole.stop_reason, [b.type for b in whole.content]), ("tool_use", ["tool_use"]))
                call = whole.content[0]
                self.assertEqual(call.name, "get_weather")
                self.assertEqual({key: type(value) for key, value in call.input.items()}, {"city": str, "days": int})
                with client.messages.stream(**ask) as stream:
                    final = stream.get_final_message()
                self.assertEqual((final.stop_reason, final.content[0].input), ("tool_use", call.input))
                answer = client.messages.create(model="m", max_tokens=5, tools=[WEATHER], messages=[
                    *messages, {"role": "assistant", "content": [b.model_dump() for b in whole.content]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "blue"}]}])
                self.assertEqual(answer.usage.output_tokens, 5)

    def test_answers_follow_a_schema(self):
        client = self.serve()
        schema = {"type": "object", "additionalProperties": False, "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 99}}}
        answer = client.messages.create(model="m", messages=USER, max_tokens=100, output_config={"format": {"type": "json_schema", "schema": schema}})
        self.assertIn(json.loads(answer.content[0].text)["n"], range(1, 100))
        self.assertEqual(answer.stop_reason, "end_turn")

    def test_thoughts_are_blocks(self):
        client = self.serve("--template", str(TEMPLATES / "deepseek-v3.1.jinja"), model=TINY)
        ask = {"model": "m", "messages": [{"role": "user", "content": "Hm?"}], "max_tokens": 1100}
        thought = client.messages.create(**ask, thinking={"type": "enabled", "budget_tokens": 1024})
        self.assertEqual(thought.content[0].type, "thinking")
        self.assertNotIn("thinking", [b.type for b in client.messages.create(**{**ask, "max_tokens": 20}).content])
        with client.messages.stream(**ask, thinking={"type": "enabled", "budget_tokens": 1024}) as stream:
            self.assertEqual(stream.get_final_message().content[0].type, "thinking")

    def test_errors_are_the_packages(self):
        keys = self.write("keys", "sk-right\n")
        os.chmod(keys, 0o600)
        client = self.serve("--api-key-file", keys)
        ask = {"model": "m", "messages": USER, "max_tokens": 2}
        with self.assertRaises(anthropic.AuthenticationError) as raised:
            client.messages.create(**ask)
        self.assertEqual(raised.exception.body["error"]["type"], "authentication_error")
        right = client.with_options(api_key="sk-right")
        self.assertEqual(right.messages.create(**ask).usage.output_tokens, 2)
        with self.assertRaises(anthropic.BadRequestError) as raised:
            right.messages.create(**ask, extra_body={"temperature": 9})
        self.assertEqual(raised.exception.body["type"], "error")
        self.assertIn("temperature", raised.exception.body["error"]["message"])
        with self.assertRaises(anthropic.BadRequestError):
            right.messages.create(**{**ask, "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]})


if __name__ == "__main__":
    unittest.main()
