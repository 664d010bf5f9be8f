"""An application asked without a socket, and the front before replicas that may die."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from live_server import value
from starlette.types import Message, Receive, Scope, Send

from unmask.lm import DiffusionLM
from unmask.serving.asgi import NOTES, Asked, messages, whole
from unmask.serving.engine import Limits, Refused
from unmask.serving.metrics import Metrics
from unmask.serving.router import ReplicaDied, Router, _asked
from unmask.serving.server import make_app

PATH = "/v1/completions"


def asked(**body: Any) -> Asked:
    return Asked(PATH, json.dumps({"model": "canvas", "prompt": "the cat", "max_tokens": 6, **body}).encode())


@pytest.fixture(scope="module")
def app(served_models: dict[str, DiffusionLM]) -> Any:
    made, engine = make_app(served_models, Limits(slots=4, queue=8))
    yield made
    engine.close()


def front(ask: Callable[[Asked], AsyncGenerator[Message, None]], seconds: float = 20.0) -> Router:
    return Router(ask, ["canvas"], seconds, Metrics([PATH]))


def dying(app: Any, *lives: int) -> tuple[Callable[[Asked], AsyncGenerator[Message, None]], list[Asked]]:
    """Asks an application; the first replicas die after so many messages. And what they were asked."""
    left, heard = list(lives), list[Asked]()

    async def ask(request: Asked) -> AsyncGenerator[Message, None]:
        heard.append(request)
        most = left.pop(0) if left else 10**6
        async with aclosing(messages(app, request)) as sent:
            async for message in sent:
                if not most:
                    raise ReplicaDied
                most -= 1
                yield message

    return ask, heard


def test_answer_is_the_servers(app: Any) -> None:
    status, body = asyncio.run(whole(app, asked(seed=3)))
    assert status == 200
    again = asyncio.run(whole(app, asked(seed=3)))
    assert json.loads(again[1])["choices"] == json.loads(body)["choices"]
    status, body = asyncio.run(whole(app, Asked(PATH, b"{")))
    assert status == 400
    assert "not JSON" in json.loads(body)["error"]["message"]


def test_notes_come_before_the_last_message(app: Any) -> None:
    async def go() -> list[Message]:
        return [message async for message in messages(app, asked(stream=True))]

    sent = asyncio.run(go())
    assert [message["type"] for message in sent[-2:]] == [NOTES, "http.response.body"]
    assert sent[-2]["notes"]["model"] == "canvas"
    assert sent[-2]["notes"]["tokens"] <= 6


def test_hanging_up_gives_the_slot_back(served_models: dict[str, DiffusionLM]) -> None:
    made, engine = make_app(served_models, Limits(slots=4, queue=8))

    async def go() -> None:
        async with aclosing(messages(made, asked(stream=True, max_tokens=100, diffusing=True))) as sent:
            await anext(sent)
            await anext(sent)

    asyncio.run(go())
    until = time.monotonic() + 10
    while not engine.idle:
        assert time.monotonic() < until
        time.sleep(0.01)
    engine.close()


def test_application_that_fails_says_so() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def wrong(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("oh")

    with pytest.raises(RuntimeError, match="was not answered"):
        asyncio.run(whole(silent, asked()))
    with pytest.raises(ValueError, match="oh"):
        asyncio.run(whole(wrong, asked()))


@pytest.mark.parametrize("life", [0, 1, 2])
def test_whole_answer_is_asked_of_another(app: Any, life: int) -> None:
    ask, heard = dying(app, life, life)
    before = front(ask)
    status, body = asyncio.run(whole(before, asked()))
    assert status == 200
    assert value(before.metrics.retries, "_total") == 2
    assert len(heard) == 3
    assert len({request.body for request in heard}) == 1  # the seed is settled before the first is asked
    assert json.loads(heard[0].body)["seed"] == json.loads(body)["seed"]
    assert 'unmask_useful_tokens_total{model="canvas"}' in before.metrics.render(None).decode()


def test_request_that_outlives_three_replicas_is_given_up(app: Any) -> None:
    ask, heard = dying(app, 1, 1, 1, 1)
    status, body = asyncio.run(whole(front(ask), asked()))
    assert (status, len(heard)) == (503, 3)
    assert "3 replicas died" in json.loads(body)["error"]["message"]


def test_stream_that_has_begun_ends_with_an_error_event(app: Any) -> None:
    ask, heard = dying(app, 2)
    status, body = asyncio.run(whole(front(ask), asked(stream=True, diffusing=True)))
    assert (status, len(heard)) == (200, 1)
    events = [json.loads(part.removeprefix("data: ")) for part in body.decode().strip().split("\n\n")]
    assert "choices" in events[0]
    assert "has died" in events[-1]["error"]["message"]
    assert [*("error" in each for each in events)].count(True) == 1


def test_stream_that_has_not_begun_is_asked_of_another(app: Any) -> None:
    ask, heard = dying(app, 1)
    status, body = asyncio.run(whole(front(ask), asked(stream=True)))
    assert (status, len(heard)) == (200, 2)
    assert body.endswith(b"data: [DONE]\n\n")
    assert body.count(b'"finish_reason":"') == 1


def test_errors_of_a_replica_are_passed_on_and_full_ones_said(app: Any) -> None:
    ask, heard = dying(app)
    status, body = asyncio.run(whole(front(ask), asked(threshhold=1)))
    assert (status, json.loads(body)["error"]["param"]) == (400, "threshhold")
    status, body = asyncio.run(whole(front(ask), Asked(PATH, b"[1")))
    assert (status, heard[-1].body) == (400, b"[1")

    async def full(request: Asked) -> AsyncGenerator[Message, None]:
        raise Refused("all replicas are full", "full")
        yield {}

    assert asyncio.run(whole(front(full), asked()))[0] == 429


def test_replica_that_does_not_begin_in_time_is_408() -> None:
    hung_up = []

    async def slow(request: Asked) -> AsyncGenerator[Message, None]:
        try:
            await asyncio.sleep(30)
            yield {}
        finally:
            hung_up.append(True)

    assert asyncio.run(whole(front(slow, 0.05), asked()))[0] == 408
    assert hung_up == [True]


@pytest.mark.parametrize("begun", [False, True])
def test_closing_fails_what_runs(begun: bool) -> None:
    async def endless(request: Asked) -> AsyncGenerator[Message, None]:
        yield {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        if begun:
            yield {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
        await asyncio.sleep(30)

    before = front(endless)
    closer = threading.Timer(0.1, before.close, (0.05,))
    closer.start()
    status, body = asyncio.run(whole(before, asked()))
    assert status == (200 if begun else 503)
    assert "shutting down" in body.decode()
    assert asyncio.run(whole(before, asked()))[0] == 503
    status, body = asyncio.run(whole(before, Asked("/health", method="GET")))
    assert (status, json.loads(body)["status"]) == (503, "closing")


def test_health_of_the_front_is_as_the_servers(served_models: dict[str, DiffusionLM], app: Any) -> None:
    own = json.loads(asyncio.run(whole(app, Asked("/health", method="GET")))[1])
    ours = json.loads(asyncio.run(whole(front(dying(app)[0]), Asked("/health", method="GET")))[1])
    assert own.keys() == ours.keys()


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat", "/tokenize", "/v1/responses"])
def test_requests_without_a_seed_go_on_as_they_came(path: str) -> None:
    body = b'{"model": "talker", "messages": []}'

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    assert asyncio.run(_asked(scope, receive)).body == body
    seeded = asyncio.run(_asked({**scope, "path": "/v1/chat/completions"}, receive)).body
    assert isinstance(json.loads(seeded)["seed"], int)
