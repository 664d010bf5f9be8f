"""A solution as one character for each blank cell, in the order in which they are filled by hand, and back."""

from __future__ import annotations

from collections.abc import Iterator

from unmask.evaluation.sudoku import DIGITS, PEERS, UNITS

ENTRY = 0xE000  # the private characters from here on say a cell and its digit each


def easiest_first(grid: str, solution: str) -> list[int]:
    """Blank cells in an order in which they can be filled by hand: the first in reading order that has one digit left,
    else the first that alone in a row, column or box can hold a digit, else the first with the fewest digits left."""
    free = {}
    for cell in range(81):
        if grid[cell] == ".":
            used = {grid[peer] for peer in PEERS[cell]}
            free[cell] = sum(1 << place for place, digit in enumerate(DIGITS) if digit not in used)
    order = []
    while free:
        fewest = min(free, key=lambda c: free[c].bit_count())
        cell = fewest if free[fewest].bit_count() == 1 else min(_alone(free), default=fewest)
        order.append(cell)
        del free[cell]
        keep = ~(1 << DIGITS.index(solution[cell]))
        for peer in PEERS[cell]:
            if peer in free:
                free[peer] &= keep
    return order


def _alone(free: dict[int, int]) -> Iterator[int]:
    """Cells that alone in a unit can hold a digit; free: bits of the digits that are left to each blank cell."""
    for unit in UNITS:
        once = twice = 0
        for cell in unit:
            digits = free.get(cell, 0)
            twice |= once & digits
            once |= digits
        for cell in unit:
            if free.get(cell, 0) & once & ~twice:
                yield cell


def entries(grid: str, solution: str) -> str:
    """A solution as one character for each blank cell, easiest first."""
    return "".join(chr(ENTRY + 9 * c + DIGITS.index(solution[c])) for c in easiest_first(grid, solution))


def entered(grid: str, text: str) -> str:
    """The grid with the cells that a text of entries names."""
    cells = list(grid)
    for character in text:
        cell, digit = divmod(ord(character) - ENTRY, 9)
        if 0 <= cell < 81:
            cells[cell] = DIGITS[digit]
    return "".join(cells)
