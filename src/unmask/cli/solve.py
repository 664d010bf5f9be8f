"""`unmask solve`: a puzzle filled all at once."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, cast

import typer

from unmask.cli.options import Json, Threshold, check_least, load
from unmask.cli.report import print_record
from unmask.errors import UnmaskError
from unmask.evaluation.sudoku import ATTEMPTS, GRID, Attempt, drawn, fill_grid, first_clash, read_grid, solutions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from unmask.lm import DiffusionLM


def solve(
    kind: Annotated[str, typer.Argument(help="sudoku.")],
    puzzle: Annotated[str, typer.Argument(help="81 digits and dots, row by row; '-' reads standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A model that was trained on grids.")] = "sudoku",
    threshold: Threshold = 0.99,
    attempts: Annotated[int, typer.Option(help="Tries, each with other names of the digits.")] = ATTEMPTS,
    pause: Annotated[float, typer.Option(help="Seconds between drawn steps.")] = 0.4,
    as_json: Json = False,
) -> None:
    """Solve a puzzle by diffusion, drawing the grid step by step; a search says whether it has one solution.

    Example: `unmask solve sudoku 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79`
    """
    if kind != "sudoku":
        raise UnmaskError(f"puzzle '{kind}' is unknown; use sudoku")
    check_least(1, attempts=attempts)
    check_least(0, pause=pause)
    grid = read_grid(sys.stdin.read() if puzzle == "-" else puzzle)
    found = solutions(grid)
    if not found:
        raise UnmaskError("this sudoku has no solution")
    if len(found) > 1:
        raise UnmaskError("this sudoku has more than one solution; add givens")
    if "." not in grid:
        raise UnmaskError("this sudoku is solved already")
    lm = load(model)
    if lm.config.grid != GRID:
        raise UnmaskError(
            f"model '{model}' was not made for the grid of a sudoku; use sudoku, or train recipes/sudoku.yaml"
        )
    began = time.perf_counter()
    made = fill_grid(lm, grid, attempts, rule="threshold", threshold=threshold)
    seconds = time.perf_counter() - began
    answer = made[-1].grid(made[-1].output.text)
    steps = sum(attempt.output.steps for attempt in made)
    if as_json:
        figures = {"steps": steps, "attempts": len(made), "seconds": round(seconds, 3)}
        print_record({"grid": answer, "solved": answer == found[0], **figures})
        return
    for attempt in made:
        _draw(grid, attempt, lm, pause)
    if not sys.stdout.isatty():
        print(drawn(answer))
    tries = f" and {len(made)} attempts" if len(made) > 1 else ""
    verdict = "solved" if first_clash(answer) is None else "not solved: cells clash"
    print(f"{verdict}, {grid.count('.')} cells in {steps} steps{tries}, {seconds:.2f} s", file=sys.stderr)
    if answer != found[0]:
        raise typer.Exit(1)


def _draw(grid: str, attempt: Attempt, lm: DiffusionLM, pause: float) -> None:
    """The grid after each step; given digits are bold, written ones the greener the more confident."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        return
    tokenizer = cast("Tokenizer", lm.tokenizer)
    cells = list(grid)
    styles = ["bold"] * 81
    with Live(console=console, refresh_per_second=20) as live:
        for frame in attempt.output.frames:
            for position, token, confidence in zip(frame.positions, frame.tokens, frame.confidences, strict=True):
                cells[position] = attempt.grid(tokenizer.decode([token]))
                styles[position] = f"rgb({int(200 * (1 - confidence))},{int(120 + 110 * confidence)},80)"
            text = Text()
            cell = iter(range(81))
            for character in drawn("".join(cells)):
                text.append(character, styles[next(cell)] if character in "123456789." else "dim")
            live.update(text)
            time.sleep(pause)
