#!/usr/bin/env python3
"""fathom serve as users of the package openai see it.

    openai_test.py FATHOM [CASE]...
"""
import asyncio
import concurrent.futures
import contextlib
import io
import json
import os
import re
import time
import typing
import unittest

import client_packages

client_packages.need("openai", "pydantic")

import openai
import pydantic

from program import TINY, Case, fathom
from serve_test import SHAKESPEARE, Server

TEMPLATES = client_packages.ROOT / "tests/data/chat"
USER = [{"role": "user", "content": "ROMEO:"}]
KEY = "sk-none"


def weather(strict=True):
    return {"type": "function", "function": {"name": "get_weather", "strict": strict, "description": "What the sky does", "parameters": {
        "type": "object", "additionalProperties": False, "required": ["city", "days"],
        "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}}}}


def client_of(server, kind=openai.OpenAI, **options):
    return kind(**{"base_url": f"http://127.0.0.1:{server.port}/v1", "api_key": KEY, "max_retries": 0, "timeout": 120, **options})


class Clients(Case):
    def serve(self, *arguments, **options):
        server = self.enterContext(Server(self, *arguments, **options))
        return server, self.enterContext(client_of(server))

    def assert_error(self, kind, ask, **wanted):
        with self.assertRaises(kind) as raised:
            ask()
        error = raised.exception
        self.assertIs(type(error), kind)
        self.assertEqual({name: getattr(error, name) for name in wanted}, wanted, error)
        self.assertTrue(error.message and error.body["message"], error)
        return error


class Chat(Clients):
    def test_answers_whole_streamed_and_asked_for_at_once_are_the_same(self):
        server, client = self.serve()
        ask = {"model": "shakespeare", "messages": USER, "max_tokens": 40, "seed": 11, "temperature": 0.8}
        whole = client.chat.completions.create(**ask)
        self.assertEqual((whole.object, whole.model, whole.choices[0].finish_reason), ("chat.completion", "shakespeare", "length"))
        message = whole.choices[0].message
        self.assertEqual((message.role, message.tool_calls, message.refusal), ("assistant", None, None))
        self.assertEqual((whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens), (6, 40, 46))
        self.assertEqual(whole.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertEqual(whole.usage.completion_tokens_details.reasoning_tokens, 0)
        self.assertTrue(whole._request_id)

        chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        self.assertEqual({c.object for c in chunks}, {"chat.completion.chunk"})
        self.assertEqual({c.id for c in chunks}, {chunks[0].id})
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks[:-1]), message.content)
        self.assertEqual([c.choices[0].finish_reason for c in chunks[:-1]], [None] * (len(chunks) - 2) + ["length"])
        self.assertEqual(([c.usage for c in chunks[:-1]], chunks[-1].choices), ([None] * (len(chunks) - 1), []))
        self.assertEqual((chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens), (6, 40))
        running = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}))
        counts = [c.usage.completion_tokens for c in running]
        self.assertEqual((counts, counts[-1], {c.usage.prompt_tokens for c in running}), (sorted(counts), 40, {6}))
        plain = list(client.chat.completions.create(**ask, stream=True))
        self.assertTrue(all(len(c.choices) == 1 for c in plain), "no chunk of usage that nobody asked for")

        async def many():
            async with client_of(server, openai.AsyncOpenAI) as several:
                async def streamed():
                    return "".join([c.choices[0].delta.content or "" async for c in await several.chat.completions.create(**ask, stream=True)])
                answers = await asyncio.gather(*(several.chat.completions.create(**ask) for _ in range(6)), *(streamed() for _ in range(6)))
                return {answer if isinstance(answer, str) else answer.choices[0].message.content for answer in answers}
        self.assertEqual(asyncio.run(many()), {message.content})

    def test_progress_of_reading_a_prompt_disturbs_nothing(self):
        _, client = self.serve()
        ask = {"model": "m", "messages": [{"role": "user", "content": "First Citizen: speak.\n" * 20}], "max_tokens": 12, "temperature": 0}
        whole = client.chat.completions.create(**ask).choices[0].message.content
        told = {"extra_body": {"return_progress": True, "cache_salt": "new"}}
        chunks = list(client.chat.completions.create(**ask, **told, stream=True))
        self.assertGreater(len([c for c in chunks if hasattr(c, "prompt_progress")]), 1)
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks), whole)
        with client.chat.completions.stream(**ask, **told) as stream:
            for _ in stream:
                pass
            final = stream.current_completion_snapshot.choices[0].message
        self.assertEqual((final.role, final.content), ("assistant", whole))
        texts = client.completions.create(model="m", prompt="First Citizen: speak.\n" * 20, max_tokens=12, temperature=0, stream=True, **told)
        self.assertEqual("".join(c.choices[0].text for c in texts), whole)

    def test_choices_stops_and_log_probabilities(self):
        _, client = self.serve()
        three = client.chat.completions.create(model="m", messages=USER, max_tokens=20, seed=3, n=3, logprobs=True, top_logprobs=4)
        self.assertEqual([c.index for c in three.choices], [0, 1, 2])
        self.assertEqual(len({c.message.content for c in three.choices}), 3)
        self.assertEqual(three.usage.completion_tokens, 60)
        for choice in three.choices:
            told = choice.logprobs.content
            self.assertEqual(b"".join(bytes(t.bytes) for t in told).decode(), choice.message.content)
            self.assertEqual(len(told), 20)
            for token in told:
                values = [t.logprob for t in token.top_logprobs]
                self.assertEqual((len(values), values), (4, sorted(values, reverse=True)))
                self.assertTrue(token.logprob <= 0)
                for top in token.top_logprobs:
                    if top.token == token.token:
                        self.assertEqual(top.logprob, token.logprob)
        again = client.chat.completions.create(model="m", messages=USER, max_tokens=20, seed=3, n=3)
        self.assertEqual([c.message.content for c in again.choices], [c.message.content for c in three.choices])
        self.assertEqual([c.logprobs for c in again.choices], [None] * 3)

        free = client.chat.completions.create(model="m", messages=USER, max_tokens=60, temperature=0).choices[0].message.content
        for stop in (free[20:23], [free[30:34], free[20:23], "never said"]):
            cut = client.chat.completions.create(model="m", messages=USER, max_tokens=60, temperature=0, stop=stop).choices[0]
            text = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(
                model="m", messages=USER, max_tokens=60, temperature=0, stop=stop, stream=True))
            self.assertEqual((cut.finish_reason, cut.message.content), ("stop", free[:free.index(free[20:23])]))
            self.assertEqual(text, cut.message.content)
        banned = client.chat.completions.create(model="m", messages=USER, max_tokens=30, seed=1, logit_bias={str(ord("e")): -100})
        self.assertNotIn("e", banned.choices[0].message.content)

    def test_a_conversation_goes_on_with_what_was_answered(self):
        _, client = self.serve(model=TINY)
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        first = client.chat.completions.create(model="m", messages=[{"role": "user", "content": parts}], max_tokens=5, temperature=0)
        # A message of the package with all its empty fields (refusal, audio, function_call, ...), as programs send it back.
        for said in (first.choices[0].message, first.choices[0].message.model_dump()):
            more = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "ab"}, said, {"role": "user", "content": "c"}],
                                                  max_tokens=5, temperature=0)
            self.assertEqual(more.choices[0].message.role, "assistant")
            self.assertGreater(more.usage.prompt_tokens, first.usage.prompt_tokens + 5)

    def test_a_stream_that_is_left_frees_its_place(self):
        server, client = self.serve("--max-batch", "1")
        for close in (lambda s: s.close(), lambda s: s.response.close(), lambda s: None):
            with client.chat.completions.create(model="m", messages=USER, max_tokens=490, extra_body={"ignore_eos": True}, stream=True) as stream:
                for _, chunk in zip(range(3), stream):
                    self.assertEqual(chunk.object, "chat.completion.chunk")
                close(stream)
            answer = client.chat.completions.create(model="m", messages=USER, max_tokens=2)
            self.assertEqual(answer.usage.completion_tokens, 2)
        for _ in range(100):
            if server.metric("num_requests_running") == 0:
                break
            time.sleep(0.05)
        self.assertEqual(server.metric("num_requests_running") + server.metric("num_requests_waiting"), 0)
        self.assertLess(server.metric("generation_tokens_total"), 3 * 490)

        async def cancelled():
            async with client_of(server, openai.AsyncOpenAI) as several:
                task = asyncio.create_task(several.chat.completions.create(model="m", messages=USER, n=8, max_tokens=490, extra_body={"ignore_eos": True}))
                while await asyncio.to_thread(server.metric, "num_requests_running") == 0:
                    await asyncio.sleep(0.01)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
        asyncio.run(cancelled())

    def test_what_deepseek_adds(self):
        _, client = self.serve("--template", str(TEMPLATES / "deepseek-v3.1.jinja"), model=TINY)
        ask = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 24, "seed": 2}
        thought = client.chat.completions.create(model="deepseek-reasoner", **ask)
        self.assertTrue(thought.choices[0].message.reasoning_content)
        self.assertGreater(thought.usage.completion_tokens_details.reasoning_tokens, 0)
        self.assertEqual(thought.usage.prompt_cache_hit_tokens + thought.usage.prompt_cache_miss_tokens, thought.usage.prompt_tokens)
        chunks = list(client.chat.completions.create(model="deepseek-reasoner", stream=True, **ask))
        self.assertEqual("".join(getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks), thought.choices[0].message.reasoning_content)
        for switch in ({"reasoning_effort": "high"}, {"extra_body": {"thinking": {"type": "enabled"}}}):
            self.assertEqual(client.chat.completions.create(model="m", **ask, **switch).choices[0].message, thought.choices[0].message)
        short = client.chat.completions.create(model="deepseek-reasoner", **ask, extra_body={"thinking_token_budget": 3}).choices[0].message
        self.assertTrue(thought.choices[0].message.reasoning_content.startswith(short.reasoning_content.rstrip("\ufffd")))
        self.assertTrue(short.content)
        answered = client.chat.completions.create(model="deepseek-chat", **ask)
        self.assertFalse(hasattr(answered.choices[0].message, "reasoning_content"))
        begun = client.chat.completions.create(model="m", max_tokens=4, messages=[*ask["messages"], {"role": "assistant", "content": "Well,", "prefix": True}])
        self.assertEqual(begun.usage.completion_tokens, 4)


class Forms(Clients):
    def test_answers_are_parsed_into_pydantic_models(self):
        class Item(pydantic.BaseModel):
            name: typing.Annotated[str, pydantic.Field(max_length=6)]
            kind: typing.Literal["fish", "fowl"]

        class Order(pydantic.BaseModel):
            items: typing.Annotated[list[Item], pydantic.Field(max_length=2)]
            paid: bool
            note: typing.Annotated[str, pydantic.Field(max_length=5)] | None
            count: typing.Annotated[int, pydantic.Field(ge=0, le=99)]

        _, client = self.serve()
        for seed in range(4):
            ask = {"model": "m", "messages": USER, "seed": seed, "max_tokens": 300, "response_format": Order}
            answer = client.chat.completions.parse(**ask).choices[0]
            self.assertEqual(answer.finish_reason, "stop")
            self.assertIsInstance(answer.message.parsed, Order)
            self.assertEqual(Order.model_validate_json(answer.message.content), answer.message.parsed)
        with client.chat.completions.stream(**ask) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion().choices[0].message
        self.assertTrue({"chunk", "content.delta", "content.done"} <= kinds, kinds)
        self.assertEqual(final.parsed, answer.message.parsed)
        with self.assertRaises(openai.LengthFinishReasonError):
            client.chat.completions.parse(**{**ask, "max_tokens": 4})
        schema = {"name": "pair", "strict": True, "schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}}
        pair = client.chat.completions.create(model="m", messages=USER, max_tokens=99, response_format={"type": "json_schema", "json_schema": schema})
        self.assertTrue(all(isinstance(x, bool) for x in json.loads(pair.choices[0].message.content)), pair)
        free = client.chat.completions.create(model="m", messages=USER, max_tokens=400, response_format={"type": "json_object"}, temperature=0).choices[0]
        if free.finish_reason == "stop":
            self.assertIsInstance(json.loads(free.message.content), dict)
        self.assert_error(openai.BadRequestError, lambda: client.chat.completions.create(
            model="m", messages=USER, response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"not": {}}}}), param="response_format")

    def test_tools_are_called_whole_and_streamed(self):
        class GetWeather(pydantic.BaseModel):
            city: typing.Annotated[str, pydantic.Field(max_length=6)]
            days: typing.Annotated[int, pydantic.Field(ge=1, le=9)]

        messages = [{"role": "user", "content": "How is it in Rome?"}]
        for template in ("deepseek-v3.jinja", "deepseek-v3.1.jinja", "deepseek-v3.2-encoding"):
            with self.subTest(template=template):
                file = template if template.endswith("encoding") else str(TEMPLATES / template)
                _, client = self.serve("--template", file, model=TINY)
                ask = {"model": "m", "messages": messages, "tools": [weather()], "max_tokens": 400, "seed": 1,
                       "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
                whole = client.chat.completions.create(**ask).choices[0]
                self.assertEqual((whole.finish_reason, whole.message.content, len(whole.message.tool_calls)), ("tool_calls", None, 1))
                call = whole.message.tool_calls[0]
                self.assertEqual((call.type, call.function.name), ("function", "get_weather"))
                arguments = json.loads(call.function.arguments)
                self.assertTrue(len(arguments["city"]) <= 6 and 1 <= arguments["days"] <= 9 and len(arguments) == 2, arguments)

                chunks = list(client.chat.completions.create(**ask, stream=True))
                pieces = [p for c in chunks for p in c.choices[0].delta.tool_calls or []]
                self.assertEqual((pieces[0].function.name, pieces[0].type, {p.index for p in pieces}), ("get_weather", "function", {0}))
                self.assertTrue(pieces[0].id and not any(p.id for p in pieces[1:]))
                self.assertGreater(len(pieces), 3, "the arguments come in pieces")
                self.assertEqual("".join(p.function.arguments or "" for p in pieces), call.function.arguments)
                self.assertEqual(chunks[-1].choices[0].finish_reason, "tool_calls")
                with client.chat.completions.stream(**{**ask, "tools": [openai.pydantic_function_tool(GetWeather, name="get_weather")]}) as stream:
                    parsed = stream.get_final_completion().choices[0].message.tool_calls[0].function.parsed_arguments
                self.assertIsInstance(parsed, GetWeather)

                required = client.chat.completions.create(**{**ask, "tool_choice": "required"}).choices[0].message.tool_calls
                self.assertEqual([(c.function.name, c.function.arguments) for c in required], [(call.function.name, call.function.arguments)])
                # What the tool said goes back as programs send it.
                answer = client.chat.completions.create(model="m", max_tokens=5, tools=[weather()], messages=[
                    *messages, whole.message, {"role": "tool", "tool_call_id": call.id, "content": "{\"sky\": \"blue\"}"}])
                self.assertEqual(answer.usage.completion_tokens, 5)
                self.assertEqual(client.chat.completions.create(**{**ask, "tool_choice": "none", "max_tokens": 5}).choices[0].message.tool_calls, None)
                self.assert_error(openai.BadRequestError, lambda: client.chat.completions.create(
                    **{**ask, "tool_choice": {"type": "function", "function": {"name": "other"}}}), param="tool_choice")


class Responses(Clients):
    def test_whole_and_streamed_are_the_same(self):
        _, client = self.serve()
        ask = {"model": "m", "input": "ROMEO:", "max_output_tokens": 40, "temperature": 0}
        whole = client.responses.create(**ask)
        chat = client.chat.completions.create(model="m", messages=USER, max_tokens=40, temperature=0).choices[0].message.content
        self.assertEqual(whole.output_text, chat)
        self.assertEqual((whole.status, whole.incomplete_details.reason), ("incomplete", "max_output_tokens"))
        self.assertEqual((whole.usage.input_tokens, whole.usage.output_tokens, whole.temperature), (6, 40, 0))
        with client.responses.stream(**ask) as stream:
            events = list(stream)
        self.assertEqual("".join(event.delta for event in events if event.type == "response.output_text.delta"), chat)
        self.assertEqual((events[-1].type, events[-1].response.output_text), ("response.incomplete", chat))
        # A conversation goes on with what was answered.
        answer = client.responses.create(**{**ask, "input": [{"role": "user", "content": "ROMEO:"}, *whole.output, {"role": "user", "content": "JULIET:"}]})
        self.assertGreater(answer.usage.input_tokens, 50)
        self.assert_error(openai.BadRequestError, lambda: client.responses.create(**ask, previous_response_id=whole.id), param="previous_response_id")

    def test_schemas_tools_and_thoughts(self):
        class Number(pydantic.BaseModel):
            n: typing.Annotated[int, pydantic.Field(ge=1, le=99)]

        _, client = self.serve()
        parsed = client.responses.parse(model="m", input="ROMEO:", text_format=Number, max_output_tokens=100)
        self.assertIn(parsed.output_parsed.n, range(1, 100))

        _, client = self.serve("--template", str(TEMPLATES / "deepseek-v3.1.jinja"), model=TINY)
        tool = {"type": "function", **weather()["function"]}
        ask = {"model": "m", "input": [{"role": "user", "content": "How is it in Rome?"}], "tools": [tool], "max_output_tokens": 400, "temperature": 0,
               "tool_choice": {"type": "function", "name": "get_weather"}}
        whole = client.responses.create(**ask)
        self.assertEqual([(item.type, item.name) for item in whole.output], [("function_call", "get_weather")])
        call = whole.output[0]
        self.assertEqual(set(json.loads(call.arguments)), {"city", "days"})
        with client.responses.stream(**ask) as stream:
            self.assertEqual(stream.get_final_response().output[0].arguments, call.arguments)
        answer = client.responses.create(model="m", max_output_tokens=5, tools=[tool], input=[
            *ask["input"], *whole.output, {"type": "function_call_output", "call_id": call.call_id, "output": "blue"}])
        self.assertEqual(answer.usage.output_tokens, 5)
        thought = client.responses.create(model="m", input="Hm?", max_output_tokens=30, reasoning={"effort": "high"}, temperature=0)
        self.assertEqual(thought.output[0].type, "reasoning")
        self.assertTrue(thought.output[0].content[0].text)


class Completions(Clients):
    def test_prompts_as_texts_and_token_ids(self):
        server, client = self.serve()
        ids = server.done("/tokenize", {"prompt": "ROMEO:", "add_special_tokens": False})["tokens"]
        ask = {"model": "m", "max_tokens": 12, "temperature": 0}
        text = client.completions.create(prompt="ROMEO:", **ask)
        self.assertEqual((text.object, text.usage.completion_tokens, text.choices[0].finish_reason), ("text_completion", 12, "length"))
        for prompt in (ids, [ids], ["ROMEO:"]):
            self.assertEqual(client.completions.create(prompt=prompt, **ask).choices, text.choices)
        several = client.completions.create(prompt=["ROMEO:", "JULIET:"], n=2, **{**ask, "temperature": 1, "seed": 4})
        self.assertEqual([c.index for c in several.choices], [0, 1, 2, 3])
        self.assertEqual(client.completions.create(model="m", prompt="O").usage.completion_tokens, 16)  # OpenAI's default
        streamed = list(client.completions.create(prompt=["ROMEO:", "JULIET:"], stream=True, echo=True, stream_options={"include_usage": True}, **ask))
        self.assertEqual("".join(c.choices[0].text for c in streamed[:-1] if c.choices[0].index == 0), "ROMEO:" + text.choices[0].text)
        self.assertEqual(streamed[-1].usage.completion_tokens, 24)

    def test_log_probabilities_of_prompts(self):
        server, client = self.serve()
        scored = client.completions.create(model="m", prompt="To be, or not to be", max_tokens=0, echo=True, logprobs=2).choices[0]
        told = scored.logprobs
        self.assertEqual((scored.text, "".join(told.tokens)), ("To be, or not to be",) * 2)
        self.assertEqual(told.text_offset, list(range(19)))
        self.assertEqual((told.token_logprobs[0], told.top_logprobs[0]), (None, None))
        score = json.loads(self.assert_done(fathom("score", "--model", SHAKESPEARE, "--text", self.write("t", "To be, or not to be"), "--json")))
        self.assertAlmostEqual(-sum(told.token_logprobs[1:]) / 18, score["loss"], places=5)
        more = client.completions.create(model="m", prompt="O", max_tokens=3, logprobs=0, temperature=0).choices[0].logprobs
        self.assertEqual([set(top) for top in more.top_logprobs], [{token} for token in more.tokens])

    def test_streamed_log_probabilities_are_those_of_the_whole(self):
        _, client = self.serve()
        ask = {"model": "m", "prompt": "ROMEO:", "max_tokens": 40, "temperature": 0, "logprobs": 2}
        text = client.completions.create(**ask).choices[0].text
        # The beginnings of what stops are held back, while their tokens are told.
        for stop in (None, [text[8:11] + "~"], [text[20:24]]):
            whole = client.completions.create(stop=stop, **ask).choices[0]
            chunks = [c.choices[0] for c in client.completions.create(stop=stop, stream=True, **ask)]
            self.assertEqual("".join(c.text for c in chunks), whole.text)
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                self.assertEqual([one for c in chunks if c.logprobs for one in getattr(c.logprobs, name)], getattr(whole.logprobs, name))

    def test_parts_of_characters_have_names_of_their_own(self):
        _, client = self.serve(model=TINY)
        parts = 0
        for seed in range(6):
            choice = client.completions.create(model="m", prompt="abc", max_tokens=40, logprobs=5, seed=seed).choices[0]
            told = choice.logprobs
            for token, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs):
                if token:  # this model has tokens that its tokenizer does not know
                    self.assertEqual(top[token], value)
                parts += sum(name.startswith("bytes:\\x") for name in top)
        self.assertGreater(parts, 20)

    def test_holes_are_filled(self):
        _, client = self.serve(model=TINY)
        filled = client.completions.create(model="m", prompt="def f(", suffix="): return x", max_tokens=4, temperature=0)
        self.assertEqual(filled.usage.completion_tokens, 4)


class Errors(Clients):
    def test_they_are_the_packages_exceptions(self):
        _, client = self.serve("--ctx", "128")
        chat, text = client.chat.completions.create, client.completions.create
        image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
        cases = [
            (lambda: chat(model="m", messages=[]), "messages", "invalid_value"),
            (lambda: chat(model="m", messages=USER, temperature=3), "temperature", "invalid_value"),
            (lambda: chat(model="m", messages=USER, n=0), "n", "invalid_value"),
            (lambda: chat(model="m", messages=USER, max_tokens="many"), "max_tokens", "invalid_type"),
            (lambda: chat(model="m", messages=[{"role": "king", "content": "x"}]), "messages[0].role", "invalid_value"),
            (lambda: chat(model="m", messages=[{"role": "user", "content": image}]), "messages[0].content[0].type", "invalid_value"),
            (lambda: chat(model="m", messages=[{"role": "user", "content": "x" * 200}]), "messages", "context_length_exceeded"),
            (lambda: text(model="m", prompt="x" * 200), "prompt", "context_length_exceeded"),
            (lambda: text(model="m", prompt=[99999]), "prompt", "invalid_value"),
            (lambda: text(model="m", prompt="x", best_of=5), "best_of", "invalid_value"),
            (lambda: text(model="m", prompt="x", extra_body={"grammar": 'root ::= ("a"? ){2000} "b"'}), None, "invalid_grammar"),
        ]
        for ask, param, code in cases:
            with self.subTest(param=param):
                error = self.assert_error(openai.BadRequestError, ask, status_code=400, param=param, code=code, type="invalid_request_error")
                self.assertTrue(error.request_id)
        # The same while streaming is asked for: an exception at once, no stream.
        self.assert_error(openai.BadRequestError, lambda: chat(model="m", messages=USER, temperature=3, stream=True), param="temperature")
        self.assert_error(openai.NotFoundError, lambda: client.models.retrieve("gpt-4o"), status_code=404, code="model_not_found")
        self.assert_error(openai.NotFoundError, lambda: client.embeddings.create(model="m", input="x"), status_code=404)

    def test_keys(self):
        keys = self.write("keys", "sk-right\n")
        os.chmod(keys, 0o600)
        server, wrong = self.serve("--api-key-file", keys)
        ask = {"model": "m", "messages": USER, "max_tokens": 2}
        self.assert_error(openai.AuthenticationError, lambda: wrong.chat.completions.create(**ask), status_code=401, code="invalid_api_key")
        self.assert_error(openai.AuthenticationError, lambda: wrong.chat.completions.create(**ask, stream=True), status_code=401)
        self.assert_error(openai.AuthenticationError, wrong.models.list, status_code=401)
        right = self.enterContext(client_of(server, api_key="sk-right"))
        self.assertEqual(right.chat.completions.create(**ask).usage.completion_tokens, 2)
        self.assertEqual(wrong.with_options(api_key="sk-right").models.list().data[0].id, "shakespeare")
        foreign = self.enterContext(client_of(server, api_key="sk-right", default_headers={"Origin": "http://evil.example"}))
        self.assert_error(openai.PermissionDeniedError, foreign.models.list, status_code=403)

    def test_who_is_refused_for_want_of_room_asks_again_and_is_answered(self):
        server, client = self.serve("--max-batch", "1", "--max-waiting", "1")
        ask = {"model": "m", "messages": USER, "max_tokens": 120, "extra_body": {"ignore_eos": True}}

        def told(_):
            try:
                return client.chat.completions.create(**ask).usage.completion_tokens
            except openai.RateLimitError as error:
                self.assertEqual((error.status_code, error.code, error.response.headers["retry-after"]), (429, "server_busy", "1"))
                return "refused"
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertEqual(set(pool.map(told, range(8))), {120, "refused"})
        patient = self.enterContext(client_of(server, max_retries=30))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            self.assertEqual(set(pool.map(lambda _: patient.chat.completions.create(**ask).usage.completion_tokens, range(4))), {120})

    def test_a_stream_that_fails_raises_what_the_server_says(self):
        server, client = self.serve("--drain-timeout", "0")
        stream = client.chat.completions.create(model="m", messages=USER, n=32, max_tokens=490, extra_body={"ignore_eos": True}, stream=True)
        next(iter(stream))
        server.process.terminate()
        with self.assertRaises(openai.APIError) as raised:
            list(stream)
        self.assertIn("shutting down", raised.exception.message)
        self.assertEqual(server.process.wait(timeout=30), 0)


class Models(Clients):
    def test_models_are_listed_and_found_by_name(self):
        for name in ("bard", "deepseek-ai/DeepSeek-V3", "models/a b%c"):
            with self.subTest(name=name):
                _, client = self.serve("--model-name", name)
                listed = client.models.list()
                self.assertEqual([m.id for m in listed], [name])
                self.assertEqual((listed.data[0].object, listed.data[0].owned_by), ("model", "fathom"))
                self.assertEqual(client.models.retrieve(name).id, name)
                self.assertEqual(client.completions.create(model=name, prompt="O", max_tokens=1).model, name)

    def test_deepseeks_addresses(self):
        server, _ = self.serve()
        for path in ("", "/beta"):
            client = self.enterContext(client_of(server, base_url=f"http://127.0.0.1:{server.port}{path}"))
            self.assertEqual(client.chat.completions.create(model="deepseek-chat", messages=USER, max_tokens=2).usage.completion_tokens, 2)
            self.assertEqual(client.completions.create(model="m", prompt="O", max_tokens=2).usage.completion_tokens, 2)
            self.assertEqual(client.models.list().data[0].id, "shakespeare")


class Documents(Clients):
    def test_their_examples_run(self):
        server, _ = self.serve()
        for page in ("README.md", "docs/serving.md"):
            code, = re.findall(r"```python\n(.*?)```", (client_packages.ROOT / page).read_text(), re.S)
            self.assertIn("127.0.0.1:8080", code)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}"), {})
            self.assertGreater(len(out.getvalue()), 20, page)


if __name__ == "__main__":
    unittest.main()
