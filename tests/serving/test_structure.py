"""Structured output and tools through the openai client, unchanged, against a live server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Literal

import jsonschema
import openai
import pytest
from live_server import Live
from pydantic import BaseModel

from unmask.decoding.methods import DecodingDefaults
from unmask.lm import DiffusionLM
from unmask.serving.api.settings import Settings
from unmask.serving.engine import Limits
from unmask.training.tokenizer import train_tokenizer

HELLO: list[Any] = [{"role": "user", "content": "the cat"}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "n": {"type": "integer", "minimum": 3, "maximum": 40},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "n"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
MOVE = {
    "type": "object",
    "properties": {"to": {"type": "string", "maxLength": 5}, "how": {"enum": ["fast", "slow"]}},
    "required": ["to", "how"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "move", "description": "go", "parameters": MOVE}},
    {"type": "function", "function": {"name": "stay"}},
]
SCHEMAS = {"move": MOVE, "stay": {"type": "object", "maxProperties": 0}}
# as the templates of Qwen and Hermes have it, and one without markers
HERMES = (
    "{% if tools %}<tool_call>{% for t in tools %}{{ t.function.name }}{{ (t | tojson)[:4] }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}\n{% endfor %}assistant: "
)
PLAIN = "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"


def described(template: str) -> Any:
    """What says that a model has this chat template."""
    return SimpleNamespace(templates={"default": template}, special_tokens={}, answer_schema=None)


@pytest.fixture(scope="module")
def tools_live(drafting: Callable[..., Any], start: Any) -> Live:
    text = '<tool_call>\n{"name": "move", "arguments": {"to": "b", "how": "fast"}}\n</tool_call> the cat sat ' * 4
    tokenizer = train_tokenizer("bpe", [text], 330)
    sizes: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "mask_token_id": 1, "eos_token_id": 0}
    network = drafting(1, strength=0.3, max_length=600, pad_token_id=0, bos_token_id=0, **sizes)[1]
    options = DecodingDefaults(threshold=0.4, block_length=3)
    made = {"caller": HERMES, "plain": PLAIN}
    return start(
        models={
            name: DiffusionLM(network, tokenizer, options, name, described(template)) for name, template in made.items()
        }
    )


@pytest.fixture(scope="module")
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=live.url, api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def caller(tools_live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=tools_live.url, api_key="none", max_retries=0, timeout=60)


@pytest.mark.parametrize("mode", ["diffusion", "ar", "verify"])
def test_a_schema_in_every_mode(client: openai.OpenAI, live: Live, mode: str) -> None:
    for seed in range(2):
        asked: dict[str, Any] = {"seed": seed, "temperature": 0.9 * seed}
        reply = client.chat.completions.create(
            model="talker", messages=HELLO, max_tokens=60, response_format=FORMAT, extra_body={"mode": mode}, **asked
        )
        choice = reply.choices[0]
        jsonschema.validate(json.loads(choice.message.content or ""), PERSON)
        assert choice.finish_reason == "stop"
        out = live.models["talker"].generate(HELLO, 60, mode=mode, json_schema=PERSON, **asked)
        assert choice.message.content == out.text


def test_a_pydantic_model_is_parsed(client: openai.OpenAI) -> None:
    class Cat(BaseModel):
        name: str
        kind: Literal["tabby", "black"]
        age: int | None

    for count in (36, 90):  # where the canvas ends the text is whole too
        reply = client.chat.completions.parse(
            model="talker", messages=HELLO, max_tokens=count, response_format=Cat, temperature=1.0, seed=3
        )
        assert isinstance(reply.choices[0].message.parsed, Cat)


def test_any_object_and_a_regular_expression(client: openai.OpenAI) -> None:
    for model in ("canvas", "blocks", "left"):
        asked: dict[str, Any] = {"model": model, "prompt": "the", "max_tokens": 40, "temperature": 1.0, "seed": 2}
        text = client.completions.create(**asked, extra_body={"response_format": {"type": "json_object"}})
        assert isinstance(json.loads(text.choices[0].text), dict)
        pattern = "(cat|dog)( sat){2,5}"
        text = client.completions.create(**asked, extra_body={"structured_outputs": {"regex": pattern}})
        assert re.fullmatch(pattern, text.choices[0].text)
        assert text.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("model", ["talker", "canvas"])
def test_a_stream_adds_up_to_a_valid_text(client: openai.OpenAI, model: str) -> None:
    for seed in range(3):
        asked: dict[str, Any] = {"model": model, "prompt": "a", "max_tokens": 50, "temperature": 0.9, "seed": seed}
        asked["extra_body"] = {"response_format": FORMAT}
        parts = [part.choices[0] for part in client.completions.create(**asked, stream=True)]
        text = "".join(part.text for part in parts)
        jsonschema.validate(json.loads(text), PERSON)
        assert text == client.completions.create(**asked).choices[0].text
        assert parts[-1].finish_reason == "stop"


def checked(calls: Any) -> list[str]:
    """Names of calls, whose arguments fit."""
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
        assert call.type == "function"
    assert len({call.id for call in calls}) == len(calls)
    return [call.function.name for call in calls]


def streamed(client: openai.OpenAI, asked: dict[str, Any]) -> tuple[str, list[Any], str | None]:
    """Content, calls and reason of a stream, put together as clients do."""
    content, calls, reason = "", dict[int, Any](), None
    for part in client.chat.completions.create(**asked, stream=True):
        choice = part.choices[0]
        content += choice.delta.content or ""
        for delta in choice.delta.tool_calls or []:
            if delta.id is not None:
                calls[delta.index] = delta
            else:
                assert delta.function.name is None
                calls[delta.index].function.arguments += delta.function.arguments
        reason = choice.finish_reason or reason
    return content, [calls[i] for i in sorted(calls)], reason


@pytest.mark.parametrize("model", ["caller", "plain"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "stay"}}])
def test_forced_calls(caller: openai.OpenAI, model: str, choice: Any) -> None:
    names = set()
    for seed in range(2):
        asked: dict[str, Any] = {"model": model, "messages": HELLO, "max_tokens": 90, "temperature": 1.0, "seed": seed}
        asked |= {"tools": TOOLS, "tool_choice": choice}
        whole = caller.chat.completions.create(**asked).choices[0]
        assert whole.message.content is None
        assert whole.finish_reason == "tool_calls"
        names |= set(checked(whole.message.tool_calls))
        content, calls, reason = streamed(caller, asked)
        assert (content, reason) == ("", "tool_calls")
        assert [c.function.arguments for c in calls] == [c.function.arguments for c in whole.message.tool_calls or []]
    assert names <= ({"stay"} if isinstance(choice, dict) else {"move", "stay"})


def test_a_model_may_call_or_not(caller: openai.OpenAI) -> None:
    for model in ("caller", "plain"):
        for seed in range(3):
            asked: dict[str, Any] = {"model": model, "messages": HELLO, "max_tokens": 40, "temperature": 1.0}
            asked |= {"tools": TOOLS, "seed": seed}
            whole = caller.chat.completions.create(**asked).choices[0]
            content, calls, reason = streamed(caller, asked)
            assert content == (whole.message.content or "")
            assert reason == whole.finish_reason
            checked(calls)
            assert (reason == "tool_calls") == bool(calls)
            assert "<tool_call>\n" not in content


def test_several_calls_and_their_results(caller: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "caller", "messages": HELLO, "temperature": 1.0, "tools": TOOLS}
    asked |= {"tool_choice": "required", "parallel_tool_calls": True, "max_tokens": 200}
    message = caller.chat.completions.create(**asked, seed=0).choices[0].message
    checked(message.tool_calls)
    assert len(message.tool_calls or []) > 1
    results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in message.tool_calls or []]
    asked |= {"messages": [*HELLO, message, *results], "tool_choice": "none", "max_tokens": 8}
    reply = caller.chat.completions.create(**asked)
    assert reply.choices[0].message.content
    assert reply.choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tools": [*TOOLS, TOOLS[0]]}, "two functions of one name"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "not among the tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "not of type"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]}, "tool 'f': "),
        ({"response_format": {"type": "json_object"}}, "cannot be honoured together with response_format"),
        ({"stream": True, "diffusing": True}, "diffusing"),
        ({"stop": "x"}, "stop would cut"),
        ({"tool_choice": "required", "max_tokens": 5}, "5 new tokens are too few"),
        ({"messages": [*HELLO, {"role": "user", "content": "x", "tool_call_id": "c"}]}, "tool_call_id"),
    ],
)
def test_tools_that_cannot_be_honoured(tools_live: Live, change: dict[str, Any], says: str) -> None:
    body = {"model": "caller", "messages": HELLO, "max_tokens": 20, "tools": TOOLS, **change}
    status, reply = tools_live.send("/v1/chat/completions", body)
    assert status == 400
    assert says in reply["error"]["message"]


def test_a_hostile_rule_is_refused_and_hangs_nobody(start: Any) -> None:
    live = start(Limits(slots=4), Settings(schema_characters=2000, schema_depth=6, schema_seconds=0.3))
    deep: Any = {}
    for _ in range(8):
        deep = {"items": deep}
    # 2 ** 13 states from a small expression, and some that only take long
    slow = ["(a|b)*a(a|b){40}", "((a{1,100}){1,100}){1,100}", "(.{0,300}x){0,300}"]
    bodies: list[Any] = [{"structured_outputs": {"regex": pattern}} for pattern in slow]
    for schema in (deep, {"enum": ["x" * 3000]}):
        bodies.append({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}})
    plain = {"model": "left", "prompt": "the cat", "max_tokens": 4}
    with ThreadPoolExecutor(8) as pool:
        refused = [pool.submit(live.send, "/v1/completions", {**plain, **body}) for body in bodies]
        while not all(answer.done() for answer in refused):
            began = time.monotonic()
            assert live.send("/v1/completions", plain)[0] == 200
            assert time.monotonic() - began < 5.0
        assert [answer.result()[0] for answer in refused] == [400] * len(bodies)
        messages = [answer.result()[1]["error"]["message"] for answer in refused]
    assert all("too large" in message for message in messages[:3])
    assert "nested deeper than the 6 levels" in messages[3]
    assert "larger than the 2000 characters" in messages[4]
