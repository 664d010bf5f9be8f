"""Turns the generator's lines into training rows: {"canvas": solution, "given": puzzle}, or for autoregressive models
{"prompt": puzzle, "response": solution}, with `text` cell by cell in reading order, with `order` the blank cells alone in the
order in which they are filled by hand, a character each that says cell and digit. Puzzles' symmetries are left to the
generator's own variety.

    ./generate 400000 1 24 45 | python tools/sudoku/rows.py > runs/sudoku-data/train.jsonl
    ./generate 120000 1 24 45 | python tools/sudoku/rows.py text > runs/sudoku-data/ar-train.jsonl
    ./generate 32000 1 24 45 | python tools/sudoku/rows.py order > runs/sudoku-data/order-train.jsonl
"""

from __future__ import annotations

import json
import sys

from entries import entries

form = "".join(sys.argv[1:])
for line in sys.stdin:
    puzzle, solution = line.split()
    if form:
        row = {"prompt": puzzle, "response": entries(puzzle, solution) if form == "order" else solution}
    else:
        row = {"given": puzzle, "canvas": solution}
    print(json.dumps(row))
