"""`unmask bench overhead`: one request at a time in this process, and of a server, whole and streamed, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from benchmarks.own_server import own_server
from benchmarks.serve import requests_of

from unmask.cli.options import Dtype, Json, Length, Mode, Served
from unmask.cli.report import print_record
from unmask.errors import UnmaskError
from unmask.evaluation.speed import chat
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
    with own_server(model, "--prefix-mb", "0", *(["--dtype", dtype] if dtype else [])) as server:
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
    own = seconds[way]
    base = seconds[WAYS[0]]
    ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
    return Lap(way, statistics.median(own), tokens / sum(own), ratio)


def command(
    model: Served = "default",
    requests: Annotated[int, typer.Option(help="Requests; each goes all three ways.")] = 40,
    max_new_tokens: Length = 128,
    mode: Mode = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """What the server costs at one request at a time: the same requests by `generate` in this process and over HTTP,
    whole and streamed, in turn.

    Example: `unmask bench overhead default --mode ar`
    """
    from rich.console import Console

    from unmask.cli.terminal import table

    if requests < 1 or max_new_tokens < 1:
        raise UnmaskError("--requests and --max-new-tokens must be at least 1")
    with Console(stderr=True).status("starting") as status:
        laps = bench_overhead(model, requests, max_new_tokens, mode, dtype, status.update)
    if as_json:
        print_record([lap.to_dict() for lap in laps])
        return
    rows = [
        [lap.name, f"{lap.seconds:.3f}", f"{lap.tokens_per_second:.1f}", f"{lap.over_generate:.3f}"] for lap in laps
    ]
    title = f"{model}, {requests} requests of at most {max_new_tokens} tokens, mode {mode or 'of the model'}"
    Console().print(table(title, ["way", "median s", "tokens/s", "over generate, median"], rows))
