"""The router before replicas: it holds the clients' connections and asks another replica where one dies."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from unmask.serving.api import errors
from unmask.serving.api.access import note
from unmask.serving.api.dialect import event
from unmask.serving.api.errors import BUSY, APIError
from unmask.serving.api.execution import ClientGone, unless_gone
from unmask.serving.api.strict_json import parse
from unmask.serving.asgi import NOTES, Asked
from unmask.serving.engine import Refused
from unmask.serving.metrics import CONTENT_TYPE, Metrics

log = logging.getLogger("unmask.serving")
STREAMS = (b"text/event-stream", b"application/x-ndjson")
SEEDED = tuple(f"/v1/{name}" for name in ("chat/completions", "completions", "infill"))
SEEDED += tuple(f"/v1/{name}/completions" for name in ("fim", "edit", "apply"))
TRIES = 3  # replicas that one request may outlive
KEPT = (b"authorization", b"content-length", b"host")  # headers that are checked in front and not sent on


class ReplicaDied(Exception):
    """A replica is gone, and with it what it was answering."""


class Router:
    """An ASGI application that has every request answered by a replica, and by another one where that dies."""

    def __init__(
        self, ask: Callable[[Asked], AsyncGenerator[Message, None]], names: list[str], seconds: float, metrics: Metrics
    ) -> None:
        """ask: what a replica sends in answer; it raises ReplicaDied, and Refused where all are full.
        seconds: within which an answer has to begin."""
        self.ask = ask
        self.names = names
        self.seconds = seconds
        self.metrics = metrics
        self.closing = False
        self.failing = False
        self.tasks: set[asyncio.Task[None]] = set()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health":
            state = {"status": "closing" if self.closing else "ok", "models": self.names}
            counts = {"running": len(self.tasks), "waiting": 0}
            return await JSONResponse({**state, **counts}, 503 if self.closing else 200)(scope, receive, send)
        if scope["path"] == "/metrics":
            return await Response(self.metrics.render(None), media_type=CONTENT_TYPE)(scope, receive, send)
        asked = await _asked(scope, receive)
        self.loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(self._answer(asked, scope, send))
        self.tasks.add(task)
        try:
            await unless_gone(Request(scope, receive), task)
        except ClientGone:
            pass
        except Exception as error:
            if not isinstance(error, APIError | Refused | TimeoutError):
                log.exception("a request failed")
            await errors.of(error).response()(scope, receive, send)
        finally:
            self.tasks.discard(task)

    async def _answer(self, asked: Asked, scope: Scope, send: Send) -> None:
        """Asks replicas until one has answered. What has begun is not begun again: it ends with an error event."""
        if self.closing:
            raise Refused("the server is shutting down", "closing")
        async with asyncio.timeout(self.seconds) as limit:
            for _ in range(TRIES):
                held: list[Message] | None = []  # None once the client has been sent some of the answer
                try:
                    async with aclosing(self.ask(asked)) as sent:
                        async for message in sent:
                            if message["type"] == NOTES:
                                self._note(scope, message["notes"])
                            elif held is None:
                                await send(message)
                            else:
                                held.append(message)
                                if _can_begin(held):
                                    ready = held
                                    held = None
                                    limit.reschedule(None)  # from here on the replica's own limit holds
                                    for part in ready:
                                        await send(part)
                    return
                except (ReplicaDied, asyncio.CancelledError) as error:
                    if isinstance(error, ReplicaDied):
                        reason = "the replica that wrote this has died; ask again"
                    elif self.failing:
                        reason = "the server is shutting down"
                    else:
                        raise
                    failed = APIError(503, reason, BUSY)
                    if held is None:
                        return await send({"type": "http.response.body", "body": event(failed.body())})
                    if self.failing:
                        raise failed from None
                    self.metrics.retries.inc()
                    log.warning("a replica died; what it was answering is asked of another")
        raise APIError(503, f"{TRIES} replicas died while they answered this request", BUSY)

    def _note(self, scope: Scope, notes: dict[str, Any]) -> None:
        note(scope, **notes)
        if "tokens" in notes:
            usage = {"prompt_tokens": notes["prompt"], "completion_tokens": notes["tokens"]}
            self.metrics.used(notes["model"], usage)

    def close(self, grace: float = 0.0) -> bool:
        """Takes nothing more, lets what there is finish for `grace` seconds, fails the rest. Whether all finished.
        Called from another thread than the one that serves."""
        self.closing = True
        until = time.monotonic() + grace
        while self.tasks and time.monotonic() < until:
            time.sleep(0.01)
        finished = not self.tasks
        if self.loop is not None and not finished:
            self.failing = True
            self.loop.call_soon_threadsafe(lambda: [task.cancel() for task in self.tasks])
        return finished


def _can_begin(held: list[Message]) -> bool:
    """Whether an answer may be sent on: a stream with its first event, anything else when it is complete."""
    last = held[-1]
    if last["type"] != "http.response.body":
        return False
    kind = dict(held[0]["headers"]).get(b"content-type", b"")
    return kind.startswith(STREAMS) or not last.get("more_body", False)


async def _asked(scope: Scope, receive: Receive) -> Asked:
    """The request, with a seed: whichever replica answers, the text is the same."""
    body = (await receive()).get("body", b"") if scope["method"] in ("POST", "PUT", "PATCH") else b""
    if body:
        try:
            value = parse(body)
        except APIError:
            value = None  # the replica says what is wrong
        if scope["path"] in SEEDED and isinstance(value, dict) and value.get("seed") is None:
            body = json.dumps({**value, "seed": secrets.randbits(31)}).encode()
    headers = tuple((name, value) for name, value in scope["headers"] if name not in KEPT)
    return Asked(scope["path"], body, scope["method"], scope["query_string"], headers)
