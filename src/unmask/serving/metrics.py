"""What /metrics reports: the engine's figures and those of HTTP, in Prometheus' text format."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from unmask.canvas import Frame

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RATE_SECONDS = 10.0  # over which a rate is the current one
disable_created_metrics()  # type: ignore[no-untyped-call]


class Figures:
    """Figures that are reported together."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def by_model(self, name: str, text: str) -> Counter:
        return Counter(f"unmask_{name}", text, ["model"], registry=self.registry)

    def histogram(self, name: str, text: str, *bounds: float) -> Histogram:
        return Histogram(f"unmask_{name}", text, buckets=bounds, registry=self.registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"unmask_{name}", text, registry=self.registry).set_function(value)


class EngineMetrics(Figures):
    """What an engine has done since it started. Tokens are those committed, beyond an end of text too."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = self.by_model("committed_tokens", "Tokens that steps committed.")
        self.steps = self.by_model("steps", "Forward passes.")
        self.row_steps = self.by_model("request_steps", "Forward passes, once for every request in them.")
        self.seconds = self.by_model("step_seconds", "Seconds spent in forward passes.")
        self.batch = self.histogram("batch_size", "Requests in a forward pass.", 1, 2, 4, 8, 16, 32, 64, 128)
        about = "Tokens that a request got from a step."
        self.per_step = self.histogram("tokens_per_step", about, 0, 1, 2, 3, 4, 8, 16, 32, 64)
        about = "Drafts that held at a check (mode verify)."
        self.accepted = self.histogram("drafts_kept", about, 0, 1, 2, 3, 4, 8, 16, 32)
        about = "Prompt tokens that were not read again, as another request begins alike or did."
        self.shared = self.by_model("shared_prompt_tokens", about)
        self.queued = self.histogram("queue_seconds", "Seconds in line.", 0.001, 0.01, 0.1, 1, 5, 10, 30, 60)
        self.gauge("tokens_per_second", "Committed tokens, last 10 s.", self.rate)
        self._recent: deque[tuple[float, int]] = deque(maxlen=4096)

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


class Metrics(Figures):
    """What a server has answered."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        super().__init__()
        self.paths = set(paths)  # others are counted together: anybody can make addresses up
        self.requests = Counter("unmask_requests", "Answered requests.", ["path", "status"], registry=self.registry)
        about = "Seconds from a request's head to the end of its answer."
        self.seconds = self.histogram("request_seconds", about, *SECONDS)
        self.first_text = self.histogram("first_text_seconds", "Seconds to the first text of a stream.", *SECONDS)
        self.prompt_tokens = self.by_model("prompt_tokens", "Tokens of prompts that were answered.")
        self.useful_tokens = self.by_model("useful_tokens", "Tokens of answers, up to their end of text.")
        self.retries = Counter("unmask_retries", "Asked again because a replica died.", registry=self.registry)

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
