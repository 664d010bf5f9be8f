"""A running server, as tests talk to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from unmask.lm import DiffusionLM
from unmask.serving.server import Server


@dataclass
class Live:
    """A running server and the models it serves."""

    server: Server
    url: str
    port: int
    models: dict[str, DiffusionLM]
    thread: threading.Thread = field(repr=False)

    def send(
        self, path: str, body: Any = None, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and body of a request; bodies that are not bytes are sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if raw is not None else {}
        connection.request(method or ("GET" if raw is None else "POST"), path, raw, {**kind, **(headers or {})})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        told = answer.headers.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(data) if told else data.decode()

    def idle(self, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while not self.server.engine.idle:
            assert time.monotonic() < until, "the engine is still busy"
            time.sleep(0.005)
