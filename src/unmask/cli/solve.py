"""`unmask solve`: a puzzle filled all at once."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer

from unmask.cli.options import Json, Threshold, load
from unmask.errors import UnmaskError


def solve(
    kind: Annotated[str, typer.Argument(help="sudoku.")],
    puzzle: Annotated[str, typer.Argument(help="81 digits and dots, row by row; '-' reads standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A model that was trained on grids.")] = "sudoku",
    threshold: Threshold = 0.99,
    pause: Annotated[float, typer.Option(help="Seconds between drawn steps.")] = 0.4,
    as_json: Json = False,
) -> None:
    """Solve a puzzle by diffusion, drawing the grid step by step; a search says whether it has one solution.

    Example: `unmask solve sudoku 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79`
    """
    if kind != "sudoku":
        raise UnmaskError(f"puzzle '{kind}' is unknown; use sudoku")
    from unmask.evaluation.sudoku import drawn, first_clash, read_grid, solutions

    grid = read_grid(sys.stdin.read() if puzzle == "-" else puzzle)
    found = solutions(grid)
    if not found:
        raise UnmaskError("this sudoku has no solution")
    if len(found) > 1:
        raise UnmaskError("this sudoku has more than one solution; add givens")
    if "." not in grid:
        raise UnmaskError("this sudoku is solved already")
    lm = load(model)
    began = time.perf_counter()
    output = lm.fill(grid.replace(".", "[[mask:1]]"), rule="threshold", threshold=threshold, temperature=0.0)
    seconds = time.perf_counter() - began
    solved = output.text == found[0]
    if as_json:
        figures = {"steps": output.steps, "seconds": round(seconds, 3)}
        print(json.dumps({"grid": output.text, "solved": solved, **figures}))
        return
    _draw(grid, output, lm, pause if sys.stdout.isatty() else 0.0)
    if not sys.stdout.isatty():
        print(drawn(output.text))
    verdict = "solved" if solved else "not solved: the model's grid differs from the solution"
    if not solved and first_clash(output.text) is not None:
        verdict = "not solved: cells clash"
    print(f"{verdict}, {grid.count('.')} cells in {output.steps} steps, {seconds:.2f} s", file=sys.stderr)
    if not solved:
        raise typer.Exit(1)


def _draw(grid: str, output: Any, lm: Any, pause: float) -> None:
    """The grid after each step; given digits are bold, written ones the greener the more confident."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from unmask.evaluation.sudoku import drawn

    console = Console()
    if not console.is_terminal:
        return
    cells = list(grid)
    styles = ["bold"] * 81
    with Live(console=console, refresh_per_second=20) as live:
        for frame in output.frames:
            for position, token, confidence in zip(frame.positions, frame.tokens, frame.confidences, strict=True):
                cells[position] = lm.tokenizer.decode([token])
                styles[position] = f"rgb({int(200 * (1 - confidence))},{int(120 + 110 * confidence)},80)"
            text = Text()
            cell = iter(range(81))
            for character in drawn("".join(cells)):
                text.append(character, styles[next(cell)] if character in "123456789." else "dim")
            live.update(text)
            time.sleep(pause)
