"""Rows whose canvas is filled in place: every row says which of its tokens are given."""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from unmask.errors import UnmaskError
from unmask.objectives.objective import Rows

HIDDEN = "."  # in `given`: a token that is to be learned


@dataclass(frozen=True)
class CanvasRow:
    """A canvas and what of it is given, and where it was read."""

    canvas: str
    given: str
    source: str


def read_canvases(patterns: tuple[str, ...]) -> list[CanvasRow]:
    """JSONL rows {"canvas": text, "given": text of the same length, "." where a token is to be learned}.

    Raises UnmaskError naming the first row that is not of this form.
    """
    paths = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
    if not paths:
        raise UnmaskError(f"corpus '{', '.join(patterns)}': no such file; check `data.files` in the recipe")
    return [_read(line, f"{path}, row {n}") for path in paths for n, line in enumerate(_lines(path), 1)]


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def _read(line: str, source: str) -> CanvasRow:
    try:
        row = json.loads(line)
        canvas = row["canvas"]
        given = row["given"]
    except (ValueError, KeyError, TypeError):
        raise UnmaskError(f"corpus {source}: needs JSON with 'canvas' and 'given'") from None
    if not isinstance(canvas, str) or not isinstance(given, str) or len(canvas) != len(given):
        raise UnmaskError(f"corpus {source}: 'canvas' and 'given' must be texts of one length")
    return CanvasRow(canvas, given, source)


class Canvases:
    """Rows whose canvas is filled in place, one token a character, each of `length` tokens.

    Which row comes when is a function of (seed, index) alone, so a resumed run goes on where it was.
    """

    def __init__(self, rows: list[CanvasRow], tokenizer: Tokenizer, length: int, seed: int) -> None:
        self.seed = seed
        self.epoch = -1
        self.order = np.empty(0, np.int64)
        encoded = [e.ids for e in tokenizer.encode_batch([row.canvas for row in rows], add_special_tokens=False)]
        for row, ids in zip(rows, encoded, strict=True):
            if len(ids) != length or len(row.given) != length:
                raise UnmaskError(f"corpus {row.source}: {len(ids)} tokens on a canvas of {length} (data.length)")
        self.ids = np.array(encoded, np.int32)
        self.given = np.array([[mark != HIDDEN for mark in row.given] for row in rows])

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
