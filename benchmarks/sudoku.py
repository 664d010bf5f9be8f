"""Sudoku: exact solutions, steps and seconds a puzzle of several ways to write one, by number of givens."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from tools.sudoku.entries import entered

from unmask.cli.options import Json, Threshold, load
from unmask.cli.report import report
from unmask.decoding.infill import parse_template
from unmask.evaluation.figures import share as interval
from unmask.evaluation.sudoku import ATTEMPTS, fill_grid
from unmask.lm import DiffusionLM

Solved = tuple[str, int, int]  # a grid, its steps and attempts


@dataclass
class Way:
    """A way to solve puzzles, and what it did with them."""

    name: str
    solve: Callable[[list[str]], list[Solved]]
    limit: int
    results: list[Solved] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each puzzle alone
    together: list[float] = field(default_factory=list)  # a puzzle, of each batch


def by_diffusion(lm: DiffusionLM, attempts: int, options: dict[str, Any], grids: list[str]) -> list[Solved]:
    """One grid as `unmask solve` does it; several as one batch, filled once."""
    if len(grids) == 1:
        made = fill_grid(lm, grids[0], attempts, **options)
        return [(made[-1].grid(made[-1].output.text), sum(a.output.steps for a in made), len(made))]
    asked = []
    for grid in grids:
        parsed = parse_template(grid.replace(".", "[[mask:1]]"), lm.tokenizer)
        asked.append(lm.prepare_fill(parsed, temperature=0.0, **options)([[1] * grid.count(".")]))
    together = replace(asked[0], requests=[one.requests[0] for one in asked])
    return [(lm.tokenizer.decode(out.written.tolist()), out.steps, 1) for out in lm.run(together).outputs()]


def by_cell(lm: DiffusionLM, grids: list[str]) -> list[Solved]:
    """Autoregressively: the puzzle is the prompt, and all cells in reading order follow, or entries."""
    outs = lm.generate(grids, 81, temperature=0.0)
    texts = [out.text if out.text.isascii() else entered(grid, out.text) for grid, out in zip(grids, outs, strict=True)]
    return [(text, out.steps, 1) for text, out in zip(texts, outs, strict=True)]


def command(
    puzzles: Annotated[Path, typer.Argument(help="Rows of tools/sudoku/rows.py.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model that denoises.")] = "sudoku",
    ar: Annotated[str, typer.Option(help="An autoregressive one to compare with.")] = "",
    threshold: Threshold = 0.99,
    limit: Annotated[int, typer.Option(help="Puzzles at most.")] = 500,
    few: Annotated[int, typer.Option(help="Puzzles of the other rules, of the AR model and of batches.")] = 128,
    batch: Annotated[int, typer.Option(help="Puzzles of a batch.")] = 64,
    rules: Annotated[bool, typer.Option(help="Other commit rules as well.")] = False,
    as_json: Json = False,
) -> None:
    """Exact solutions with 95% intervals, steps and seconds a puzzle, alone (in turns) and in batches.

    Example: `unmask bench sudoku runs/sudoku-data/held-out.jsonl --ar runs/sudoku-ar`
    """
    rows = [json.loads(line) for line in puzzles.read_text(encoding="utf-8").splitlines()[:limit]]
    lm = load(model, "cpu", None)
    chosen = {"rule": "threshold", "threshold": threshold}
    ways = [
        Way(f"up to {ATTEMPTS} attempts", partial(by_diffusion, lm, ATTEMPTS, chosen), limit),
        Way("one attempt", partial(by_diffusion, lm, 1, chosen), limit),
    ]
    if rules:
        for name in ("quota", "margin", "entropy", "random"):
            options = {"rule": name, "max_denoising_steps": 4}
            ways.append(Way(f"{name}, 4 steps", partial(by_diffusion, lm, 1, options), few))
        ways.append(Way("entropy_bound", partial(by_diffusion, lm, 1, {"rule": "entropy_bound"}), few))
        ways.append(Way("sequential", partial(by_diffusion, lm, 1, {"rule": "sequential"}), few))
    if ar:
        ways.append(Way("AR", partial(by_cell, load(ar, "cpu", None)), few))
        ways.append(Way("AR, torch", partial(by_cell, DiffusionLM.from_pretrained(ar, backend="torch")), few))
    for place, row in enumerate(rows):
        for way in ways:
            if place < way.limit:
                began = time.perf_counter()
                way.results += way.solve([row["given"]])
                way.seconds.append(time.perf_counter() - began)
    for start in range(0, min(few, len(rows)) - batch + 1, batch):
        for way in ways:
            began = time.perf_counter()
            way.solve([row["given"] for row in rows[start : start + batch]])
            way.together.append((time.perf_counter() - began) / batch)
    lines = [line for way in ways for line in summary(way, rows)]
    columns = ["way", "givens", "n", "exact %", "steps", "attempts", "median s", f"s in batches of {batch}"]
    record = [dict(zip(columns, line, strict=True)) for line in lines]
    report(record, f"{lm.name}, threshold {threshold}", columns, lines, as_json)


def summary(way: Way, rows: list[dict[str, str]]) -> list[list[str]]:
    """Lines of the table: of five numbers of givens each, and of all."""
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows[: way.limit]):
        low = (81 - row["given"].count(".")) // 5 * 5
        for name in (f"{low} to {low + 4}", "all"):
            groups.setdefault(name, []).append(place)
    lines = []
    for name in sorted(groups):
        found = groups[name]
        right = sum(way.results[i][0] == rows[i]["canvas"] for i in found)
        share, low_end, high_end = interval(right, len(found))
        steps, attempts = (statistics.mean(way.results[i][part] for i in found) for part in (1, 2))
        batches = f"{statistics.median(way.together):.4f}" if way.together and name == "all" else ""
        exact = f"{share:.1f} ({low_end:.1f} to {high_end:.1f})"
        seconds = f"{statistics.median(way.seconds[i] for i in found):.4f}"
        lines.append([way.name, name, str(len(found)), exact, f"{steps:.2f}", f"{attempts:.2f}", seconds, batches])
    return lines
