"""Bad input: a 4xx in OpenAI's shape with one clear sentence, and the next request is served."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
from live_server import Live

from unmask.serving.api.settings import Settings
from unmask.serving.engine import Limits

TEXT: dict[str, Any] = {"model": "canvas", "prompt": "the cat", "max_tokens": 4}
CHAT: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
FILL: dict[str, Any] = {"model": "canvas", "template": "a [[mask:2]] b"}


def refused(live: Live, path: str, body: Any, status: int = 400) -> str:
    """Asserts that a body is refused as it should be; gives the sentence."""
    got, reply = live.send(path, body)
    assert got == status, reply
    assert set(reply) == {"error"}
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    message = reply["error"]["message"]
    assert message
    assert "\n" not in message
    assert len(message) < 300
    assert live.send("/v1/completions", TEXT)[0] == 200
    return str(message)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no body"),
        (b"{", "not JSON"),
        (b"[1, 2", "not JSON"),
        (b'{"prompt": "a"} x', "not JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": Infinity}', "Infinity"),
        (b'{"temperature": 1e999}', "too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b"[" * 100000, "nested"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested"),
        (b"[]", "body"),
        (b'"text"', "body"),
        (b"null", "body"),
    ],
)
def test_bodies_that_are_no_request(live: Live, raw: bytes, says: str) -> None:
    assert says in refused(live, "/v1/completions", raw)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"max_tokens": 1e9}, "max_tokens"),
        ({"max_tokens": 10**7}, "max_tokens"),
        ({"max_tokens": 500}, "do not fit the canvas"),
        ({"max_tokens": "4"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 9}, "one request may ask for 8"),
        ({"seed": 2**60}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "field 'stop' holds 5 entries, and at most 4 are taken"),
        ({"Model": "canvas"}, "field 'Model' is unknown to this server"),
        ({"1": 0}, "field '1' is unknown to this server"),
        ({"list": 0}, "field 'list' is unknown to this server"),
        ({"prompt": "a " * 70, "suffix": "b " * 70}, "prompt and suffix are "),
        ({"stop": ""}, "stop"),
        ({"stop": ["x" * 1000]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"mode": "ar"}, "mode"),
        ({"mode": "fast"}, "mode"),
        ({"rule": "greedy"}, "rule"),
        ({"threshold": 0.5}, "field 'threshold' changes nothing: model"),
        ({"rule": "factor", "entropy_bound": 1.0}, "entropy_bound"),
        ({"max_denoising_steps": 0}, "max_denoising_steps"),
        ({"block_length": 0}, "block_length"),
        ({"diffusing": True}, "stream"),
        ({"stream_options": {"frames": True}}, "stream"),
        ({"stream_options": {"speed": 1}, "stream": True}, "stream_options.speed"),
        ({"stream": True, "diffusing": True, "stream_options": {"frames": True}}, "diffusing"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"logit_bias": {"a": 3}}, "logit_bias"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, 2, 100000]}, "vocabulary"),
        ({"prompt": [-1]}, "vocabulary"),
        ({"prompt": ["a"] * 9}, "one request may ask for 8"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "the " * 400}, "fit"),
        ({"model": "gone\n\x00"}, "not served"),
        ({"response_format": {"type": "json_object"}, "max_tokens": 1}, "1 new tokens are too few"),
        ({"response_format": {"type": "regex", "pattern": "(a+)+"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "a json_schema goes with type json_schema"),
        ({"response_format": {"type": "json_object"}, "stop": "a"}, "stop would cut"),
        ({"response_format": {"type": "json_object"}, "suffix": "a"}, "cannot be honoured with a suffix"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "together"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs: regular expression '(a'"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a"}, "model": "noisy", "prompt": "w1"}, "decodes by 'NoneType'"),
        ({"suffix": "b", "prompt": ["a", "b"]}, "prompt"),
        ({"stop_token_ids": [-1], "min_tokens": 1}, "stop_token_ids names token -1, outside the vocabulary"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids names token 1000000"),
        ({"min_tokens": 50}, "min_tokens is 50, more than the"),
        ({"guided_json": "{"}, "guided_json is a text that is not JSON"),
        ({"guided_json": "[" * 60_000}, "guided_json is a text that is not JSON"),
        ({"structured_outputs": {"json": "a"}}, "structured_outputs is a text that is not JSON"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be_honoured(live: Live, change: dict[str, Any], names: str) -> None:
    status = 404 if "gone" in change.get("model", "") else 400
    assert names in refused(live, "/v1/completions", {**TEXT, **change}, status)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
        ({"messages": "hello"}, "field 'messages': "),
        ({"messages": [{"role": "user", "content": "x", "Name": "y"}]}, "field 'messages.0.Name' is unknown"),
        ({"messages": [{"role": "user", "content": "x", "refusal": "y"}]}, "cannot honour it; leave it out"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "tool"),
        ({"max_completion_tokens": 9}, "max_completion_tokens"),
        ({"mode": "ar", "threshold": 0.5}, "field 'threshold' changes nothing: model"),
        ({"mode": "verify", "reasoning_effort": "low"}, "reasoning_effort"),
        ({"mode": "verify", "block_length": 1}, "block_length"),
        ({"mode": "ar", "block_length": 4}, "block_length"),
        ({"block_length": 64}, "block_length"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 30}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice needs tools"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "json_schema"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"model": "canvas"}, "chat template"),
    ],
)  # fmt: skip
def test_dialogues_that_cannot_be_answered(live: Live, change: dict[str, Any], names: str) -> None:
    assert names in refused(live, "/v1/chat/completions", {**CHAT, **change})


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"template": "no gap"}, "no gap"),
        ({"template": None, "segments": ["only text"]}, "no gap"),
        ({"segments": ["a", {"mask": 2}]}, "one of the fields"),
        ({"template": None}, "one of the fields"),
        ({"template": "[[mask:0]]"}, "impossible"),
        ({"template": "[[mask:5-2]]"}, "impossible"),
        ({"template": "[[mask:200]]"}, "fit"),
        ({"template": "[[mask:1-999999]]" * 2000}, "lengths"),
        ({"template": "[[mask:999999]]" * 2000}, "fit"),
        ({"template": "a [[mask:1-60]]"}, "at most 32"),
        ({"template": None, "segments": [{"mask": -1}]}, "segments"),
        ({"template": None, "segments": [{"mask": {"min": 3, "max": 1}}]}, "range"),
        ({"template": None, "segments": [{"mask": 2**20}] * 4000}, "fit"),
        ({"mode": "diffusion"}, "mode"),
        ({"max_tokens": 3}, "max_tokens"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_filled(live: Live, change: dict[str, Any], names: str) -> None:
    body = {name: value for name, value in {**FILL, **change}.items() if value is not None}
    assert names in refused(live, "/v1/infill", body)


@pytest.mark.parametrize("text", ["\x00\x01\x7f", "\u202e\ufeff\u0000", "👩‍👧" * 5, "<|endoftext|><|mask|>", " " * 50])
def test_odd_characters_are_text(live: Live, text: str) -> None:
    status, reply = live.send("/v1/completions", {**TEXT, "prompt": text})
    assert status == 200, reply
    status, reply = live.send("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": text}]})
    assert status == 200, reply


def test_a_hundred_megabytes_are_refused(live: Live) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
    piece = b"x" * (1 << 20)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(100 << 20))
    connection.endheaders()
    for _ in range(100):
        connection.send(piece)
    answer = connection.getresponse()
    assert answer.status == 413
    assert "larger" in json.loads(answer.read())["error"]["message"]
    assert live.send("/v1/completions", TEXT)[0] == 200


def test_addresses_methods_and_types(live: Live) -> None:
    assert live.send("/v1/nothing")[0] == 404
    assert live.send("/v1/chat/completions")[0] == 405
    for status, reply in (live.send("/v1/nothing", {}), live.send("/health", {})):
        assert status in (404, 405)
        assert "error" in reply
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert live.send("/v1/completions", TEXT, headers={"Content-Type": kind})[0] == 415
    assert live.send("/v1/models", headers={"Host": "evil.example"})[0] == 421
    assert live.send("/v1/models", headers={"Host": f"localhost:{live.port}"})[0] == 200
    assert live.send("/v1/completions", TEXT, headers={"Origin": "http://evil.example"})[0] == 200
    assert "access-control-allow-origin" not in str(live.send("/health"))


def test_a_time_limit_is_told(start: Any) -> None:
    slow = start(Limits(slots=2), Settings(seconds=0.0))
    status, reply = slow.send("/v1/completions", TEXT)
    assert (status, reply["error"]["code"]) == (408, "timeout")
    _, body = slow.send("/v1/completions", {**TEXT, "stream": True})
    assert "longer than the server allows" in str(body)
    slow.idle()


def test_bounds_are_told(start: Any) -> None:
    small = start(Limits(slots=2), Settings(n=1, prompt_tokens=3))
    assert small.send("/v1/completions", {**TEXT, "prompt": [5, 6, 7, 8]})[0] == 400
    assert small.send("/v1/completions", {**TEXT, "prompt": [5, 6, 7], "n": 2})[0] == 400
    assert small.send("/v1/completions", {**TEXT, "prompt": [5, 6, 7]})[0] == 200
