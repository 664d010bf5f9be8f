"""What /metrics reports: the engine's figures and those of HTTP, in Prometheus' text format."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase

from unmask.canvas import Frame

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RATE_SECONDS = 10.0  # over which a rate is the current one
disable_created_metrics()  # type: ignore[no-untyped-call]


class EngineMetrics:
    """What an engine has done since it started. Tokens are those committed, beyond an end of text too."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.tokens = _by_model("committed_tokens", "Tokens that steps committed.", registry)
        self.steps = _by_model("steps", "Forward passes.", registry)
        self.row_steps = _by_model("request_steps", "Forward passes, once for every request in them.", registry)
        self.seconds = _by_model("step_seconds", "Seconds spent in forward passes.", registry)
        self.batch = _histogram("batch_size", "Requests in a forward pass.", (1, 2, 4, 8, 16, 32, 64, 128), registry)
        self.per_step = _histogram(
            "tokens_per_step", "Tokens that a request got from a step.", (0, 1, 2, 3, 4, 8, 16, 32, 64), registry
        )
        self.accepted = _histogram(
            "drafts_kept", "Drafts that held at a check (mode verify).", (0, 1, 2, 3, 4, 8, 16, 32), registry
        )
        self.queued = _histogram("queue_seconds", "Seconds in line.", (0.001, 0.01, 0.1, 1, 5, 10, 30, 60), registry)
        self._gauge("tokens_per_second", "Committed tokens, last 10 s.", self.rate)
        self._recent: deque[tuple[float, int]] = deque(maxlen=4096)

    def watch(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Reports how many requests run and wait."""
        self._gauge("running", "Requests in a slot.", running)
        self._gauge("waiting", "Requests in line.", waiting)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"unmask_{name}", text, registry=self.registry).set_function(value)

    def stepped(self, model: str, seconds: float, rows: int, frames: list[Frame]) -> None:
        """Notes one forward of `rows` requests, of which `frames` changed."""
        written = [sum(kind in ("unmask", "insert") for kind in frame.kinds) for frame in frames]
        self.steps.labels(model).inc()
        self.row_steps.labels(model).inc(rows)
        self.tokens.labels(model).inc(sum(written))
        self.seconds.labels(model).inc(seconds)
        self.batch.observe(rows)
        for count in (*written, *[0] * (rows - len(written))):
            self.per_step.observe(count)
        self._recent.append((time.monotonic(), sum(written)))

    def rate(self) -> float:
        """Tokens a second over the last seconds."""
        since = time.monotonic() - RATE_SECONDS
        return sum(count for moment, count in list(self._recent) if moment >= since) / RATE_SECONDS


class Metrics:
    """What a server has answered."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.paths = set(paths)  # others are counted together: anybody can make addresses up
        registry = CollectorRegistry()
        self.registry = registry
        self.requests = Counter("unmask_requests", "Answered requests.", ["path", "status"], registry=registry)
        about = "Seconds from a request's head to the end of its answer."
        self.seconds = _histogram("request_seconds", about, SECONDS, registry)
        self.first_text = _histogram("first_text_seconds", "Seconds to the first text of a stream.", SECONDS, registry)
        self.prompt_tokens = _by_model("prompt_tokens", "Tokens of prompts that were answered.", registry)
        self.useful_tokens = _by_model("useful_tokens", "Tokens of answers, up to their end of text.", registry)
        self.retries = Counter("unmask_retries", "Asked again because a replica died.", registry=registry)

    def answered(self, path: str, status: int, seconds: float) -> None:
        known = path if path in self.paths else "other"
        self.requests.labels(known, str(status)).inc()
        if path.startswith("/v1/") and known != "other":
            self.seconds.observe(seconds)

    def used(self, model: str, usage: Mapping[str, int]) -> None:
        self.prompt_tokens.labels(model).inc(usage["prompt_tokens"])
        self.useful_tokens.labels(model).inc(usage["completion_tokens"])

    def render(self, engine: EngineMetrics | None) -> bytes:
        """Everything; without an engine, what is known in front of replicas."""
        own = generate_latest(self.registry)
        return own if engine is None else own + generate_latest(engine.registry)


def value(metric: MetricWrapperBase, sample: str, **labels: str) -> float:
    """The value of one sample of a metric: `_total`, `_sum`, `_count` or `_bucket`."""
    samples = [one for family in metric.collect() for one in family.samples]
    found = [one.value for one in samples if one.name.endswith(sample) and one.labels == labels]
    return found[0] if found else 0.0


def _by_model(name: str, text: str, registry: CollectorRegistry) -> Counter:
    return Counter(f"unmask_{name}", text, ["model"], registry=registry)


def _histogram(name: str, text: str, bounds: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(f"unmask_{name}", text, buckets=bounds, registry=registry)
