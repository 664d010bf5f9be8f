"""A running server, as tests talk to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from unmask.lm import DiffusionLM
from unmask.serving.engine import Batch
from unmask.serving.server import Server


@dataclass
class Gate:
    """How far an engine's batches may go: so many steps each, and every one takes so many seconds at least."""

    steps: float
    pause: float


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

    @contextmanager
    def gated(self, steps: float = float("inf"), pause: float = 0.0) -> Iterator[Gate]:
        """Holds the engine to a gate, so that what a test sees does not depend on how fast a model is.

        Requests that an earlier test left behind must be gone: their steps would be counted as the next ones'.
        """
        self.idle()
        engine, gate, taken = self.server.engine, Gate(steps, pause), Counter[Batch]()
        step = engine._step

        def held(batch: Batch) -> None:
            if taken[batch] >= gate.steps:
                time.sleep(0.001)
                return
            taken[batch] += 1
            time.sleep(gate.pause)
            step(batch)

        engine._step = held  # type: ignore[method-assign]
        try:
            yield gate
        finally:
            engine._step = step  # type: ignore[method-assign]


def value(metric: MetricWrapperBase, sample: str, **labels: str) -> float:
    """The value of one sample of a metric: `_total`, `_sum`, `_count` or `_bucket`."""
    samples = [one for family in metric.collect() for one in family.samples]
    found = [one.value for one in samples if one.name.endswith(sample) and one.labels == labels]
    return found[0] if found else 0.0
