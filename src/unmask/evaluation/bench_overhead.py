"""`unmask bench overhead`: one request at a time in this process, and of a server, whole and streamed, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from unmask.errors import UnmaskError
from unmask.evaluation.bench_serve import requests_of
from unmask.evaluation.bench_speed import chat
from unmask.evaluation.own_server import own_server
from unmask.lm import DiffusionLM

WAYS = ("generate", "server", "server, streamed")


@dataclass(frozen=True)
class Lap:
    """One way of asking, over all requests."""

    name: str
    seconds: float  # of a request, median
    tokens_per_second: float
    over_generate: float  # median of the requests' own ratios

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench_overhead(
    model: str, requests: int, length: int, mode: str | None, dtype: str | None, progress: Callable[[str], None]
) -> list[Lap]:
    """Every request goes each way before the next one does, the ways in another order each time. Raises UnmaskError
    where one way writes other text than another: then they are not the same work."""
    bodies = requests_of(requests, length, mode)
    progress("loading the model")
    lm = DiffusionLM.from_pretrained(model, dtype=dtype)

    counts: list[int] = []

    def generate(body: dict[str, Any]) -> str:
        options = {name: body[name] for name in ("temperature", "seed", "mode") if name in body}
        out = lm.generate(chat(lm, body["prompt"]), body["max_tokens"], **options)
        counts.append(len(out.token_ids))
        return str(out.text)

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    progress("starting the server")
    with own_server(model, *(["--dtype", dtype] if dtype else [])) as server:
        run: dict[str, Callable[[dict[str, Any]], str]] = {
            "generate": generate,
            "server": lambda body: server.ask(body, stream=False).text,
            "server, streamed": lambda body: server.ask(body).text,
        }
        for way in WAYS:  # what is done for the first time is not counted
            run[way](bodies[0])
        for number, body in enumerate(bodies):
            progress(f"{number} of {requests} requests")
            texts = {}
            for place in range(len(WAYS)):
                way = WAYS[(number + place) % len(WAYS)]
                began = time.perf_counter()
                texts[way] = run[way](body)
                seconds[way].append(time.perf_counter() - began)
            if len(set(texts.values())) > 1:
                raise UnmaskError(f"request {number} was answered in two ways: {sorted(set(texts.values()))}")
    return [_lap(way, seconds, sum(counts[1:])) for way in WAYS]


def _lap(way: str, seconds: dict[str, list[float]], tokens: int) -> Lap:
    own, base = seconds[way], seconds[WAYS[0]]
    ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
    return Lap(way, statistics.median(own), tokens / sum(own), ratio)
