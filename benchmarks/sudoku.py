"""Sudoku solved exactly, steps and seconds a puzzle, by number of givens."""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import Json, Threshold, load
from unmask.cli.report import report


def command(
    puzzles: Annotated[Path, typer.Argument(help="Rows of tools/sudoku/rows.py.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model.")] = "sudoku",
    threshold: Threshold = 0.99,
    limit: Annotated[int, typer.Option(help="Puzzles at most.")] = 500,
    as_json: Json = False,
) -> None:
    """Exact solutions, steps and seconds a puzzle at batch 1, by number of givens, with 95% intervals.

    Example: `unmask bench sudoku runs/sudoku-data/held-out.jsonl`
    """
    lm = load(model, "cpu", None)
    groups: dict[str, list[tuple[bool, int, float]]] = {}
    for line in puzzles.read_text(encoding="utf-8").splitlines()[:limit]:
        row = json.loads(line)
        began = time.perf_counter()
        out = lm.fill(row["given"].replace(".", "[[mask:1]]"), rule="threshold", threshold=threshold, temperature=0.0)
        result = (out.text == row["canvas"], out.steps, time.perf_counter() - began)
        givens = 81 - row["given"].count(".")
        low = givens // 5 * 5
        for name in (f"{low} to {low + 4} givens", "all"):
            groups.setdefault(name, []).append(result)
    rows = []
    for name in sorted(groups):
        found = groups[name]
        share = sum(solved for solved, _, _ in found) / len(found)
        error = 1.96 * math.sqrt(share * (1 - share) / len(found))
        steps = statistics.mean(steps for _, steps, _ in found)
        seconds = statistics.median(seconds for _, _, seconds in found)
        rows.append([name, str(len(found)), f"{100 * share:.1f} ± {100 * error:.1f}", f"{steps:.2f}", f"{seconds:.3f}"])
    columns = ["puzzles", "n", "exact %", "steps", "median s"]
    record = [dict(zip(columns, row, strict=True)) for row in rows]
    report(record, f"{lm.name}, threshold {threshold}", columns, rows, as_json)
