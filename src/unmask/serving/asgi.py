"""Asking an ASGI application without a socket: a request is a value, its answer the messages that it sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive

JSON = ((b"content-type", b"application/json"),)
NOTES = "unmask.notes"  # type of a message of our own, before the last one: what the application notes for the log


@dataclass(frozen=True)
class Asked:
    """A whole request."""

    path: str
    body: bytes = b""
    method: str = "POST"
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = JSON

    def scope(self) -> dict[str, Any]:
        """What an application is told of it."""
        about = {"method": self.method, "path": self.path, "raw_path": self.path.encode(), "query_string": self.query}
        there = {"headers": list(self.headers), "server": ("localhost", None), "client": None, "scheme": "http"}
        return {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "root_path": "", **about, **there}


def replaying(body: bytes, receive: Receive) -> Receive:
    """Gives a body that is there already, then whatever comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def _hung_up() -> Message:
    await asyncio.Event().wait()  # hanging up cancels it
    return {"type": "http.disconnect"}


async def messages(app: ASGIApp, asked: Asked) -> AsyncGenerator[Message, None]:
    """What an application sends, and before the last message its notes. Closing this is hanging up."""
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    scope = asked.scope()
    running = asyncio.ensure_future(app(scope, replaying(asked.body, _hung_up), sent.put))
    running.add_done_callback(lambda _: sent.put_nowait(None))
    last: Message | None = None
    try:
        while (message := await sent.get()) is not None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                last = message
            else:
                yield message
        if last is None:
            await running  # raises why
            raise RuntimeError(f"{asked.path} was not answered")
        yield {"type": NOTES, "notes": scope.get("notes", {})}
        yield last
    finally:
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # answered with 500 already


async def whole(app: ASGIApp, asked: Asked) -> tuple[int, bytes]:
    """Status and body of an answer."""
    status = 0
    body = bytearray()
    async with aclosing(messages(app, asked)) as sent:
        async for message in sent:
            if message["type"] == "http.response.start":
                status = message["status"]
            body += message.get("body", b"")
    return status, bytes(body)
