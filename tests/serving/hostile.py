"""Requests that nobody would send, and what is wrong with an answer to one."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from unmask.errors import MOST

SLOW = 20.0  # seconds after which an answer counts as a hang
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "canvas", "prompt": "the cat", "max_tokens": 5},
    "/v1/fim/completions": {"model": "canvas", "prompt": "the", "suffix": "cat", "max_tokens": 3},
    "/v1/chat/completions": {"model": "talker", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5},
    "/v1/infill": {"model": "canvas", "template": "a [[mask:2]] b [[mask:1-2]]"},
    "/v1/decisions": {"model": "canvas", "input": "the cat", "questions": [{"type": "score", "range": [1, 3]}]},
    "/v1/edit/completions": {
        "model": "canvas", "messages": [{"role": "user", "content": "<|code_to_edit|>a<|/code_to_edit|>"}],
    },
}  # fmt: skip
FIELDS = (
    *("model", "prompt", "suffix", "messages", "template", "segments", "max_tokens", "temperature", "top_p", "top_k"),
    *("seed", "n", "stop", "stream", "stream_options", "mode", "rule", "threshold", "factor", "entropy_bound"),
    *("block_length", "max_denoising_steps", "remask_budget", "reasoning_effort", "diffusing", "logprobs", "user"),
    *("top_logprobs", "response_format", "structured_outputs", "tools", "tool_choice"),
    *("input", "questions", "form", "echo", "presence_penalty", "unheard_of"),
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


sensible = {name: st.sampled_from(values) for name, values in SENSIBLE.items()}
hostile_changes = st.builds(
    lambda usual, odd: {**usual, **odd},
    st.fixed_dictionaries({}, optional=sensible).map(lambda usual: dict(list(usual.items())[:4])),
    st.just({}) | st.dictionaries(st.sampled_from(FIELDS), HOSTILE, max_size=2),
)


def cut_up(body: bytes, cuts: list[tuple[int, bytes]]) -> bytes:
    """A body with other bytes put in at some places."""
    for place, piece in cuts:
        at = place % (len(body) + 1)
        body = body[:at] + piece + body[at + len(piece) // 2 :]
    return body


PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [b"", b"\x00", b"\xff\xfe", b"[" * 500, b'{"a":' * 80, b"NaN", b"1e999", b"9" * 5000, b'"\\ud800"']
    ),
    st.sampled_from([b"x" * 70_000, b'"seed": 1, "seed": 2,', b"-", b"\\", b'"', b"}", b"]", b",", b":", b"\xf0\x9f"]),
)
broken_bodies = st.builds(
    lambda path, cuts: (path, cut_up(json.dumps(BODIES[path]).encode(), cuts)),
    st.sampled_from(sorted(BODIES)),
    st.lists(st.tuples(st.integers(0, 500), PIECES), min_size=1, max_size=4),
)
addresses = st.sampled_from(
    [*sorted(BODIES), "/v1/models", "/v1/models/canvas", "/health", "/metrics", "/docs", "/openapi.json"]
)
odd_heads = st.tuples(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "BREW"]),
    addresses
    | st.builds(
        lambda a, b: a + b,
        addresses,
        st.sampled_from(["/", "//", "/%00", "/..%2f", "?a=%ff", "/%e9%ff"]),
    ),
    st.dictionaries(
        st.sampled_from(["Host", "Content-Type", "Authorization", "Origin", "Accept", "X-Odd", "Expect"]),
        st.sampled_from(
            ["", "x", "text/plain", "application/json; charset=utf-16", "Bearer x", "evil.example", "localhost", "*/*"]
        ),
        max_size=3,
    ),
)


@dataclass(frozen=True)
class Answered:
    status: int
    body: bytes
    kind: str
    seconds: float


def send(port: int, method: str, path: str, body: bytes | None, headers: dict[str, str] | None = None) -> Answered:
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SLOW + 10)
    try:
        given = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, body, {**given, **(headers or {})})
        reply = connection.getresponse()
        return Answered(reply.status, reply.read(), reply.headers.get("content-type", ""), time.monotonic() - began)
    finally:
        connection.close()


def fault(answer: Answered, streamed: bool = False) -> str:
    """What is wrong with an answer; nothing where it is as documented."""
    if answer.status >= 500:
        return f"status {answer.status}"
    if answer.seconds > SLOW:
        return f"{answer.seconds:.0f} seconds"
    if answer.status == 200 and streamed and not answer.body.endswith(b"data: [DONE]\n\n"):
        return "a stream without its end"
    if answer.status < 400 or not answer.kind.startswith("application/json") or not answer.body:
        return ""
    error = json.loads(answer.body).get("error", {})
    if set(error) != {"message", "type", "param", "code"}:
        return "not the shape of an error"
    message = error["message"]
    return "" if 0 < len(message) <= MOST and message.isprintable() else f"the sentence {message!r}"


def hostile_request(path: str, change: dict[str, Any]) -> tuple[bytes, bool]:
    """A body, and whether it asks for a stream."""
    body = {**BODIES[path], **change}
    return json.dumps(body).encode("utf-8", "surrogatepass"), bool(body.get("stream"))
