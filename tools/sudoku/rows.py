"""Turns the generator's lines into training rows: {"canvas": solution, "given": puzzle}, with every puzzle's symmetries
left to the generator's own variety.

    ./generate 400000 1 24 45 | python tools/sudoku/rows.py > sudoku-train.jsonl
"""

from __future__ import annotations

import json
import sys

for line in sys.stdin:
    puzzle, solution = line.split()
    print(json.dumps({"canvas": solution, "given": puzzle}))
