"""Requests that nobody would send: never a 5xx, never a hang, always the documented shape."""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import Live
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "canvas", "prompt": "the cat", "max_tokens": 5},
    "/v1/fim/completions": {"model": "canvas", "prompt": "the", "suffix": "cat", "max_tokens": 3},
    "/v1/chat/completions": {"model": "talker", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5},
    "/v1/infill": {"model": "canvas", "template": "a [[mask:2]] b [[mask:1-2]]"},
    "/v1/edit/completions": {
        "model": "canvas", "messages": [{"role": "user", "content": "<|code_to_edit|>a<|/code_to_edit|>"}],
    },
}  # fmt: skip
FIELDS = (
    *("model", "prompt", "suffix", "messages", "template", "segments", "max_tokens", "temperature", "top_p", "top_k"),
    *("seed", "n", "stop", "stream", "stream_options", "mode", "rule", "threshold", "factor", "entropy_bound"),
    *("block_length", "max_denoising_steps", "remask_budget", "reasoning_effort", "diffusing", "logprobs", "user"),
    *("top_logprobs", "response_format", "structured_outputs", "tools", "tool_choice"),
    *("echo", "presence_penalty", "unheard_of"),
)
HOSTILE = st.one_of(
    st.sampled_from([0, -1, 1, 2, 2**31, 2**63, 10**30, 0.0, -0.0, 1e-300, 1e300, True, False, None, "", "a", [], {}]),
    st.sampled_from(["canvas", "left", "blocks", "talker", "ar", "verify", "diffusion", "random", "factor", "high"]),
    st.sampled_from(["\x00", "\u202e", "🐈" * 50, "[[mask:3]]", "[[mask:1-9999999]]", "<|mask|>", "{{7*7}}", "%s%n"]),
    st.sampled_from([[[]], [{}], [None], [{"mask": 2}], [{"mask": {"min": 1, "max": 9}}, "x"], {"frames": True}]),
    st.text(max_size=30).filter(lambda text: text.isprintable()),
    st.recursive(st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4), max_leaves=12),
)
SENSIBLE: dict[str, list[Any]] = {
    "temperature": [0, 0.7, 2], "top_p": [0.1, 1], "top_k": [0, 3], "seed": [0, -5, 2**40], "n": [1, 3],
    "stop": ["a", ["the", " c"], None], "stream": [True, False], "stream_options": [{"frames": True}, None],
    "max_tokens": [1, 7, 40], "mode": ["diffusion", None], "rule": ["threshold", "random", "quota"],
    "block_length": [1, 2, 9], "max_denoising_steps": [1, 4, 99], "remask_budget": [0, 5], "logprobs": [0, 2, None],
    "reasoning_effort": ["instant", "high"], "diffusing": [True, None], "user": ["me"], "prompt": ["", "a", [5, 6]],
    "segments": [None], "presence_penalty": [0], "echo": [False],
    "response_format": [{"type": "json_object"}, {"type": "text"}], "structured_outputs": [{"regex": "a+|[^a]"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def api(live: Live) -> Any:
    root = live.url.removesuffix("/v1")
    return schemathesis.openapi.from_url(f"{root}/openapi.json")


QUIET = list(HealthCheck)


def fuzz(api: Any, examples: int) -> int:
    """Requests of every operation that hold to its description, and such that do not; how many were sent."""
    sent = 0
    for found in api.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:
            if operation.method == "get" and mode is GenerationMode.NEGATIVE:
                continue

            @settings(max_examples=examples, deadline=None, suppress_health_check=QUIET)
            @given(case=operation.as_strategy(generation_mode=mode))
            def some(case: Any) -> None:
                nonlocal sent
                sent += 1
                case.call_and_validate(checks=CHECKS, timeout=30)

            some()
    return sent


def test_our_own_description_holds(api: Any) -> None:
    assert fuzz(api, 5) > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_our_own_description_holds_for_thousands(api: Any) -> None:
    assert fuzz(api, 800) > 5000


def attack(live: Live, path: str, change: dict[str, Any]) -> int:
    body = {**BODIES[path], **change}
    began = time.monotonic()
    status, reply = live.send(path, json.dumps(body).encode("utf-8", "surrogatepass"))
    assert time.monotonic() - began < 20, body
    assert status < 500, (body, reply)
    if status != 200:
        assert set(reply["error"]) == {"message", "type", "param", "code"}, (body, reply)
        assert 0 < len(reply["error"]["message"]) < 450
        assert reply["error"]["message"].isprintable()
    elif body.get("stream"):
        assert reply.endswith("data: [DONE]\n\n"), (body, reply[-300:])
    return int(status)


sensible = {name: st.sampled_from(values) for name, values in SENSIBLE.items()}
hostile_changes = st.builds(
    lambda usual, odd: {**usual, **odd},
    st.fixed_dictionaries({}, optional=sensible).map(lambda usual: dict(list(usual.items())[:4])),
    st.just({}) | st.dictionaries(st.sampled_from(FIELDS), HOSTILE, max_size=2),
)


@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(path=st.sampled_from(sorted(BODIES)), change=hostile_changes)
def test_hostile_fields(live: Live, path: str, change: dict[str, Any]) -> None:
    attack(live, path, change)


def memory() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_hostile_requests_leave_nothing_behind(live: Live) -> None:
    counts: dict[int, int] = {}

    @settings(max_examples=5000, deadline=None, suppress_health_check=QUIET)
    @given(path=st.sampled_from(sorted(BODIES)), change=hostile_changes)
    def some(path: str, change: dict[str, Any]) -> None:
        status = attack(live, path, change)
        counts[status] = counts.get(status, 0) + 1

    some()
    gc.collect()
    before = memory()
    some()
    gc.collect()
    live.idle()
    assert sum(counts.values()) >= 9000
    assert memory() - before < 64 << 20
    assert not live.server.engine._lanes


def test_nothing_is_left_behind(live: Live) -> None:
    live.idle()
    assert live.server.engine.running == live.server.engine.waiting == 0
    assert not live.server.engine._lanes
