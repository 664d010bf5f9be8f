"""What stands before every request: keys, host names, the size of bodies, and a line in the log.

A plain ASGI wrapper, so that streams pass through untouched.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unmask.errors import UnmaskError
from unmask.serving.api import errors
from unmask.serving.api.errors import APIError
from unmask.serving.api.settings import Settings
from unmask.serving.asgi import replaying
from unmask.serving.metrics import Metrics

log = logging.getLogger("unmask.serving")
OPEN = ("/", "/health", "/version", "/docs", "/openapi.json", "/playground/")  # need no key, and hold no secrets
DISCARDED = 1 << 28  # bytes of a body that is too large are read and forgotten, so that the client sees the answer
BODY_SECONDS = 60.0
ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.\-\[\]:]+")


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


def local_hosts(host: str, others: Sequence[str] = ()) -> tuple[str, ...]:
    """Names that a server on a loopback address answers to: a web page must not reach it under its own name.

    Args:
        host: The address that the server listens at.
        others: Further names, such as that of a reverse proxy.
    """
    names = {"localhost", "127.0.0.1", "[::1]", *(name.lower() for name in others)}
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return tuple(sorted({*names, f"[{host}]" if ":" in host else host})) if local else ()


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Origins of web pages that may ask; raises UnmaskError for one that no browser would send."""
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise UnmaskError(f"'{origin}' is no origin of a web page; write it as https://app.example or * for all")
    return tuple(origins)


class AccessControl:
    """Checks a request's head, bounds its body, and notes how it ended."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.digests = [hashlib.sha256(key.encode()).digest() for key in settings.keys]

    @staticmethod
    def around(app: ASGIApp, settings: Settings, metrics: Metrics) -> ASGIApp:
        """The application behind these checks; pages of some origins may read every answer of it."""
        checked = AccessControl(app, settings, metrics)
        if not settings.origins:
            return checked
        return CORSMiddleware(checked, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.perf_counter()
        status = 0
        notes = dict[str, Any]()
        method = scope["method"]
        scope["notes"] = notes
        scope["method"] = "GET" if method == "HEAD" else method

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_head(scope, headers)
            body = await self._body(scope, headers, receive)
            await self.app(scope, replaying(body, receive), noting)
        except BaseException as error:
            answer = errors.of(error)
            if type(error).__name__ == "PanicException":  # of a library in Rust; no Exception to Python
                answer = APIError(500, "a library gave up on this text; it is in the server's log", errors.FAULT)
            elif not isinstance(error, Exception):
                raise
            if answer.status == 500:
                log.exception("a request failed")
            if not status:
                await answer.response(scope["path"])(scope, receive, noting)
        finally:
            seconds = time.perf_counter() - began
            self.metrics.answered(scope["path"], status, seconds)
            noted = " ".join(f"{name}={value}" for name, value in notes.items())
            # clients write their own paths: no control character of theirs reaches a terminal or makes a line
            path = scope["path"][:80].encode("unicode_escape").decode()
            log.info("%s %s %d %.3fs %s", method[:20], path, status, seconds, noted)

    def _check_head(self, scope: Scope, headers: dict[str, str]) -> None:
        absolute = re.match(r"https?://([^/]*)", scope["path"])  # as proxies write it
        if absolute is not None:
            headers["host"] = absolute[1]
            scope["path"] = scope["path"][absolute.end() :] or "/"
            scope["raw_path"] = scope["path"].encode()
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if self.settings.hosts and name.lower() not in self.settings.hosts:
            message = "this server answers under its local names only; start it with --allow-host NAME to change that"
            raise APIError(421, message)
        path = scope["path"]
        free = path in OPEN or path.startswith(OPEN[-1])
        if not self.digests or (free and scope["method"] == "GET") or scope["method"] == "OPTIONS":
            return
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode("latin-1")).digest()
        # every key is compared, each in constant time
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        if not any(matches):
            message = "the API key is missing or unknown; send it as 'Authorization: Bearer KEY'"
            raise APIError(401, message, "authentication_error", code="invalid_api_key")

    async def _body(self, scope: Scope, headers: dict[str, str], receive: Receive) -> bytes:
        """The whole body; one that is too large or too slow raises APIError."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return b""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        most = self.settings.body_bytes
        parts = list[bytes]()
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in Request(scope, receive).stream():
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    elif size > DISCARDED:
                        break
        except ClientDisconnect:
            raise APIError(400, "the body ended early") from None
        except TimeoutError:
            raise APIError(408, "the body came too slowly") from None
        too_large = APIError(413, f"the body is larger than the {most} bytes that this server takes")
        if size > most:
            raise too_large
        if kind != "application/json":  # also what a foreign web page can send without asking
            raise APIError(415, "send the body as 'Content-Type: application/json'")
        coding = headers.get("content-encoding", "identity").strip().lower()
        body = b"".join(parts)
        if coding == "identity":
            return body
        if coding not in ("gzip", "deflate"):
            raise APIError(415, "send the body as it is, or with Content-Encoding gzip or deflate")
        reader = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either kind, by its head
        try:
            body = reader.decompress(body, most + 1)
        except zlib.error:
            raise APIError(400, f"the body is not {coding}, as its Content-Encoding says") from None
        if len(body) > most:
            raise too_large
        if not reader.eof:
            raise APIError(400, f"the body's {coding} ends early")
        return body


def note(scope: Scope, **what: Any) -> None:
    """Adds to the request's line in the log."""
    scope.setdefault("notes", {}).update({name: value for name, value in what.items() if value is not None})
