"""`unmask bench repeating`: modes in turns on prompts whose answers say again what stands in them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from unmask.canvas import Array
from unmask.cli.options import Backend, Json, load
from unmask.cli.report import report
from unmask.errors import UnmaskError
from unmask.evaluation.figures import median
from unmask.lm import DiffusionLM

PROMPTS = Path(__file__).parent / "repeating.jsonl"  # made by `tools/items/repeats.py`
MODES = ("ar", "verify", "diffusion")


@dataclass(frozen=True)
class Prompt:
    """One line of the file."""

    kind: str
    messages: list[dict[str, str]]
    max_new_tokens: int
    schema: Any = None  # that the answer is held to


@dataclass
class Tally:
    """Of one mode and kind: in each round tokens, steps, seconds and seconds of computing, [rounds, 4]."""

    rounds: Array
    alike: int = 0  # texts that are those of mode ar
    texts: int = 0

    @property
    def rates(self) -> Array:
        """Tokens per second, and per second of computing, [2, rounds]."""
        return self.rounds[:, 0] / self.rounds[:, 2:].T


def read(path: Path) -> list[Prompt]:
    """Raises UnmaskError for a file that is none of such prompts."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Prompt(r["kind"], r["messages"], r["max_new_tokens"], r.get("schema")) for r in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnmaskError(f"{path} is no file of prompts: {error}; `tools/items/repeats.py` writes one") from error


def bench(
    lm: DiffusionLM, prompts: list[Prompt], modes: tuple[str, ...], rounds: int, told: Callable[[str], None]
) -> dict[tuple[str, str], Tally]:
    """Each round takes every so manyth prompt of a kind, one by one in all modes at temperature 0. What is done for the
    first time is done before and not counted."""
    kinds = list(dict.fromkeys(prompt.kind for prompt in prompts))
    tallies = {(mode, kind): Tally(np.zeros((rounds, 4))) for mode in modes for kind in kinds}
    grammars = {id(p): lm.grammar(p.schema) for p in prompts if p.schema is not None}
    for number in range(-1, rounds):
        for kind in kinds:
            own = [prompt for prompt in prompts if prompt.kind == kind]
            share = own[number::rounds] if number >= 0 else own[:1]
            for prompt in share:
                plain: list[int] = []
                for mode in modes:
                    told(f"round {number + 1} of {rounds}: {kind}, {mode}")
                    asked: dict[str, Any] = {"mode": mode, "temperature": 0.0, "grammar": grammars.get(id(prompt))}
                    began = np.array([time.perf_counter(), time.process_time()])
                    out = lm.generate(prompt.messages, prompt.max_new_tokens, **asked)
                    taken = np.array([time.perf_counter(), time.process_time()]) - began
                    plain = plain or out.token_ids
                    if number >= 0:
                        tally = tallies[mode, kind]
                        tally.rounds[number] += [len(out.token_ids), out.steps, *taken]
                        tally.alike += out.token_ids == plain
                        tally.texts += 1
    return tallies


def command(
    model: Annotated[str, typer.Argument(help="A model with modes ar and verify.")] = "default",
    prompts: Annotated[Path, typer.Option(help="File of prompts.")] = PROMPTS,
    modes: Annotated[str, typer.Option(help="With commas; the first is what the others are compared with.")] = ",".join(
        MODES
    ),
    rounds: Annotated[int, typer.Option(help="Rounds; each takes its share of the prompts.")] = 5,
    backend: Backend = "auto",
    as_json: Json = False,
) -> None:
    """Edits, extraction, JSON under a schema and calls of tools: tokens a step, tokens/s and whether texts are equal.

    Example: `unmask bench repeating`
    """
    from rich.console import Console

    lm = load(model, "cpu", None, backend)
    asked = read(prompts)
    if rounds < 1 or rounds > len(asked):
        raise UnmaskError(f"--rounds must be from 1 to {len(asked)}")
    ways = tuple(mode.strip() for mode in modes.split(","))
    records = list[dict[str, Any]]()
    with Console(stderr=True).status("starting") as status:
        tallies = bench(lm, asked, ways, rounds, status.update)
    kinds = list(dict.fromkeys(kind for _, kind in tallies))
    for kind in [*kinds, "all"]:
        own = {way: _sum([tallies[way, k] for k in kinds if kind in (k, "all")]) for way in ways}
        records += [_record(way, kind, own[way], own[ways[0]]) for way in ways]
    rows = [[str(value) for value in one.values()] for one in records]
    report({"rounds": rounds, "ways": records}, f"{lm.name}, {len(asked)} prompts", list(records[0]), rows, as_json)


def _sum(tallies: list[Tally]) -> Tally:
    alike = sum(tally.alike for tally in tallies)
    return Tally(np.sum([tally.rounds for tally in tallies], 0), alike, sum(tally.texts for tally in tallies))


def _record(mode: str, kind: str, own: Tally, first: Tally) -> dict[str, Any]:
    seconds, computing = (median(list(a / b)).shown(2) for a, b in zip(own.rates, first.rates, strict=True))
    tokens, steps = own.rounds[:, :2].sum(0)
    rate = median(list(own.rates[0])).shown(1)
    over = {"over": seconds, "over, computing": computing}
    each = {"mode": mode, "kind": kind, "tokens/step": round(tokens / steps, 2), "tokens/s": rate}
    return {**each, **over, "alike": f"{own.alike}/{own.texts}"}
