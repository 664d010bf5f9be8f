"""Rows whose canvas is filled in place: every row says which of its tokens are given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from unmask.errors import UnmaskError
from unmask.objectives.objective import Rows
from unmask.training.data import DataConfig
from unmask.training.documents import Documents

HIDDEN = "."  # in `given`: a token that is to be learned
CHUNK = 10_000  # rows that are tokenised at a time


@dataclass(frozen=True)
class CanvasRow:
    """A canvas and what of it is given, and where it was read."""

    canvas: str
    given: str
    source: str


def read_canvases(patterns: tuple[str, ...], config: DataConfig) -> Iterator[CanvasRow]:
    """JSONL rows {"canvas": text, "given": text of the same length, "." where a token is to be learned}.

    Raises UnmaskError naming the first row that is not of this form.
    """
    for record, source in Documents(patterns, config).records():
        canvas = record.get("canvas") if isinstance(record, dict) else None
        given = record.get("given") if isinstance(record, dict) else None
        if not isinstance(canvas, str) or not isinstance(given, str) or len(canvas) != len(given):
            raise UnmaskError(f"{source}: needs 'canvas' and 'given', two texts of one length")
        yield CanvasRow(canvas, given, source)


class Canvases:
    """Rows whose canvas is filled in place, one token a character, each of `length` tokens.

    Which row comes when is a function of (seed, index) alone, so a resumed run goes on where it was.
    """

    def __init__(self, rows: Iterator[CanvasRow], tokenizer: Tokenizer, length: int, seed: int) -> None:
        self.seed = seed
        self.epoch = -1
        self.order = np.empty(0, np.int64)
        ids: list[Any] = []
        given: list[Any] = []
        chunk: list[CanvasRow] = []
        for row in rows:
            chunk.append(row)
            if len(chunk) == CHUNK:
                self._add(chunk, tokenizer, length, ids, given)
                chunk = []
        self._add(chunk, tokenizer, length, ids, given)
        if not ids:
            raise UnmaskError("the corpus has no canvas in it; check `data.files` in the recipe")
        self.ids = np.concatenate(ids)
        self.given = np.concatenate(given)

    @staticmethod
    def _add(chunk: list[CanvasRow], tokenizer: Tokenizer, length: int, ids: list[Any], given: list[Any]) -> None:
        if not chunk:
            return
        encoded = [e.ids for e in tokenizer.encode_batch([row.canvas for row in chunk], add_special_tokens=False)]
        for row, tokens in zip(chunk, encoded, strict=True):
            if len(tokens) != length or len(row.given) != length:
                raise UnmaskError(f"{row.source}: {len(tokens)} tokens on a canvas of {length} (data.length)")
        ids.append(np.array(encoded, np.int32))
        given.append(np.array([[mark != HIDDEN for mark in row.given] for row in chunk]))

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return len(self.ids)

    def rows(self, first: int, count: int) -> Rows:
        """Rows number first .. first + count of the endless shuffled stream."""
        picked = [self._place(index) for index in range(first, first + count)]
        ids = torch.from_numpy(self.ids[picked]).long()
        return Rows.of(ids, supervised=torch.from_numpy(~self.given[picked]))

    def fingerprint(self) -> str:
        """A digest of the rows."""
        return hashlib.sha256(self.ids.tobytes() + self.given.tobytes()).hexdigest()

    def _place(self, index: int) -> int:
        epoch, place = divmod(index, self.num_rows)
        if self.epoch != epoch:
            self.epoch = epoch
            self.order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        return int(self.order[place])
