"""Futoshiki of 5 x 5: training rows by rule, held-out puzzles by reasoning-gym, and its own score of a model's answers.

A canvas has nine rows of nine cells: digits stand at even places, the signs between them at odd ones.

    python tools/futoshiki/make.py train 100000 1 > runs/futoshiki-data/train.jsonl
    python tools/futoshiki/make.py held-out 500 7 > runs/futoshiki-data/held-out.jsonl   # needs reasoning-gym
    python tools/futoshiki/make.py score runs/futoshiki-data/held-out.jsonl runs/futoshiki
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 5
WIDE = 2 * SIZE - 1
Board = list[list[int]]
Sign = tuple[int, int, int, int, str]  # row and column of two neighbours, and which of the two is less: < or >
PAIRS = [(r, c, r, c + 1) for r in range(SIZE) for c in range(SIZE - 1)]
PAIRS += [(r, c, r + 1, c) for r in range(SIZE - 1) for c in range(SIZE)]


def squares() -> np.ndarray:
    """All Latin squares, int8 [161280, SIZE * SIZE]."""
    lines = np.array(list(itertools.permutations(range(1, SIZE + 1))), np.int8)
    found = lines[:, None]
    for _ in range(SIZE - 2):
        fits = (found[:, None] != lines[:, None]).all((2, 3))
        above, line = fits.nonzero()
        found = np.concatenate([found[above], lines[line][:, None]], 1)
    last = sum(range(SIZE + 1)) - found.sum(1, dtype=np.int8)[:, None]
    return np.concatenate([found, last], 1).reshape(len(found), SIZE * SIZE)


def canvas(board: Board, signs: list[Sign]) -> str:
    """A board with 0 for a blank as cells of text; "." is a blank."""
    cells = [[" "] * WIDE for _ in range(WIDE)]
    for row, column in itertools.product(range(SIZE), range(SIZE)):
        cells[2 * row][2 * column] = str(board[row][column] or ".")
    for r1, c1, r2, c2, sign in signs:
        cells[r1 + r2][c1 + c2] = sign if r1 == r2 else {"<": "^", ">": "v"}[sign]
    return "".join(itertools.chain(*cells))


def puzzles(count: int, seed: int) -> Iterator[tuple[Board, Board, list[Sign]]]:
    """Boards with one solution, that, and the signs: signs first, then givens until one solution is left, then a few more."""
    rng = np.random.default_rng(seed)
    every = squares()
    for _ in range(count):
        solution = every[rng.integers(len(every))]
        signs: list[Sign] = []
        left = every
        for pair in rng.permutation(len(PAIRS))[: rng.integers(2, 13)]:
            r1, c1, r2, c2 = PAIRS[pair]
            one, two = r1 * SIZE + c1, r2 * SIZE + c2
            less = bool(solution[one] < solution[two])
            signs.append((r1, c1, r2, c2, "<" if less else ">"))
            left = left[(left[:, one] < left[:, two]) == less]
        given = np.zeros(SIZE * SIZE, int)
        extra = int(rng.integers(0, 6))
        for cell in rng.permutation(SIZE * SIZE):
            if len(left) == 1:
                if not extra:
                    break
                extra -= 1
            given[cell] = solution[cell]
            left = left[left[:, cell] == solution[cell]]
        yield given.reshape(SIZE, SIZE).tolist(), solution.reshape(SIZE, SIZE).tolist(), signs


def held_out(count: int, seed: int) -> Iterator[dict[str, Any]]:
    import reasoning_gym

    size = {"min_board_size": SIZE, "max_board_size": SIZE, "min_difficulty": 0, "max_difficulty": 3}
    for item in reasoning_gym.create_dataset("futoshiki", size=count, seed=seed, **size):
        told = item["metadata"]
        signs = [tuple(sign) for sign in told["constraints"]]
        yield {"canvas": canvas(told["solution"], signs), "given": canvas(told["puzzle"], signs), "item": item}


def answer(item: dict[str, Any], filled: str) -> str:
    """A filled canvas as reasoning-gym writes boards: its own question's lines with the digits put in."""
    lines = item["answer"].split("\n")
    digits = iter(filled[2 * row * WIDE + 2 * column] for row in range(SIZE) for column in range(SIZE))
    return "\n".join("".join(next(digits) if mark.isdigit() else mark for mark in line) for line in lines)


def score(rows: str, model: str) -> None:
    import reasoning_gym

    from unmask import DiffusionLM
    from unmask.evaluation.figures import share as interval

    lm = DiffusionLM.from_pretrained(model)
    scorer = reasoning_gym.create_dataset("futoshiki", size=1, seed=0)
    right = steps = count = 0
    for line in Path(rows).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        out = lm.fill(row["given"].replace(".", "[[mask:1]]"), rule="threshold", threshold=0.99, temperature=0.0)
        right += scorer.score_answer(answer(row["item"], out.text), row["item"]) == 1.0
        steps += out.steps
        count += 1
    share, low, high = interval(right, count)
    print(f"{share:.1f}% ({low:.1f} to {high:.1f}) of {count} right in {steps / count:.2f} steps")


if __name__ == "__main__":
    if sys.argv[1] == "train":
        for board, solution, signs in puzzles(int(sys.argv[2]), int(sys.argv[3])):
            print(json.dumps({"canvas": canvas(solution, signs), "given": canvas(board, signs)}))
    elif sys.argv[1] == "held-out":
        for row in held_out(int(sys.argv[2]), int(sys.argv[3])):
            print(json.dumps(row))
    else:
        score(sys.argv[2], sys.argv[3])
