"""Sudoku grids: reading, clashes, solutions."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tools.sudoku.entries import easiest_first, entered, entries

from unmask.errors import UnmaskError
from unmask.evaluation.sudoku import DIGITS, fill_grid, first_clash, read_grid, solutions

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def test_the_one_solution() -> None:
    assert solutions(PUZZLE) == [SOLVED]
    assert first_clash(SOLVED) is None


def test_grids_as_people_write_them() -> None:
    spaced = "\n".join(PUZZLE[9 * row : 9 * row + 9].replace(".", "0") for row in range(9))
    assert read_grid(spaced) == PUZZLE


def test_several_solutions_and_none() -> None:
    assert len(solutions("." * 81)) == 2
    assert solutions("12345678." + "." * 8 + "9" + "." * 63) == []


def fitting(grid: str, cell: int) -> str:
    """Digits that clash with nothing in a blank cell."""
    return "".join(d for d in DIGITS if first_clash(grid[:cell] + d + grid[cell + 1 :]) is None)


def test_cells_are_filled_easiest_first() -> None:
    """Against the rule spelled out on grids; this puzzle is one that needs no guess."""
    grid = PUZZLE
    for cell in easiest_first(PUZZLE, SOLVED):
        left = {c: fitting(grid, c) for c in range(81) if grid[c] == "."}
        single = [c for c, digits in left.items() if len(digits) == 1]
        assert cell == single[0]
        grid = grid[:cell] + SOLVED[cell] + grid[cell + 1 :]
    assert grid == SOLVED


def test_a_digit_with_one_place_comes_before_a_guess() -> None:
    """1 stands in rows 2 and 3 and in columns 2 and 3, so the first row's has one place, its first cell."""
    cells = ["."] * 81
    for cell in (9 + 4, 18 + 7, 27 + 1, 54 + 2):
        cells[cell] = "1"
    grid = "".join(cells)
    assert len(fitting(grid, 0)) == 9
    assert easiest_first(grid, solutions(grid, 1)[0])[0] == 0


def test_entries_say_every_blank_cell() -> None:
    text = entries(PUZZLE, SOLVED)
    assert len(text) == PUZZLE.count(".")
    assert entered(PUZZLE, text) == SOLVED
    assert entered(PUZZLE, text[:1] + "7\n").count(".") == PUZZLE.count(".") - 1


@pytest.mark.parametrize(
    ("grid", "named"),
    [
        (PUZZLE[:-1], "81 cells, this one 80"),
        ("x" + PUZZLE[1:], "not 'x'"),
        ("55" + PUZZLE[2:], "row 1, column 1 and in row 1, column 2"),
    ],
)
def test_what_is_no_sudoku_gets_one_line(grid: str, named: str) -> None:
    with pytest.raises(UnmaskError, match=named):
        read_grid(grid)


def test_a_search_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.evaluation.sudoku.MOST_STEPS", 50)
    with pytest.raises(UnmaskError, match="too long"):
        solutions("." * 81)


class Solver:
    """Fills puzzles rightly, but for the first so many times, when it says nothing but one digit."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked: list[str] = []

    def fill(self, template: str, **options: Any) -> Any:
        grid = template.replace("[[mask:1]]", ".")
        self.asked.append(grid)
        text = grid.replace(".", "5") if len(self.asked) <= self.failures else solutions(grid)[0]
        return type("Output", (), {"text": text, "steps": 1})


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_clashing_cells_are_filled_again_under_other_names_of_the_digits(failures: int) -> None:
    solver = Solver(failures)
    made = fill_grid(cast(Any, solver), PUZZLE)
    assert len(made) == failures + 1
    assert made[-1].grid(made[-1].output.text) == SOLVED
    assert solver.asked[0] == PUZZLE
    assert len(set(solver.asked)) == len(made)
    assert all(sorted(attempt.names) == list(DIGITS) for attempt in made)


def test_attempts_are_bounded() -> None:
    made = fill_grid(cast(Any, Solver(9)), PUZZLE, attempts=3)
    assert len(made) == 3
    assert first_clash(made[-1].output.text) is not None
