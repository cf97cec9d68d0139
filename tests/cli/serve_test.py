#!/usr/bin/env python3
"""fathom serve as its clients see it: answers, streams, errors, hostile bytes, cancelling, shutting down."""
import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time
import unittest
import unittest.mock

from program import PROGRAM, Case, fathom
from server import SHAKESPEARE, Server


def status_of(raw):
    return int(raw.split(b" ", 2)[1]) if raw.startswith(b"HTTP/1.1 ") else None


USER = [{"role": "user", "content": "ROMEO:"}]


class Answers(Case):
    def test_greedy_answers_are_those_of_generate_whatever_else_runs(self):
        prompts = ["ROMEO:\n", "First Citizen:\nBefore we proceed", "The king", "O"] * 3
        wanted = {}
        for prompt in set(prompts):
            result = json.loads(self.assert_done(fathom("generate", "--model", SHAKESPEARE, "--prompt", prompt, "--max-tokens", "40", "--json")))
            wanted[prompt] = (result["text"], result["ids"])
        with Server(self, "--max-batch", "5", "--cache-tokens", "2048") as server:
            def ask(i):
                body = {"prompt": prompts[i], "max_tokens": 40, "temperature": 0}
                if i % 2:
                    return "".join(e["choices"][0]["text"] for e in server.events("/v1/completions", body))
                return server.done("/v1/completions", body)["choices"][0]["text"]
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                texts = list(pool.map(ask, range(len(prompts))))
            self.assertEqual(texts, [wanted[prompt][0] for prompt in prompts])

    def test_chat_streamed_and_whole_say_the_same(self):
        with Server(self) as server:
            body = {"messages": USER, "max_tokens": 30, "seed": 5, "n": 2, "logprobs": True, "top_logprobs": 2}
            whole = server.done("/v1/chat/completions", body)
            events = server.events("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
            self.assertEqual(whole["object"], "chat.completion")
            self.assertEqual({e["object"] for e in events}, {"chat.completion.chunk"})
            self.assertEqual(events[-1]["choices"], [])
            for index, choice in enumerate(whole["choices"]):
                mine = [c for e in events for c in e["choices"] if c["index"] == index]
                self.assertEqual(mine[0]["delta"], {"role": "assistant", "content": ""})
                self.assertEqual("".join(c["delta"].get("content") or "" for c in mine), choice["message"]["content"])
                self.assertEqual(mine[-1]["finish_reason"], choice["finish_reason"])
                self.assertEqual([t for c in mine if c["logprobs"] for t in c["logprobs"]["content"]], choice["logprobs"]["content"])
                self.assertEqual(len(choice["logprobs"]["content"]), 30)
            self.assertNotEqual(*(c["message"]["content"] for c in whole["choices"]))
            usage = dict(whole["usage"])
            self.assertEqual(usage["completion_tokens"], 60)
            self.assertEqual(usage["prompt_tokens"], len("ROMEO:"))
            self.assertEqual(events[-1]["usage"]["completion_tokens"], 60)
            self.assertIn("predicted_per_second", whole["timings"])

    def test_timings_come_with_each_piece(self):
        with Server(self, "--draft", "mtp") as server:
            body = {"prompt": "First Citizen:\nBefore we proceed any further", "max_tokens": 40, "temperature": 0, "timings_per_token": True}
            events = server.events("/v1/completions", body)
            told = [e["timings"] for e in events]
            self.assertEqual(told[-1]["predicted_n"], 40)
            for key in "predicted_n", "predicted_ms", "draft_n", "draft_n_accepted":
                self.assertEqual([t[key] for t in told], sorted(t[key] for t in told))
            self.assertGreater(told[-1]["draft_n_accepted"], 5)
            self.assertGreater(told[-2]["draft_n_accepted"], 0)
            self.assertNotIn("timings", server.events("/v1/completions", {**body, "timings_per_token": False})[0])

    def test_an_answer_begins_with_the_newlines_that_the_model_writes(self):
        prompt = "First Citizen:"
        text = json.loads(self.assert_done(fathom("generate", "--model", SHAKESPEARE, "--prompt", prompt, "--max-tokens", "20", "--json")))["text"]
        self.assertTrue(text.startswith("\n"), text)
        with Server(self) as server:
            begun = [{"role": "user", "content": "First "}, {"role": "assistant", "content": "Citizen:", "prefix": True}]
            for messages in ([{"role": "user", "content": prompt}], begun):
                body = {"messages": messages, "max_tokens": 20, "temperature": 0}
                self.assertEqual(server.done("/v1/chat/completions", body)["choices"][0]["message"]["content"], text)
                self.assertEqual("".join(e["choices"][0]["delta"].get("content") or "" for e in server.events("/v1/chat/completions", body)), text)

    def test_echo_with_logprobs_scores_a_prompt(self):
        with Server(self) as server:
            text = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 3
            ids = server.done("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
            body = {"prompt": [ids, ids[:5]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
            for _ in range(2):  # the second time its pages are there already
                answer = server.done("/v1/completions", body)
                told = answer["choices"][0]["logprobs"]
                self.assertEqual(len(told["tokens"]), len(ids) + 1)
                self.assertIsNone(told["token_logprobs"][0])
                self.assertIsNone(told["top_logprobs"][0])
                self.assertTrue(answer["choices"][0]["text"].startswith(text))
                for value, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:]):
                    self.assertIn(value, top.values())
            score = json.loads(self.assert_done(fathom("score", "--model", SHAKESPEARE, "--text", self.write("t.txt", text), "--json")))
            mean = -sum(told["token_logprobs"][1:-1]) / (len(ids) - 1)
            self.assertAlmostEqual(mean, score["loss"], places=5)
            none = server.done("/v1/completions", {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0})
            self.assertEqual(none["choices"][0]["text"], "abc")
            self.assertEqual(len(none["choices"][0]["logprobs"]["token_logprobs"]), 3)

    def test_a_prompt_is_told_again_as_it_was_given(self):
        model = self.folder / "begins"
        shutil.copytree(SHAKESPEARE, model)
        config = json.loads((model / "tokenizer_config.json").read_text()) if (model / "tokenizer_config.json").exists() else {}
        (model / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
        with Server(self, model=str(model)) as server:
            text = "First Citizen:"
            ids = server.done("/tokenize", {"prompt": text})["tokens"]
            self.assertEqual(len(ids), len(text) + 1, "a begin token stands in front")
            body = {"prompt": text, "max_tokens": 4, "temperature": 0, "echo": True, "logprobs": 1}
            choice = server.done("/v1/completions", body)["choices"][0]
            plain = server.done("/v1/completions", {**body, "echo": False})["choices"][0]
            self.assertEqual(choice["text"], text + plain["text"])
            told = choice["logprobs"]
            self.assertEqual(told["text_offset"], [0, *range(len(told["tokens"]) - 1)])
            chunks = [e["choices"][0] for e in server.events("/v1/completions", body)]
            self.assertEqual("".join(c["text"] for c in chunks), choice["text"])
            self.assertEqual([o for c in chunks if c["logprobs"] for o in c["logprobs"]["text_offset"]], told["text_offset"])
            self.assertEqual(chunks[0]["text"], text)
            self.assertNotEqual(server.done("/v1/completions", {**body, "prompt": ids})["choices"][0]["text"], choice["text"], "ids are told whole")

    def test_log_probabilities_of_a_prompt_as_vllm_tells_them(self):
        with Server(self) as server:
            text = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 2
            ids = server.done("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
            body = {"prompt": [ids, ids[:9]], "n": 2, "max_tokens": 3, "temperature": 0, "prompt_logprobs": 2}
            answer = server.done("/v1/completions", body)
            told = [c["prompt_logprobs"] for c in answer["choices"]]
            self.assertEqual((told[0], told[2]), (told[1], told[3]), "the choices of a prompt have it in common")
            self.assertEqual(told[2], told[0][:9])
            self.assertEqual((len(told[0]), told[0][0]), (len(ids), None))
            self.assertEqual([c["logprobs"] for c in answer["choices"]], [None] * 4)
            echoed = server.done("/v1/completions", {**body, "echo": True, "logprobs": 1})["choices"][0]
            self.assertEqual(echoed["prompt_logprobs"], told[0])
            for token, entry, value, top in zip(ids[1:], told[0][1:], echoed["logprobs"]["token_logprobs"][1:], echoed["logprobs"]["top_logprobs"][1:]):
                self.assertEqual(entry[str(token)]["logprob"], value)
                self.assertIn(len(entry), (2, 3))
                self.assertLessEqual({1, 2}, {e["rank"] for e in entry.values()})
                self.assertEqual([e["logprob"] for e in sorted(entry.values(), key=lambda e: e["rank"])], sorted((e["logprob"] for e in entry.values()), reverse=True))
                self.assertIn(len(top), (1, 2))
            self.assertEqual("".join(e[str(i)]["decoded_token"] for i, e in zip(ids[1:], told[0][1:])), text[len(text) - len(ids) + 1:])
            alone = server.done("/v1/completions", {"prompt": "abc", "max_tokens": 0, "prompt_logprobs": 0})["choices"][0]
            self.assertEqual((alone["text"], [len(e) for e in alone["prompt_logprobs"][1:]]), ("", [1, 1]))
            whole = server.done("/v1/chat/completions", {"messages": USER, "max_tokens": 2, "n": 2, "prompt_logprobs": 1})
            self.assertEqual(len(whole["prompt_logprobs"]), whole["usage"]["prompt_tokens"])
            self.assertNotIn("prompt_logprobs", whole["choices"][0])
            self.assertNotIn("prompt_logprobs", server.done("/v1/chat/completions", {"messages": USER, "max_tokens": 2}))
            status, refused = server.post("/v1/completions", {"prompt": [[1] * 1000] * 14, "max_tokens": 0, "prompt_logprobs": 20})
            self.assertEqual((status, refused["error"]["param"]), (400, "prompt_logprobs"), "more than a request may ask for")

    def test_log_probabilities_that_are_gathered_have_a_bound(self):
        with Server(self) as server:
            chat = {"messages": USER, "n": 64, "max_tokens": 400, "logprobs": True, "top_logprobs": 20}
            text = {"prompt": [[1] * 480] * 400, "max_tokens": 1, "echo": True, "logprobs": 1}
            for path, body, words in (("/v1/chat/completions", chat, ("max_tokens", "stream")), ("/v1/completions", text, ("max_tokens", "echo", "stream")),
                                      ("/v1/completions", {**text, "stream": True}, ("max_tokens", "echo"))):
                status, refused = server.post(path, body)
                self.assertEqual((status, refused["error"]["param"]), (400, "logprobs"), refused)
                for word in words:
                    self.assertIn(word, refused["error"]["message"])
            self.assertNotIn("stream", refused["error"]["message"])
            server.done("/v1/chat/completions", {**chat, "n": 2})
            server.done("/v1/completions", {**text, "prompt": text["prompt"][:250]})
            self.assertEqual(len(server.events("/v1/chat/completions", {**chat, "max_tokens": 220})[-1]["choices"]), 1)

    def test_a_stream_tells_how_far_its_prompt_has_been_read(self):
        with Server(self) as server:
            prompt = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 6
            for path, body in ("/v1/completions", {"prompt": prompt}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}):
                body = {**body, "max_tokens": 8, "temperature": 0, "return_progress": True, "cache_salt": path}
                for again in False, True:
                    events = server.events(path, body)
                    told = [e["prompt_progress"] for e in events if "prompt_progress" in e]
                    self.assertEqual([e for e in events if "prompt_progress" in e], events[:len(told)], "in front of all else")
                    read, total = [t["processed"] for t in told], told[0]["total"]
                    self.assertEqual(read, sorted(set(read)))
                    self.assertEqual((read[0], read[-1]), (told[0]["cache"], total))
                    self.assertEqual({(t["total"], t["cache"]) for t in told}, {(total, total // 64 * 64 if again else 0)})
                    self.assertEqual([t["time_ms"] for t in told], sorted(t["time_ms"] for t in told))
                    plain = server.events(path, {**body, "return_progress": False})
                    # The role is the first chunk's, whatever that tells; else nothing of the answer is said.
                    role = [plain.pop(0)["choices"][0]["delta"]] if "chat" in path else []
                    for e, delta in itertools.zip_longest(events[:len(told)], role, fillvalue={}):
                        said = e["choices"][0]
                        self.assertEqual((said["index"], said.get("text", ""), said.get("delta", {}), said["finish_reason"]), (0, "", delta, None))
                    self.assertEqual([e["choices"] for e in plain], [e["choices"] for e in events[len(told):]])
                self.assertNotIn("prompt_progress", json.dumps(server.done(path, body)), "where nothing is streamed")

    def test_tokens_of_thoughts_are_counted_alike_with_drafts(self):
        template = self.write("t.jinja", "{{ messages[0].content }}<think>")
        ask = {"messages": [{"role": "user", "content": "First Citizen:\n"}], "max_tokens": 60, "temperature": 0, "thinking_token_budget": 10}
        counted = set()
        for drafts in (), ("--draft", "mtp", "--draft-tokens", "3"):
            with Server(self, "--template", template, *drafts) as server:
                counted.add(server.done("/v1/chat/completions", ask)["usage"]["completion_tokens_details"]["reasoning_tokens"])
        self.assertEqual(len(counted), 1, counted)

    def test_a_mark_that_a_user_spells_begins_no_thoughts(self):
        with Server(self) as server:
            ask = {"messages": [{"role": "user", "content": "ROMEO: <think>"}], "max_tokens": 40, "response_format": {"type": "json_object"}}
            message = server.done("/v1/chat/completions", ask)["choices"][0]["message"]
            self.assertNotIn("reasoning_content", message)
            self.assertTrue(message["content"].startswith("{"), message)

    def test_other_apis_name_their_own_fields_and_count_without_limit(self):
        with Server(self, "--ctx", "64") as server:
            long = "To be, or not to be, that is the question. " * 4
            counted = server.done("/v1/messages/count_tokens", {"model": "m", "messages": [{"role": "user", "content": long}]})
            self.assertEqual(counted["input_tokens"], len(long))
            for body, param in (({"input": long}, "input"), ({"input": "a", "max_output_tokens": "9"}, "max_output_tokens"),
                                ({"input": "a", "text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format"),
                                ({"input": "a", "top_logprobs": 2}, "top_logprobs"), ({"input": "a", "bad_words": ["a"]}, "bad_words")):
                status, error = server.post("/v1/responses", body)
                self.assertEqual((status, error["error"]["param"]), (400, param), error)
            status, error = server.post("/v1/messages", {"model": "m", "max_tokens": 5, "messages": USER, "stop_sequences": [""]})
            self.assertEqual(status, 400)
            self.assertTrue(error["error"]["message"].startswith("stop_sequences: "), error)
            stopped = server.done("/v1/responses", {"input": "First Citizen:", "max_output_tokens": 20, "temperature": 0, "stop": ["e"]})
            self.assertEqual(stopped["status"], "completed")
            self.assertNotIn("e", stopped["output"][0]["content"][0]["text"] if stopped["output"] else "")

    def test_thoughts_end_where_their_budget_does(self):
        with Server(self, "--template", self.write("t.jinja", "{{ messages[0].content }}<think>"), "--draft", "mtp") as server:
            ask = {"messages": [{"role": "user", "content": "First Citizen:\n"}], "max_tokens": 60, "temperature": 0}
            free = server.done("/v1/chat/completions", ask)["choices"][0]["message"]["reasoning_content"]
            for budget in {"thinking_token_budget": 10}, {"thinking_budget_tokens": 10}, {"thinking": {"type": "enabled", "budget_tokens": 10}}:
                whole = server.done("/v1/chat/completions", {**ask, **budget})
                message = whole["choices"][0]["message"]
                self.assertEqual(message["reasoning_content"], free.strip("\n")[:len(message["reasoning_content"])])
                self.assertTrue(message["content"])
                self.assertEqual(whole["usage"]["completion_tokens"], 60)
                parts = [c["delta"] for e in server.events("/v1/chat/completions", {**ask, **budget}) for c in e["choices"]]
                for name in "content", "reasoning_content":
                    self.assertEqual("".join(p.get(name) or "" for p in parts), message[name])
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                body = {**ask, "thinking_token_budget": 10}
                many = list(pool.map(lambda _: server.done("/v1/chat/completions", body)["choices"][0]["message"], range(8)))
            self.assertEqual(many, [message] * 8)
            none = server.done("/v1/chat/completions", {**ask, "thinking_token_budget": 0})["choices"][0]["message"]
            self.assertNotIn("reasoning_content", none)
            formed = server.done("/v1/chat/completions", {**ask, "thinking_token_budget": 10, "structured_outputs": {"choice": ["yes", "no"]}})["choices"][0]
            self.assertEqual((formed["message"]["reasoning_content"], formed["finish_reason"]), (message["reasoning_content"], "stop"))
            self.assertIn(formed["message"]["content"], ("yes", "no"))
            blocks = server.done("/v1/messages", {**ask, "thinking": {"type": "enabled", "budget_tokens": 10}})["content"]
            self.assertEqual([b.get("thinking") or b.get("text") for b in blocks], [message["reasoning_content"], message["content"]])

    def test_drafts_change_no_greedy_answer_and_are_told(self):
        body = {"prompt": "First Citizen:\nBefore we proceed any further", "max_tokens": 60, "temperature": 0}
        with Server(self) as server:
            plain = server.done("/v1/completions", body)
        with Server(self, "--draft", "mtp", "--draft-tokens", "2") as server:
            drafted = server.done("/v1/completions", body)
            self.assertEqual(drafted["choices"], plain["choices"])
            self.assertEqual((plain["timings"]["draft_n"], drafted["timings"]["draft_n"] > 20), (0, True))
            self.assertGreater(drafted["timings"]["draft_n_accepted"], 10)
            self.assertEqual(server.metric("spec_decode_num_accepted_tokens_total"), drafted["timings"]["draft_n_accepted"])
            seeded = server.done("/v1/completions", {**body, "temperature": 1, "seed": 3})
            self.assertEqual(seeded["timings"]["draft_n"], 0, "a seed gives the same tokens whatever is being served")

    def test_experts_of_an_answer_are_counted_where_asked_for(self):
        with Server(self) as server:
            answer = server.done("/v1/completions", {"prompt": "O", "max_tokens": 11, "ignore_eos": True, "expert_counts": True})
            config = json.loads((pathlib.Path(SHAKESPEARE) / "config.json").read_text())
            experts = answer["experts"]
            self.assertEqual(experts["layers"], list(range(config["first_k_dense_replace"], config["num_hidden_layers"])))
            self.assertEqual([sum(layer) for layer in experts["counts"]], [10 * config["num_experts_per_tok"]] * len(experts["layers"]))

    def test_answers_follow_the_form_that_is_asked_for(self):
        schema = {"type": "object", "additionalProperties": False, "required": ["name", "age", "tags"], "properties": {
            "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}}}
        chat = {"messages": USER, "max_tokens": 400, "temperature": 1.3, "n": 6}
        text = {"prompt": "O", "max_tokens": 200, "temperature": 1.3, "n": 6}
        with Server(self, "--draft", "mtp") as server:
            for _ in range(3):
                answer = server.done("/v1/chat/completions", {**chat, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}})
                for choice in answer["choices"]:
                    self.assertEqual(choice["finish_reason"], "stop")
                    value = json.loads(choice["message"]["content"])
                    self.assertEqual(list(value), ["name", "age", "tags"])
                    self.assertTrue(len(value["name"]) <= 8 and 0 <= value["age"] <= 120 and set(value["tags"]) <= {"a", "b"} and len(value["tags"]) <= 3)
                for form, follows in (({"structured_outputs": {"regex": "[a-c]{3}-\\d+x"}}, r"[a-c]{3}-[0-9]+x"), ({"guided_choice": ["yes", "n\"o"]}, r'yes|n"o'),
                                      ({"grammar": 'root ::= ("ab" | "c")+ "."'}, r"(ab|c)+\.")):
                    for choice in server.done("/v1/completions", {**text, **form})["choices"]:
                        self.assertRegex(choice["text"], f"^({follows})$" if choice["finish_reason"] == "stop" else "^[abc0-9-]+$")
            streamed = server.events("/v1/chat/completions", {**chat, "n": 1, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})
            json.loads("".join(c["delta"].get("content") or "" for e in streamed for c in e["choices"]))
            greedy = {**text, "n": 1, "temperature": 0, "guided_json": schema}
            drafted = server.done("/v1/completions", greedy)
            for body, param in (({**chat, "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "response_format"),
                                ({**text, "grammar": "root ::= ("}, "grammar"), ({**text, "structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
                                ({**text, "guided_choice": []}, "guided_choice"), ({**text, "grammar": "root ::= root", "guided_choice": ["a"]}, "guided_choice")):
                status, error = server.post("/v1/chat/completions" if "messages" in body else "/v1/completions", body)
                self.assertEqual((status, error["error"]["param"]), (400, param), error)
        with Server(self) as server:
            self.assertEqual(server.done("/v1/completions", greedy)["choices"], drafted["choices"])

    def test_passes_experts_and_drafts_are_counted(self):
        config = json.loads((pathlib.Path(SHAKESPEARE) / "config.json").read_text())
        n_moe = config["num_hidden_layers"] - config["first_k_dense_replace"]
        with Server(self, "--draft", "mtp", "--draft-tokens", "2") as server:
            body = {"prompt": "First Citizen:\nBefore we proceed any further, hear me speak. And then we hear you too.", "max_tokens": 40, "temperature": 0}
            prompts = 0
            for _ in range(2):  # the second time most of it is found
                prompts += server.done("/v1/completions", body)["usage"]["prompt_tokens"]
            self.assertEqual(server.metric("prompt_tokens_total"), prompts)
            self.assertEqual(server.metric("prompt_tokens_cached_total") + server.metric("prompt_tokens_computed_total"), prompts)
            self.assertGreater(server.metric("prompt_tokens_cached_total"), 0)
            passes, tokens = server.metric("iterations_total"), server.metric("iteration_tokens_total_sum")
            self.assertEqual((server.metric("iteration_tokens_total_count"), server.metric("batch_size_count")), (passes, passes))
            self.assertEqual(server.metric("batch_size_sum"), passes, "one sequence at a time")
            self.assertEqual(server.metric("expert_tokens_total"), tokens * n_moe * config["num_experts_per_tok"])
            text = server.get("/metrics")[1].decode()
            shares = [float(x) for x in re.findall(r"^fathom:eplb_balancedness\{[^}]*layer=\"\d+\"\} (\S+)$", text, re.M)]
            self.assertEqual(len(shares), n_moe)
            self.assertTrue(all(0 < share <= 1 for share in shares), shares)
            self.assertGreater(server.metric("spec_decode_num_drafts_total"), 10)
            self.assertLessEqual(server.metric("spec_decode_num_drafts_total"), server.metric("spec_decode_num_draft_tokens_total"))
            self.assertEqual(server.metric("spec_decode_num_accepted_tokens_per_pos_total"), server.metric("spec_decode_num_accepted_tokens_total"))
            self.assertEqual(server.metric("corrupted_requests_total"), 0)
            self.assertIn('request_success_total{model_name="shakespeare",finished_reason="length"} 2\n', text)

    def test_offsets_count_characters_of_the_text(self):
        with Server(self) as server:
            body = {"prompt": "日本語 a", "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 1}
            choice = server.done("/v1/completions", body)["choices"][0]
            told = choice["logprobs"]
            self.assertGreater(len(told["tokens"]), 5 + 3)
            for token, offset in zip(told["tokens"], told["text_offset"]):
                if not token.startswith("bytes:"):
                    self.assertEqual(choice["text"][offset:offset + len(token)], token)
            self.assertEqual(told["text_offset"][0], 0)
            chunks = [e["choices"][0] for e in server.events("/v1/completions", body)]
            self.assertEqual("".join(c["text"] for c in chunks), choice["text"])
            for name, values in told.items():
                self.assertEqual([v for c in chunks if c["logprobs"] for v in c["logprobs"][name]], values)
            self.assertEqual(chunks[0]["text"], body["prompt"], "the prompt comes first")
            none = [e["choices"][0] for e in server.events("/v1/completions", {**body, "max_tokens": 0})]
            self.assertEqual((none[-1]["text"], none[-1]["logprobs"]["text_offset"]), (body["prompt"], told["text_offset"][:-3]))

    def test_a_seed_gives_each_prompt_of_a_list_its_text_alone(self):
        with Server(self) as server:
            body = {"max_tokens": 20, "temperature": 1, "seed": 7, "n": 2}
            alone = [[c["text"] for c in server.done("/v1/completions", {**body, "prompt": p})["choices"]] for p in ("ROMEO:", "The king")]
            listed = [c["text"] for c in server.done("/v1/completions", {**body, "prompt": ["ROMEO:", "The king"]})["choices"]]
            self.assertEqual(listed, alone[0] + alone[1])
            self.assertNotEqual(*alone[0])
            self.assertNotEqual(*(c["text"] for c in server.done("/v1/completions", {"max_tokens": 20, "prompt": ["O", "O"]})["choices"]))

    def test_many_prompts_are_taken(self):
        with Server(self) as server:
            answer = server.done("/v1/completions", {"prompt": ["O"] * 1024, "max_tokens": 1})
            self.assertEqual(len(answer["choices"]), 1024)

    def test_all_routes_are_published(self):
        with Server(self) as server:
            api = json.loads(server.get("/openapi.json")[1])
            for path, item in api["paths"].items():
                if "$ref" in item:
                    self.assertEqual(item["$ref"][:8], "#/paths/")
                    item = api["paths"][item["$ref"][8:].replace("~1", "/")]
                status, _, headers = server.request("OPTIONS", path.replace("{name}", "x"))
                self.assertEqual((status, headers["allow"].split(", ")[0].lower()), (204, list(item)[0]), path)
            source = (pathlib.Path(__file__).resolve().parents[2] / "src/serve/service.cc").read_text()
            routes = re.findall(r'\{"(?:GET|POST)", "([^"]+)", &Service', source)
            self.assertEqual({route.replace("*", "{name}") for route in routes}, set(api["paths"]))

    def test_tokens_can_end_an_answer(self):
        with Server(self) as server:
            body = {"prompt": "First Citizen:\nBefore we proceed", "max_tokens": 30, "temperature": 0}
            text = server.done("/v1/completions", body)["choices"][0]["text"]
            comma = server.done("/tokenize", {"prompt": text[9], "add_special_tokens": False})["tokens"]
            for ignore_eos in (False, True):
                choice = server.done("/v1/completions", {**body, "stop_token_ids": comma, "ignore_eos": ignore_eos})["choices"][0]
                self.assertEqual((choice["text"], choice["finish_reason"]), (text[:text.index(text[9])], "stop"))
            longer = server.done("/v1/completions", {**body, "stop_token_ids": comma, "min_tokens": 20})
            self.assertGreaterEqual(longer["usage"]["completion_tokens"], 20)

    def test_shared_beginnings_are_found(self):
        with Server(self) as server:
            text = "To be, or not to be, that is the question. " * 8
            first = server.done("/v1/completions", {"prompt": text, "max_tokens": 4, "temperature": 0})
            second = server.done("/v1/completions", {"prompt": text + "Whether", "max_tokens": 4, "temperature": 0})
            other = server.done("/v1/completions", {"prompt": text, "max_tokens": 4, "temperature": 0, "user_id": "somebody else"})
            self.assertEqual(first["usage"]["prompt_cache_hit_tokens"], 0)
            self.assertEqual(second["usage"]["prompt_cache_hit_tokens"], len(text) // 64 * 64)
            self.assertEqual(second["usage"]["prompt_tokens_details"]["cached_tokens"], len(text) // 64 * 64)
            self.assertEqual(other["usage"]["prompt_cache_hit_tokens"], 0, "caches of other users are not shared")
            self.assertEqual(other["choices"], first["choices"])
            self.assertGreater(server.metric("prefix_cache_hits_total"), 0)

    def test_what_operators_and_tools_ask(self):
        with Server(self, "--model-name", "bard") as server:
            self.assertEqual(json.loads(server.get("/health")[1]), {"status": "ok"})
            models = json.loads(server.get("/v1/models")[1])
            self.assertEqual(models["data"][0]["id"], "bard")
            self.assertEqual(json.loads(server.get("/v1/models/bard")[1])["object"], "model")
            self.assertEqual(server.get("/v1/models/other")[0], 404)
            self.assertEqual(json.loads(server.get("/models/b%61rd")[1])["id"], "bard")
            self.assertEqual(json.loads(server.get("/v1/models/deepseek-reasoner")[1])["id"], "deepseek-reasoner")
            self.assertEqual(server.get("/v1/models/deepseek-chat")[0], 200)
            info = json.loads(server.get("/tokenizer_info")[1])
            self.assertIn("eos_token", info)
            ids = server.done("/tokenize", {"content": "héllo"})["tokens"]
            self.assertEqual(server.done("/detokenize", {"tokens": ids})["prompt"], "héllo")
            self.assertEqual(server.done("/apply-template", {"messages": USER})["prompt"], "ROMEO:")
            status, text, headers = server.get("/metrics")
            self.assertEqual(status, 200)
            self.assertTrue(headers["content-type"].startswith("text/plain"))
            for name in ("num_requests_running", "time_to_first_token_seconds_bucket", "kv_cache_usage_perc", "http_requests_total"):
                self.assertIn(f"fathom:{name}{{", text.decode())
            status, _, headers = server.request("GET", "/health", headers={"X-Request-Id": "mine-1"})
            self.assertEqual(headers["x-request-id"], "mine-1")
            self.assertEqual(server.request("HEAD", "/health")[:2], (200, b""))

    def test_errors_are_openais(self):
        with Server(self, "--ctx", "128") as server:
            for path, body, status, code in (
                    ("/v1/chat/completions", "{", 400, "invalid_json"), ("/v1/chat/completions", {"messages": []}, 400, "invalid_value"),
                    ("/v1/completions", {"prompt": "x" * 200}, 400, "context_length_exceeded"),
                    ("/v1/completions", {"prompt": [1, 99999]}, 400, "invalid_value"), ("/v1/completions", {"prompt": ""}, 400, "invalid_value"),
                    ("/v1/completions", {"prompt": "x", "suffix": "y"}, 400, "unsupported_value"),
                    ("/detokenize", {"tokens": [77777]}, 400, "invalid_value"), ("/nowhere", {}, 404, "not_found"),
                    ("/health", {}, 405, "method_not_allowed")):
                answered, error = server.post(path, body)
                self.assertEqual((answered, error["error"]["code"]), (status, code), (path, body, error))
            status, _, headers = server.get("/v1/completions")
            self.assertEqual((status, headers["allow"]), (405, "POST, OPTIONS"))
            status, answer = server.post("/v1/completions", {"prompt": "x" * 100, "max_tokens": 1000, "temperature": 0})
            self.assertEqual((status, answer["choices"][0]["finish_reason"]), (200, "length"))

    def test_a_template_that_cannot_be_used_is_told_at_the_start(self):
        large = self.write("large.jinja", " " * ((1 << 20) + 1))
        for file in (str(self.folder / "missing.jinja"), large, self.write("broken.jinja", "{% for x in %}")):
            self.assert_refused(fathom("serve", "--model", SHAKESPEARE, "--port", "0", "--template", file, "--quiet", stdout=subprocess.DEVNULL), 1, os.path.basename(file))

    def test_keys_hosts_and_origins(self):
        keys = self.write("keys", "# ours\nsecret-1\nsecret-2\n")
        self.assert_refused(fathom("serve", "--model", SHAKESPEARE, "--port", "0", "--api-key-file", keys), 1, "chmod 600")
        os.chmod(keys, 0o600)
        self.assert_refused(fathom("serve", "--model", SHAKESPEARE, "--port", "0", "--host", "0.0.0.0"), 2, "--api-key-file")
        with Server(self, "--api-key-file", keys, "--cors-origin", "http://good.example") as server:
            text = "x" * 100
            body = {"prompt": text, "max_tokens": 1}
            self.assertEqual(server.get("/health")[0], 200)
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-1"}, {"X-Api-Key": ""}):
                status, answer = server.post("/v1/completions", body, headers)
                self.assertEqual((status, answer["error"]["code"]), (401, "invalid_api_key"))
            self.assertEqual(server.get("/v1/models", {"Authorization": "bearer secret-1"})[0], 200)
            for headers in ({"Authorization": "Bearer secret-1"}, {"X-Api-Key": "secret-2"}):
                usage = server.done("/v1/completions", body, headers)["usage"]
                self.assertEqual(usage["prompt_cache_hit_tokens"], 0, "keys share no caches")
            self.assertEqual(server.done("/v1/completions", body, {"X-Api-Key": "secret-2"})["usage"]["prompt_cache_hit_tokens"], 64)
            key = {"X-Api-Key": "secret-1"}
            self.assertEqual(server.request("GET", "/v1/models", headers={**key, "Host": "evil.example"})[0], 403)
            self.assertEqual(server.request("GET", "/v1/models", headers={**key, "Origin": "http://evil.example"})[0], 403)
            status, _, headers = server.request("GET", "/v1/models", headers={**key, "Origin": "http://good.example"})
            self.assertEqual((status, headers["access-control-allow-origin"]), (200, "http://good.example"))
            status, _, headers = server.request("OPTIONS", "/v1/models", headers={"Origin": "http://good.example"})
            self.assertEqual((status, headers["access-control-allow-methods"]), (204, "GET, POST, OPTIONS"))
            self.assertEqual(headers["allow"], "GET, HEAD, OPTIONS")
            asked = {"Origin": "http://good.example", "Access-Control-Request-Headers": "authorization, x-stainless-os,anthropic-version, bad(name), " + ", " * 9}
            _, _, headers = server.request("OPTIONS", "/v1/models", headers=asked)
            allowed = headers["access-control-allow-headers"].split(", ")
            self.assertEqual(allowed[4:], ["authorization", "x-stainless-os", "anthropic-version"])
            self.assertEqual(headers["access-control-expose-headers"], "Retry-After, X-Request-Id")
            _, _, headers = server.request("OPTIONS", "/v1/models", headers={**asked, "Access-Control-Request-Headers": "a" * 5000})
            self.assertEqual(len(headers["access-control-allow-headers"].split(", ")), 4)

    def test_a_server_that_lets_others_in_goes_by_no_strange_name(self):
        with Server(self, "--host", "0.0.0.0", "--no-key", "--allowed-host", "Mine.Example, other.example") as server:
            for host, status in (("evil.example", 403), ("evil.example:80", 403), ("localhost", 200), ("LOCALHOST:1", 200), ("192.0.2.7:8080", 200), ("mine.example", 200),
                                 ("other.example", 200), (socket.gethostname(), 200)):
                self.assertEqual(server.get("/v1/models", {"Host": host})[0], status, host)
                self.assertEqual(server.get("/v1/models", {"Host": host, "Origin": f"http://{host}"})[0], status, host)
        with Server(self, "--host", "0.0.0.0", "--api-key-file", self.key_file("k")) as server:
            self.assertEqual(server.get("/v1/models", {"Host": "any.example", "X-Api-Key": "k"})[0], 200)

    def key_file(self, key):
        file = self.write("a key", key + "\n")
        os.chmod(file, 0o600)
        return file

    def test_options_from_the_environment(self):
        hosts = self.write("c.toml", f'[serve]\nmodel = "{SHAKESPEARE}"\nmodel-name = "configured"\n')
        environment = {"FATHOM_CONFIG": hosts, "FATHOM_SERVE_ALLOWED_HOST": "a.example,b.example", "FATHOM_SERVE_CORS_ORIGIN": "http://c.example, http://d.example"}
        with unittest.mock.patch.dict(os.environ, environment):
            with Server(self) as server:
                self.assertEqual(json.loads(server.get("/v1/models")[1])["data"][0]["id"], "configured")
                for host in ("a.example", "b.example"):
                    self.assertEqual(server.get("/health", {"Host": host})[0], 200)
                for origin in ("http://c.example", "http://d.example"):
                    self.assertEqual(server.get("/health", {"Origin": origin})[0], 200)
            with Server(self, "--config", self.write("d.toml", '[serve]\nmodel-name = "by hand"\n')) as server:
                self.assertEqual(json.loads(server.get("/v1/models")[1])["data"][0]["id"], "by hand")
        with unittest.mock.patch.dict(os.environ, {"FATHOM_CONFIG": str(self.folder / "none.toml")}):
            self.assert_refused(fathom("serve", "--model", SHAKESPEARE, "--port", "0"), 2, "none.toml")

    def test_a_unix_socket(self):
        path = self.folder / "s"
        process = subprocess.Popen([PROGRAM, "serve", "--model", SHAKESPEARE, "--host", f"unix:{path}", "--quiet"], stdout=subprocess.PIPE,
                                   encoding="utf-8")
        self.assertEqual(process.stdout.readline().strip(), f"unix:{path}")
        self.addCleanup(process.kill)
        for _ in range(200):  # until the model is loaded
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(str(path))
                s.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: s.recv(4096), b""))
            if b" 503 " not in answer.split(b"\r\n")[0]:
                break
            time.sleep(0.05)
        self.assertIn(b" 200 ", answer.split(b"\r\n")[0])
        process.terminate()
        self.assertEqual(process.wait(timeout=30), 0)
        process.stdout.close()
        self.assertFalse(path.exists())

    def test_a_file_in_the_place_of_a_unix_socket_stays(self):
        path = self.write("precious", "mine")
        for command in (["serve", "--model", SHAKESPEARE], ["watch", str(self.folder)]):
            self.assert_refused(fathom(*command, "--host", f"unix:{path}"), 1, "cannot listen on", "no socket")
            self.assertEqual(pathlib.Path(path).read_text(), "mine")
        stale = self.folder / "stale"
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(stale))
        process = subprocess.Popen([PROGRAM, "serve", "--model", SHAKESPEARE, "--host", f"unix:{stale}", "--quiet"], stdout=subprocess.PIPE,
                                   encoding="utf-8")
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline().strip(), f"unix:{stale}")
        process.terminate()
        self.assertEqual(process.wait(timeout=30), 0)
        process.stdout.close()


class Hostile(Case):
    def test_raw_requests(self):
        host = "Host: localhost\r\n"
        post = "POST /v1/completions HTTP/1.1\r\n" + host
        cases = [  # what is sent, status (None: closed without an answer), how many answers
            ("GET /health HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 200),
            ("\r\n\r\nGET /health HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 200),
            ("GET /health HTTP/1.0\r\n\r\n", 200),
            ("GET /health HTTP/1.1\r\n\r\n", 400),
            ("GET /health HTTP/1.1\r\n" + host + host + "\r\n", 400),
            ("GET /health HTTP/2.0\r\n" + host + "\r\n", 505),
            ("GET /health HTTP/1.2\r\n" + host + "\r\n", 505),
            ("GET /health\r\n\r\n", 400),
            ("GET  /health HTTP/1.1\r\n" + host + "\r\n", 400),
            ("GET health HTTP/1.1\r\n" + host + "\r\n", 400),
            ("GET http://localhost/health HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 200),
            ("GET HTTP://localhost:1/health?a HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 200),
            ("GET http://evil.example/health HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 403),
            ("GET http://a@localhost/health HTTP/1.1\r\n" + host + "\r\n", 400),
            ("GET http:///health HTTP/1.1\r\n" + host + "\r\n", 400),
            ("GET http://localhost/health HTTP/1.1\r\n\r\n", 400),
            ("GET /health HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", 400),
            ("GET /health HTTP/1.1\r\n" + host + "X: a\r\n\tHost: b\r\n\r\n", 400),
            ("CONNECT localhost:1 HTTP/1.1\r\n" + host + "\r\n", 400),
            ("TRACE /health HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 405),
            ("BREW /health HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 405),
            ("get /health HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 405),
            ("GET /health HTTP/1.1\n" + "Host: localhost\n\n", 400),
            ("GET /health HTTP/1.1\r\n" + "Host : localhost\r\n\r\n", 400),
            ("GET /health HTTP/1.1\r\n" + host + "X: a\0b\r\n\r\n", 400),
            ("GET /health HTTP/1.1\r\n" + host + "X\x01: a\r\n\r\n", 400),
            ("GET /health HTTP/1.1\r\n" + host + ": a\r\n\r\n", 400),
            ("GET /health HTTP/1.1\r\n" + host + "no colon\r\n\r\n", 400),
            ("GET /\x7f HTTP/1.1\r\n" + host + "\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200, 400),  # TLS
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            ("GET / HTP/1.1\r\nHost: a HTTP/\r\n\r\n", 400),
            ("GET / HTP/1.1 HTTP/1", 400),
            ("GET / HTP/1.1\r\nX: HTTP/1.1\r", 400),
            ("GET /health HTTP/1.1\r\n" + host + "X: " + "a" * 20000 + "\r\n\r\n", 431),
            ("GET /health HTTP/1.1\r\n" + host + "A: b\r\n" * 200 + "\r\n", 431),
            ("GET /" + "a" * 20000 + " HTTP/1.1\r\n" + host + "\r\n", 431),
            (post + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
            (post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
            (post + "Content-Length: 3, 3\r\n\r\nabc", 400),
            (post + "Content-Length: -1\r\n\r\n", 400),
            (post + "Content-Length: +3\r\n\r\nabc", 400),
            (post + "Content-Length: 0x3\r\n\r\nabc", 400),
            (post + "Content-Length: 99999999999999999999\r\n\r\n", 400),
            (post + "Content-Length: 999999999999\r\n\r\n", 413),
            (post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
            (post + "Transfer-Encoding: gzip\r\n\r\n", 501),
            (post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
            (post + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501),
            (post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
            (post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            ("POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (post + "Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
            (post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
            (post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc", 413),
            (post + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", 400),
            (post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\n", 400),
            (post + "Transfer-Encoding: chunked\r\n\r\n" + "100000\r\n" + "a" * 0x100000 + "\r\n" * 1 + ("100000\r\n" + "a" * 0x100000 + "\r\n") * 9, 413),
            (post + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n", 400),  # a body that is no JSON
            (post + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n1;ext=\"a\"\r\n{\r\n0\r\nX-Api-Key: k\r\n\r\n", 400),
            (post + "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", 415),
            (post + "Expect: something\r\nContent-Length: 3\r\n\r\nabc", 417),
            ("OPTIONS * HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 404),
            ("DELETE /v1/models HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 405),
            ("GET /../../etc/passwd HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 404),
            ("GET /%2e%2e/%00 HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", 404),
            ("GET /health HTTP/1.1\r\n" + host + "Upgrade: h2c\r\nConnection: upgrade, close\r\n\r\n", 200),
            ("GET /health HTTP/1.1\r\nHost: localhost@evil\r\nConnection: close\r\n\r\n", 403),
            ("GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 403),
        ]
        with Server(self) as server:
            for sent, status in cases:
                with self.subTest(sent=sent[:160]):
                    answer = server.raw(sent)
                    self.assertEqual(status_of(answer), status, (sent[:200], answer[:300]))
                    self.assertEqual(len(re.findall(rb"HTTP/1\.1 \d", answer)), 1, (sent[:200], answer[:600]))
                    if status >= 400:
                        self.assertIn("message", json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"])
            # In order, however the bytes are cut.
            three = ("GET /health HTTP/1.1\r\n" + host + "\r\n") * 2 + "GET /nowhere HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n"
            for cut in (1, 7, 1000):
                answer = server.raw(*(three[i:i + cut] for i in range(0, len(three), cut)))
                self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", answer), [b"200", b"200", b"404"])
            continued = server.raw(post + "Connection: close\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", "{", wait=0.3)
            self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", continued), [b"100", b"400"])
            # What stands in a chunked body's trailer is no header.
            self.assertEqual(server.get("/health")[0], 200)

    def test_bodies_are_read_for_who_may_ask(self):
        keys = self.write("keys", "key-a\nkey-b\n")
        os.chmod(keys, 0o600)

        def head(path="/v1/completions", key=None, method="POST", more=""):
            return (f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {8 << 20}\r\n{more}"
                    + (f"Authorization: Bearer {key}\r\n" if key else "") + "\r\n").encode()
        with Server(self, "--api-key-file", keys) as server:
            for sent, status in ((head(), 401), (head(key="other"), 401), (head("/nowhere", "key-a"), 404), (head(key="key-a", method="PUT"), 405),
                                 (head("/v1/models", "key-a"), 405), (head("/health", method="GET"), 200), (head("/"), 405),
                                 (head(key="key-a", more="Origin: http://evil.example\r\n"), 403)):
                for more in b"", b"a" * 100000:
                    with self.subTest(sent=sent[:60], status=status):
                        answer = server.raw(sent.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") + more)
                        self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", answer), [b"%d" % status], "at once, without 100 Continue")
                        self.assertIn(b"\r\nConnection: close\r\n", answer)
                        self.assertIn(b"\r\nX-Request-Id: ", answer)
            # Of the room for bodies one key takes half, however many connections it has.
            held = []
            with contextlib.ExitStack() as stack:
                for _ in range(34):
                    s = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                    with contextlib.suppress(OSError):  # refused already
                        s.sendall(head(key="key-a") + b" " * ((8 << 20) - 1))
                    held.append(s)
                    self.assertEqual(server.post("/v1/completions", {"prompt": "O", "max_tokens": 1}, {"X-Api-Key": "key-b"})[0], 200)
                refused = 0
                for s in held:
                    s.settimeout(0.05)
                    with contextlib.suppress(OSError):
                        refused += status_of(s.recv(100)) == 503
                self.assertGreater(refused, 0)
            self.assertEqual(server.post("/v1/completions", {"prompt": "O", "max_tokens": 1}, {"X-Api-Key": "key-a"})[0], 200)

    def test_what_was_no_request_is_counted_named_and_told_in_its_apis_form(self):
        def message_of(answer):
            head, body = answer.split(b"\r\n\r\n", 1)
            named = re.search(rb"\r\nX-Request-Id: (\S+)", head)
            self.assertTrue(named, head)
            return named[1].decode(), json.loads(body)
        with Server(self, "--max-body-bytes", "100") as server:
            post = "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n"
            for sent, status in ((post + "Content-Length: 101\r\n\r\n", 413), (post + "Origin: http://evil.example\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 403)):
                answer = server.raw(sent)
                self.assertEqual(status_of(answer), status)
                self.assertEqual(message_of(answer)[1]["type"], "error", "as Anthropic says it")
            for sent, status in (("no request\r\n\r\n", 400), ("GET /" + "a" * 20000 + " HTTP/1.1\r\n\r\n", 431)):
                answer = server.raw(sent)
                self.assertEqual(status_of(answer), status)
                named, body = message_of(answer)
                self.assertIn("message", body["error"])
                self.assertEqual(server.told(named)["status"], status)
            text = server.get("/metrics")[1].decode()
            for status in 400, 413, 431:
                self.assertRegex(text, rf'http_requests_total\{{[^}}]*route="",status="{status}"\}} 1\n')
            for path in "/", "/openapi.json":
                status, _, headers = server.request("POST", path, "{}")
                self.assertEqual((status, headers["allow"]), (405, "GET, HEAD, OPTIONS"))
                self.assertEqual(server.request("OPTIONS", path)[0], 204)

    def test_who_goes_is_noticed_whatever_was_sent_ahead(self):
        with Server(self) as server:
            body = json.dumps({"prompt": "O", "max_tokens": 900, "ignore_eos": True, "n": 40}).encode()
            post = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            ahead = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            for more in ahead * 500, ahead * 5000, b"x" * (8 << 20):
                with socket.create_connection(("127.0.0.1", server.port), timeout=10) as s:
                    s.sendall(post)
                    while server.metric("num_requests_running") == 0:
                        time.sleep(0.01)
                    s.sendall(more)
                begin = time.monotonic()
                while server.metric("num_requests_running") + server.metric("num_requests_waiting") > 0:
                    self.assertLess(time.monotonic() - begin, 20)
                    time.sleep(0.02)
                aborted = re.search(r'request_success_total\{[^}]*finished_reason="abort"\} (\d+)', server.get("/metrics")[1].decode())
                self.assertTrue(aborted and int(aborted[1]) > 0)
                self.assertLess(time.monotonic() - begin, 2)
            # What is asked ahead is answered, where it is not too much.
            answer = server.raw(ahead * 500 + ahead.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            self.assertEqual(answer.count(b"HTTP/1.1 200 "), 501)

    def test_slow_clients_are_closed_and_harm_nobody(self):
        with Server(self, "--header-timeout", "1", "--body-timeout", "1", "--idle-timeout", "2", "--write-timeout", "1") as server:
            begin = time.monotonic()
            sockets = []
            for i in range(60):
                s = socket.create_connection(("127.0.0.1", server.port))
                s.sendall((b"GET /health HT", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", b"")[i % 3])
                sockets.append(s)
            self.assertEqual(server.get("/health")[0], 200)
            for i, s in enumerate(sockets):
                s.settimeout(20)
                answer = s.recv(100)
                self.assertEqual(status_of(answer), None if i % 3 == 2 else 408)
                s.close()
            self.assertLess(time.monotonic() - begin, 15)

    def test_who_goes_leaves_nothing_behind(self):
        with Server(self) as server:
            body = json.dumps({"prompt": "O", "max_tokens": 900, "ignore_eos": True, "stream": True}).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
            for i in range(60):
                with socket.create_connection(("127.0.0.1", server.port)) as s:
                    s.sendall((head + body)[: len(head) + len(body) - (i % 3 == 0)])
                    if i % 3 == 1:
                        s.recv(200)
                    time.sleep(0.002 * (i % 5))
            for _ in range(200):
                if server.metric("num_requests_running") + server.metric("num_requests_waiting") == 0 and server.metric("http_connections") <= 1:
                    break
                time.sleep(0.05)
            self.assertEqual(server.metric("num_requests_running"), 0)
            aborted = re.search(r'request_success_total\{[^}]*finished_reason="abort"\} (\d+)', server.get("/metrics")[1].decode())
            self.assertGreaterEqual(int(aborted[1]), 20)
            self.assertEqual(server.metric("kv_cache_usage_perc"), 0)
            self.assertLessEqual(server.metric("http_connections"), 1)

    def test_more_than_there_is_room_for_is_told_at_once(self):
        with Server(self, "--max-batch", "1", "--max-waiting", "2") as server:
            body = {"prompt": "O", "max_tokens": 400, "ignore_eos": True}
            statuses = []

            def ask(_):
                begin = time.monotonic()
                status, text, headers = server.request("POST", "/v1/completions", body)
                if status == 429:
                    self.assertIn("retry-after", headers)
                    self.assertLess(time.monotonic() - begin, 5)
                return status
            with concurrent.futures.ThreadPoolExecutor(20) as pool:
                statuses = list(pool.map(ask, range(20)))
            self.assertEqual(set(statuses), {200, 429})
            self.assertEqual(server.metric("admission_rejections_total"), statuses.count(429))
        with Server(self, "--max-connections", "3") as server:
            held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
            time.sleep(0.2)
            answer = server.raw("")
            self.assertEqual(status_of(answer), 503)
            self.assertIn(b"\r\nRetry-After: ", answer)
            for s in held:
                s.close()


class Packaging(Case):
    FOLDER = pathlib.Path(__file__).resolve().parents[2] / "packaging"

    def test_nothing_is_installed_open(self):
        self.assertNotIn("--no-key", (self.FOLDER / "Containerfile").read_text())
        unit = (self.FOLDER / "fathom-serve.service").read_text()
        self.assertIn("\nLoadCredential=api-keys:/etc/fathom/api-keys\n", unit)
        self.assertIn(" --api-key-file %d/api-keys\n", unit)
        self.assertIn("> /etc/fathom/api-keys)", (self.FOLDER / "postinst").read_text())
        self.assertNotIn("api-key-file", (self.FOLDER / "serve.toml").read_text())

    def test_systemd_reads_the_unit(self):
        if not shutil.which("systemd-analyze"):
            self.skipTest("there is no systemd-analyze")
        unit = (self.FOLDER / "fathom-serve.service").read_text().replace("/usr/bin/fathom", os.path.abspath(PROGRAM))
        file = self.folder / "fathom-serve.service"
        file.write_text(unit)
        result = subprocess.run(["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True)
        told = [line for line in result.stderr.splitlines() if "fathom" in line]
        self.assertEqual(told, [])


class Ending(Case):
    def test_begun_answers_end_and_cut_ones_say_so(self):
        for drain, ends_well in (("30", True), ("0", False)):
            with Server(self, "--drain-timeout", drain) as server:
                body = {"prompt": "O", "max_tokens": 300, "n": 1 if ends_well else 100, "ignore_eos": True, "stream": True}
                connection = server.connect()
                connection.request("POST", "/v1/completions", json.dumps(body))
                answer = connection.getresponse()
                answer.readline()
                server.process.send_signal(signal.SIGTERM)
                text = answer.read().decode()
                connection.close()
                self.assertTrue(text.endswith("data: [DONE]\n\n"), text[-300:])
                self.assertEqual("shutting_down" in text, not ends_well, text[-300:])
                self.assertEqual(server.process.wait(timeout=30), 0, server.logged())

    def test_a_model_that_is_none_is_told_before_anybody_waits(self):
        self.assert_refused(fathom("serve", "--model", str(self.folder / "none"), "--port", "0"), 1, "none")
        self.assert_refused(fathom("serve", "--model", SHAKESPEARE, "--port", "0", "--host", "no.such.host.invalid"), 2, "--api-key-file")
        with Server(self) as server:
            taken = fathom("serve", "--model", SHAKESPEARE, "--port", str(server.port))
            self.assert_refused(taken, 1, "cannot listen on", "in use")

    def test_the_log_tells_requests_and_not_what_they_say(self):
        with Server(self) as server:
            server.done("/v1/completions", {"prompt": "a secret", "max_tokens": 3}, {"X-Request-Id": "abc"})
            self.assertEqual(server.told("abc")["completion_tokens"], 3)
            self.assertNotIn("secret", server.logged())
        with Server(self, "--log-content") as server:
            for stream in (False, True):
                body = {"prompt": "a secret", "max_tokens": 3, "temperature": 0, "stream": stream}
                status, text, _ = server.request("POST", "/v1/completions", body, {"X-Request-Id": f"s{stream}"})
                told = server.told(f"s{stream}")
                self.assertEqual(json.loads(told["request"]), body)
                if not stream:
                    answers = [choice["text"] for choice in json.loads(text)["choices"]]
                self.assertEqual(told["answers"], answers)
            server.done("/v1/chat/completions", {"messages": USER, "max_tokens": 3}, {"X-Request-Id": "chat"})
            told = server.told("chat")
            self.assertEqual(told["answers"][0]["role"], "assistant")


if __name__ == "__main__":
    unittest.main()
