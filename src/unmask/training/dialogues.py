"""Dialogues as token ids: shards that `unmask adapt` writes, packed into training rows.

A shard is a safetensors file: `ids` int32 [N], all dialogues one after another; `length` and `answer`
int32 [dialogues], how many tokens each has and where its answer starts.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unmask.checkpoints.safetensors import read_tensors, write_tensors
from unmask.errors import UnmaskError
from unmask.layout import PADDING
from unmask.objectives.objective import Rows


def write_shard(path: Path, dialogues: Iterable[tuple[list[int], int]]) -> None:
    """Writes dialogues, each its ids and the index its answer starts at, whole or not at all."""
    listed = list(dialogues)
    flat = [token for ids, _ in listed for token in ids]
    columns = {"ids": flat, "length": [len(ids) for ids, _ in listed], "answer": [start for _, start in listed]}
    write_tensors(path, {name: torch.tensor(values, dtype=torch.int32) for name, values in columns.items()})


def read_shard(path: Path) -> dict[str, Tensor]:
    """The columns of a shard; a file that is none raises UnmaskError."""
    shard = read_tensors(path)
    fine = {"ids", "length", "answer"} <= shard.keys()
    fine = fine and all(column.dim() == 1 and column.dtype == torch.int32 for column in shard.values())
    if fine:
        ids = shard["ids"]
        length = shard["length"]
        answer = shard["answer"]
        fine = len(answer) == len(length) and int(length.sum()) == len(ids) and bool((ids >= 0).all())
        fine = fine and bool(((length >= 1) & (answer >= 0) & (answer <= length)).all())
    if not fine:
        raise UnmaskError(f"corpus {path}: is not a shard of dialogues; remove it and make the text again")
    return shard


class Dialogues:
    """Whole dialogues packed into rows of `length` tokens in an order of each epoch's own.

    Which row comes when is a function of (seed, index) alone, so a resumed run goes on where it was.
    Only answers are learned. Dialogues longer than a row are cut at its end.
    """

    def __init__(self, patterns: tuple[str, ...], length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        paths = sorted({path for pattern in patterns for path in glob.glob(pattern)})
        if not paths:
            raise UnmaskError(f"corpus {', '.join(patterns)}: no such file; `unmask adapt` writes it first")
        ids = []
        lengths = []
        answers = []
        for path in paths:
            shard = read_shard(Path(path))
            ids.append(shard["ids"].numpy())
            lengths.append(shard["length"].numpy())
            answers.append(shard["answer"].numpy())
        self.ids = np.concatenate(ids)
        self.answers = np.concatenate(answers)
        if not len(self.ids):
            raise UnmaskError(f"corpus {', '.join(paths)}: holds no dialogue; make the text again")
        self.starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        self.epoch = -1
        self.packed = self._pack(0)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def num_rows(self) -> int:
        """Rows of the first epoch; another order packs into about as many."""
        return len(self.packed)

    def _pack(self, epoch: int) -> list[list[int]]:
        """The dialogues of each row: taken in a shuffled order while they fit."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.starts) - 1)
        rows: list[list[int]] = [[]]
        room = self.length
        for number in order.tolist():
            size = min(self.length, int(self.starts[number + 1] - self.starts[number]))
            if size > room:
                rows.append([])
                room = self.length
            rows[-1].append(number)
            room -= size
        return rows

    def rows(self, first: int, count: int) -> Rows:
        """Rows number first .. first + count of the endless stream of epochs."""
        shape = (count, self.length)
        ids = np.zeros(shape, np.int64)
        document = np.full(shape, PADDING, np.int64)
        supervised = np.zeros(shape, bool)
        for i in range(count):
            epoch, place = divmod(first + i, self.num_rows)
            if epoch != self.epoch:
                self.epoch = epoch
                self.order = self._pack(epoch)
            at = 0
            for number in self.order[place % len(self.order)]:
                piece = self.ids[self.starts[number] : self.starts[number + 1]][: self.length]
                end = at + len(piece)
                answer = at + int(self.answers[number])
                ids[i, at:end] = piece
                document[i, at:end] = number
                supervised[i, answer:end] = True
                at = end
        return Rows.of(torch.from_numpy(ids), torch.from_numpy(document), torch.from_numpy(supervised))
