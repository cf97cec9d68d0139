"""Mends requests that should be taken, where a schema cannot say what else must hold, and keeps their answers short. What is meant to be
refused goes as it is."""
import random

import schemathesis

SCHEMAS = [True, {"type": "integer"}, {"enum": ["a", 1, None]}, {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]},
           {"type": "array", "items": {"type": "number"}, "maxItems": 2}]
FORMS = {"grammar": ['root ::= "a" | "b"+'], "guided_grammar": ['root ::= [a-z]*'], "regex": ["a+b?"], "guided_regex": ["[0-9]{2}"],
         "json_schema": SCHEMAS, "guided_json": SCHEMAS, "guided_choice": [["yes", "no"]],
         "structured_outputs": [{"regex": "x|y"}, {"choice": ["one"]}, {"json": {"type": "null"}}, {}],
         "response_format": [{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMAS[3]}}]}
VOCABULARY = 600  # token ids below are the tokenizer's, too


def ids_of(ids):
    return [token % VOCABULARY for token in ids][:40]


def prompt_of(prompt):
    if isinstance(prompt, str):
        return prompt[:40] or "x"
    if all(isinstance(one, (int, float)) for one in prompt):
        return ids_of(prompt)
    return [one[:40] or "x" if isinstance(one, str) else ids_of(one) or [1] for one in prompt[:4]]


def mend_chat(body, draw):
    for message in body["messages"][:-1]:
        message.pop("prefix", None)
    if len(body["messages"]) == 1:
        body["messages"][0].pop("prefix", None)
    for message in body["messages"]:
        if message.get("content") is None and not message.get("tool_calls"):
            message["content"] = "x"
    called = set()
    for message in body["messages"]:  # a result is of a call in front of it
        if message.get("tool_call_id") not in called:
            message.pop("tool_call_id", None)
        called |= {call["id"] for call in message.get("tool_calls") or [] if isinstance(call.get("id"), str)}
    if any(body.get(name) is not None for name in FORMS):  # what begins the answer must begin something of the form
        body["messages"][-1].pop("prefix", None)
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    if not body.get("tools") and body.get("tool_choice") not in (None, "none", "auto"):
        del body["tool_choice"]
    elif isinstance(body.get("tool_choice"), dict):
        body["tool_choice"]["function"]["name"] = body["tools"][0]["function"]["name"]
    for tool in body.get("tools") or []:
        if tool["function"].get("parameters") is not None:
            tool["function"]["parameters"] = draw.choice([{}, {"type": "object"}, SCHEMAS[3]])
    kwargs = body.get("chat_template_kwargs")
    if kwargs is not None:
        body["chat_template_kwargs"] = draw.choice([{}, {"thinking": True}, {"enable_thinking": False}])
    if (body.get("tool_choice") or "none") not in ("none", "auto"):
        for name in FORMS:
            body.pop(name, None)
        body["messages"][-1].pop("prefix", None)


def shorten(value):
    """Numbers of more than 64 bits, in fields that nobody reads, are told apart from no JSON by few."""
    if isinstance(value, dict):
        return {key: shorten(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shorten(one) for one in value]
    return value % 2**63 if isinstance(value, int) and abs(value) >= 2**63 else value


def mend_message(body):
    first = body["messages"][0]
    first["role"] = "user"
    if isinstance(first["content"], list):
        first["content"] = [block for block in first["content"] if block["type"] == "text"] or "x"
    if "max_tokens" in body:
        body["max_tokens"] = min(body["max_tokens"], 9)
    if body.get("stop_sequences") is not None:
        body["stop_sequences"] = [one[:60] for one in body["stop_sequences"]]
    if (body.get("metadata") or {}).get("user_id"):
        body["metadata"]["user_id"] = body["metadata"]["user_id"][:60]


def mend_response(body):
    if body["input"] == "":
        body["input"] = "x"
    if isinstance(body["input"], list):
        body["input"][-1]["role"] = "user"
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools and choice not in (None, "none", "auto"):
        del body["tool_choice"]
    elif isinstance(choice, dict):
        choice["name"] = tools[0]["name"]
    if (body.get("tool_choice") or "none") not in ("none", "auto"):
        body.pop("text", None)
    form = (body.get("text") or {}).get("format") or {}
    if form.get("type") == "json_schema":
        form["schema"] = SCHEMAS[3]
    body["max_output_tokens"] = min(body.get("max_output_tokens") or 9, 9)


def mend(path, body):
    draw = random.Random(repr(body))
    body.update(shorten(body))
    if isinstance(body.get("tools"), list):  # a template tells each in its prompt
        body["tools"] = body["tools"][:20]
    if path.startswith("/v1/messages"):
        return mend_message(body)
    if path == "/v1/responses":
        return mend_response(body)
    if path == "/detokenize":
        body["tokens"] = ids_of(body["tokens"])
        return
    if path == "/tokenize":  # a conversation may have all fields of a chat, which its schema leaves to that one
        for name in set(body) - {"prompt", "content", "messages", "add_special_tokens", "parse_special", "return_token_strs"}:
            del body[name]
    for name in ("user_id", "cache_salt"):  # bounds are in bytes
        if body.get(name) is not None:
            body[name] = body[name][:60]
    if body.get("stop") is not None:
        body["stop"] = body["stop"][:60] if isinstance(body["stop"], str) else [one[:60] for one in body["stop"]]
    forms = [name for name in FORMS if body.get(name) is not None]
    kept = draw.choice(forms) if forms else None
    for name in forms:
        body.pop(name)
    if kept:
        body[kept] = draw.choice(FORMS[kept])
    if body.get("logit_bias"):
        body["logit_bias"] = {str(draw.randrange(VOCABULARY)): value for value in body["logit_bias"].values()}
    body.pop("best_of", None)
    if body.get("stream"):
        body.pop("prompt_logprobs", None)
    body["n"] = min(body.get("n") or 1, 3)
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is not None:
            body[name] = min(max(body[name], 1), 9)
    body.pop("n_predict", None)
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = 9
    if body.get("min_tokens"):
        body["min_tokens"] = 1
    if body.get("stop_token_ids"):
        body["stop_token_ids"] = ids_of(body["stop_token_ids"])
    if body.get("messages"):
        mend_chat(body, draw)
    elif "prompt" in body and path == "/v1/completions":
        body["prompt"] = prompt_of(body["prompt"])
        if body.get("echo"):
            body.pop("suffix", None)


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is not None and case.meta.generation.mode.is_positive and isinstance(case.body, dict):
        mend(case.path, case.body)
