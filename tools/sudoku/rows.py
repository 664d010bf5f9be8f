"""Turns the generator's lines into training rows: {"canvas": solution, "given": puzzle}, or with `text` for autoregressive
models {"prompt": puzzle, "response": solution}. Puzzles' symmetries are left to the generator's own variety.

    ./generate 400000 1 24 45 | python tools/sudoku/rows.py > runs/sudoku-data/train.jsonl
    ./generate 120000 1 24 45 | python tools/sudoku/rows.py text > runs/sudoku-data/ar-train.jsonl
"""

from __future__ import annotations

import json
import sys

names = ("prompt", "response") if sys.argv[1:] == ["text"] else ("given", "canvas")
for line in sys.stdin:
    print(json.dumps(dict(zip(names, line.split(), strict=True))))
