"""Dialogues as token ids: shards that `unmask adapt` writes, packed into training rows.

A shard is a safetensors file: `ids` int32 [N], all dialogues one after another; `length` and `answer`
int32 [dialogues], how many tokens each has and where its answer starts.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unmask.checkpoints.safetensors import read_tensors, write_tensors
from unmask.errors import UnmaskError
from unmask.training.data import DataConfig, WholeDocuments
from unmask.training.framing import Ids, Learned
from unmask.training.token_file import Tokens


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


class Dialogues(WholeDocuments):
    """Whole dialogues, packed anew each epoch; answers are learned, and what is longer than a row is cut at its end."""

    def __init__(self, patterns: tuple[str, ...], length: int, seed: int) -> None:
        paths = sorted({path for pattern in patterns for path in glob.glob(pattern)})
        if not paths:
            raise UnmaskError(f"corpus {', '.join(patterns)}: no such file; `unmask adapt` writes it first")
        tokens = Tokens.of(piece for path in paths for piece in _dialogues(read_shard(Path(path))))
        if not tokens.documents:
            raise UnmaskError(f"corpus {', '.join(paths)}: holds no dialogue; make the text again")
        super().__init__(tokens, DataConfig(files=patterns, length=length), seed, eos=0)
        self.num_rows = len(
            self._pack(np.random.default_rng([seed, 0]))
        )  # another epoch's order packs into about as many

    def _fits(self, number: int) -> bool:
        return True

    def shuffle(self, rng: np.random.Generator) -> None:
        self.groups = self._pack(rng)
        self.order = np.arange(self.num_rows) % len(self.groups)


def _dialogues(shard: dict[str, Tensor]) -> Iterator[tuple[Ids, Learned]]:
    ends = np.cumsum(shard["length"].numpy())
    for ids, answer in zip(np.split(shard["ids"].numpy(), ends[:-1]), shard["answer"].tolist(), strict=False):
        yield ids, np.arange(len(ids)) >= answer
