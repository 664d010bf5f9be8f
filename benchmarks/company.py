"""`unmask bench company`: whether a request's tokens depend on who is decoded beside it, through the front door."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from benchmarks.own_server import Answer, own_server
from benchmarks.serve import crowd
from benchmarks.speed import PROMPTS

from unmask.cli.options import Dtype, Json, Length, Served
from unmask.cli.report import print_record
from unmask.decoding.request import MODES
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM


@dataclass(frozen=True)
class Company:
    """The same requests by one client and by many. `tokens` are those written alone."""

    title: str
    requests: int
    different: int  # requests of which any token differs
    different_texts: int
    tokens: int
    before_parting: int  # tokens before the first that differs
    by_mode: dict[str, list[int]]  # requests that differ, and all

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.different / self.requests}


def bench_company(
    model: str, requests: int, clients: int, length: int, dtype: str | None, seed: int, progress: Callable[[str], None]
) -> Company:
    """Requests of all modes, lengths and temperatures: every token of every step, alone and among `clients`."""
    modes = MODES[DiffusionLM.from_pretrained(model, dtype=dtype).config.layout]
    rng = random.Random(seed)
    bodies = [
        {
            "prompt": " ".join(rng.sample(PROMPTS, rng.randint(1, 3))),
            "max_tokens": rng.randint(max(1, length // 4), length),
            "temperature": rng.choice([0.0, 0.0, 0.8]),
            "mode": modes[i % len(modes)],
            "seed": i,
        }
        for i in range(requests)
    ]
    progress("starting the server")
    options = ["--max-concurrent", str(clients), *(["--dtype", dtype] if dtype else [])]
    with own_server(model, *options) as server:
        alone, _ = crowd(server, bodies, 1, progress, frames=True)
        beside, _ = crowd(server, bodies, clients, progress, frames=True)
    return compared(f"{model}, {clients} clients, {dtype or 'its own dtype'}", bodies, alone, beside)


def compared(title: str, bodies: list[dict[str, Any]], alone: list[Answer], beside: list[Answer]) -> Company:
    """What changed from one list of answers to the other."""
    by_mode: dict[str, list[int]] = {}
    different = texts = tokens = before = 0
    for body, one, other in zip(bodies, alone, beside, strict=True):
        parted = [p for p in sorted(one.ids.keys() | other.ids.keys()) if one.ids.get(p) != other.ids.get(p)]
        counts = by_mode.setdefault(body["mode"], [0, 0])
        counts[0] += bool(parted)
        counts[1] += 1
        different = different + bool(parted)
        texts = texts + (one.text != other.text)
        tokens += len(one.ids)
        before += sum(p < parted[0] for p in one.ids) if parted else len(one.ids)
    return Company(title, len(bodies), different, texts, tokens, before, by_mode)


def command(
    model: Served = "default",
    requests: Annotated[int, typer.Option(help="Requests, of all modes of the model in turn.")] = 200,
    clients: Annotated[int, typer.Option(help="That ask at once, the second time.")] = 32,
    max_new_tokens: Length = 64,
    dtype: Dtype = None,
    seed: Annotated[int, typer.Option(help="Of the prompts, lengths and temperatures.")] = 0,
    as_json: Json = False,
) -> None:
    """Whether a request's tokens depend on who is decoded beside it: the ids of every step, alone and in company;
    exits with 1 if any differ.

    Example: `unmask bench company default`, `unmask bench company default --dtype float32`
    """
    from rich.console import Console

    if requests < 1 or clients < 1 or max_new_tokens < 1:
        raise UnmaskError("--requests, --clients and --max-new-tokens must be at least 1")
    with Console(stderr=True).status("starting") as status:
        result = bench_company(model, requests, clients, max_new_tokens, dtype, seed, status.update)
    if as_json:
        print_record(result.to_dict())
    else:
        modes = ", ".join(f"{mode} {some} of {of}" for mode, (some, of) in result.by_mode.items())
        print(
            f"{result.title}: {result.different} of {result.requests} requests have other ids than alone ({modes}), "
            f"{result.different_texts} another text; {result.before_parting} of {result.tokens} tokens before a parting"
        )
    if result.different:
        raise typer.Exit(1)
