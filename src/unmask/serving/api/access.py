"""What stands before every request: keys, host names, the size of bodies, and a line in the log.

A plain ASGI wrapper, so that streams pass through untouched.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unmask.errors import UnmaskError
from unmask.serving.api import assets
from unmask.serving.api.errors import APIError
from unmask.serving.metrics import Metrics

log = logging.getLogger("unmask.serving")
OPEN = ("/health",)  # needs no key, and neither does the playground: it asks for one
THROWN_AWAY = 1 << 28  # bytes of a body that is too large are read and forgotten, so that the client sees the answer
BODY_SECONDS = 60.0


@dataclass(frozen=True)
class AccessRules:
    """Who may ask what."""

    keys: tuple[str, ...] = ()  # none: everybody
    body_bytes: int = 1 << 20
    hosts: tuple[str, ...] = ()  # names a request may call the server by; none: any
    log_prompts: bool = False


def read_keys(path: Path) -> tuple[str, ...]:
    """API keys of a file, one a line; lines that begin with # are comments. A file without a key is refused."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UnmaskError(f"API keys cannot be read from {path} ({error})") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UnmaskError(f"{path} holds no API key; write one a line")
    return keys


def local_hosts(host: str) -> tuple[str, ...]:
    """Names that a server on a loopback address answers to: a web page must not reach it under its own name."""
    names = {"localhost", "127.0.0.1", "[::1]"}
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return tuple(sorted({*names, f"[{host}]" if ":" in host else host})) if local else ()


class AccessControl:
    """Checks a request's head, bounds its body, and notes how it ended."""

    def __init__(self, app: ASGIApp, rules: AccessRules, metrics: Metrics) -> None:
        self.app, self.rules, self.metrics = app, rules, metrics
        self.digests = [hashlib.sha256(key.encode()).digest() for key in rules.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status, notes = time.perf_counter(), 0, dict[str, Any]()
        scope["notes"] = notes

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                self._check_head(scope, headers)
                body = await self._body(scope, headers, receive)
            except APIError as error:
                return await error.response()(scope, receive, noting)
            await self.app(scope, _replaying(body, receive), noting)
        finally:
            self.metrics.answered(scope["path"], status, time.perf_counter() - began)
            told = " ".join(f"{name}={value}" for name, value in notes.items())
            seconds = time.perf_counter() - began
            log.info("%s %s %d %.3fs %s", scope["method"], scope["path"][:80], status, seconds, told)

    def _check_head(self, scope: Scope, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if self.rules.hosts and name.lower() not in self.rules.hosts:
            raise APIError(421, "this server answers under its local names only; start it with --host to change that")
        free = scope["path"] in OPEN or (assets.holds(scope["path"]) and scope["method"] in ("GET", "HEAD"))
        if self.digests and not free and scope["method"] != "OPTIONS":
            kind, _, key = headers.get("authorization", "").partition(" ")
            given = hashlib.sha256(key.strip().encode("latin-1")).digest()
            # every key is compared, each in constant time
            matches = [hmac.compare_digest(given, digest) for digest in self.digests]
            if kind.lower() != "bearer" or not any(matches):
                message = "the API key is missing or unknown; send it as 'Authorization: Bearer KEY'"
                raise APIError(401, message, "authentication_error", code="invalid_api_key")

    async def _body(self, scope: Scope, headers: dict[str, str], receive: Receive) -> bytes:
        """The whole body; one that is too large or too slow raises APIError."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return b""
        kind, most = headers.get("content-type", "").partition(";")[0].strip().lower(), self.rules.body_bytes
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise APIError(400, "the body ended early")
                    size += len(message.get("body", b""))
                    if size <= most:
                        parts.append(message.get("body", b""))
                    elif size > THROWN_AWAY:
                        break
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise APIError(408, "the body came too slowly") from None
        if size > most:
            raise APIError(413, f"the body is larger than the {most} bytes that this server takes")
        if kind != "application/json":  # also what a foreign web page can send without asking
            raise APIError(415, "send the body as 'Content-Type: application/json'")
        return b"".join(parts)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, then whatever comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def note(scope: Scope, **what: Any) -> None:
    """Adds to the request's line in the log."""
    scope.setdefault("notes", {}).update({name: value for name, value in what.items() if value is not None})
