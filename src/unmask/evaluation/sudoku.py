"""Sudoku: grids as 81 characters, what is wrong with one, its solutions by search, and a model's own way to fill it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.lm import DiffusionLM
    from unmask.output import Filled

DIGITS = "123456789"
BLANKS = ".0_*?"
ATTEMPTS = 8
GRID = (9, 9, 3, 3)  # of a model's config: rows, columns, and those of a box
MOST_STEPS = 20_000  # of a search, about three seconds
UNITS = (
    [[9 * row + column for column in range(9)] for row in range(9)]
    + [[9 * row + column for row in range(9)] for column in range(9)]
    + [[27 * (box // 3) + 3 * (box % 3) + 9 * r + c for r in range(3) for c in range(3)] for box in range(9)]
)
PEERS = [sorted({cell for unit in UNITS if own in unit for cell in unit} - {own}) for own in range(81)]


def read_grid(text: str) -> str:
    """A grid's 81 cells in reading order, blanks as dots; spaces, bars and line breaks are left out.

    Raises UnmaskError for another number of cells, other characters, and givens that clash.
    """
    cells = "".join(character for character in text if not character.isspace() and character not in "|+-")
    grid = "".join("." if character in BLANKS else character for character in cells)
    unknown = sorted(set(grid) - set(DIGITS) - {"."})
    if unknown:
        raise UnmaskError(f"a sudoku holds digits 1 to 9 and dots, not {unknown[0]!r}")
    if len(grid) != 81:
        raise UnmaskError(f"a sudoku has 81 cells, this one {len(grid)}; write a dot for each blank")
    clash = first_clash(grid)
    if clash is not None:
        one, other = clash
        raise UnmaskError(f"the givens clash: {grid[one]} stands in {place(one)} and in {place(other)}")
    return grid


def first_clash(grid: str) -> tuple[int, int] | None:
    """Two cells of a row, column or box that hold one digit; None where there are none."""
    for own in range(81):
        for peer in PEERS[own]:
            if peer > own and grid[own] != "." and grid[own] == grid[peer]:
                return own, peer
    return None


def place(cell: int) -> str:
    return f"row {cell // 9 + 1}, column {cell % 9 + 1}"


def solutions(grid: str, most: int = 2) -> list[str]:
    """Up to `most` solutions of a grid, by search over the cell with the fewest digits left.

    Raises UnmaskError where the search takes more than `MOST_STEPS` steps.
    """
    return _search(list(grid), most, iter(range(MOST_STEPS)))


def _search(cells: list[str], most: int, steps: Iterator[int]) -> list[str]:
    if next(steps, None) is None:
        raise UnmaskError("whether this sudoku has one solution takes too long to find out; add givens")
    best: int | None = None
    options = ""
    for cell in range(81):
        if cells[cell] == ".":
            used = {cells[peer] for peer in PEERS[cell]}
            free = "".join(digit for digit in DIGITS if digit not in used)
            if best is None or len(free) < len(options):
                best = cell
                options = free
            if len(free) < 2:
                break
    if best is None:
        return ["".join(cells)]
    found: list[str] = []
    for digit in options:
        cells[best] = digit
        found += _search(cells, most - len(found), steps)
        cells[best] = "."
        if len(found) >= most:
            break
    return found


def drawn(grid: str) -> str:
    """A grid as nine lines with its boxes apart."""
    lines = []
    for row in range(9):
        cells = grid[9 * row : 9 * row + 9]
        lines.append(" │ ".join(" ".join(cells[start : start + 3]) for start in (0, 3, 6)))
        if row in (2, 5):
            lines.append("──────┼───────┼──────")
    return "\n".join(lines)


@dataclass(frozen=True)
class Attempt:
    """A grid filled once, under names of its own for the digits."""

    output: Filled
    names: str  # what the digits 1 to 9 were called

    def grid(self, text: str) -> str:
        """Cells as the puzzle names them."""
        return text.translate(str.maketrans(self.names, DIGITS))


def fill_grid(lm: DiffusionLM, grid: str, attempts: int = ATTEMPTS, **options: Any) -> list[Attempt]:
    """Fills a puzzle by diffusion until no two cells clash, the last attempt being the answer.

    The first attempt calls the digits by their own names, each further one by others: the puzzle is the same, the
    network's errors are not. A filled grid without a clash is a solution, so no solver is asked.
    """
    made: list[Attempt] = []
    for attempt in range(attempts):
        names = "".join(random.Random(attempt).sample(DIGITS, 9)) if attempt else DIGITS
        template = grid.translate(str.maketrans(DIGITS, names)).replace(".", "[[mask:1]]")
        made.append(Attempt(lm.fill(template, temperature=0.0, **options), names))
        if first_clash(made[-1].output.text) is None:
            break
    return made
