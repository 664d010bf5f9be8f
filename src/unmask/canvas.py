"""The canvas being written, the commits that change it and the frames that record the changes.

Shapes: B requests, L positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
NO_MASK = -1  # mask id of a canvas whose noise is random tokens
Kind = Literal["unmask", "edit", "remask", "renoise", "insert", "delete"]


@dataclass(frozen=True)
class Frame:
    """What one step did to one request. Everything that shows or stores decoding consumes frames only."""

    step: int  # counts forward passes of the request, from 1
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    kinds: tuple[Kind, ...]
    row: int = 0  # which request of the batch

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Commit:
    """Changes to a canvas: where `chosen` [B, L], the token becomes `tokens` [B, L]."""

    chosen: Array
    tokens: Array
    confidence: Array
    kind: Kind


@dataclass(frozen=True)
class Canvas:
    """Token ids [B, L] being written. `frozen` [B, L] marks prompt, given text and padding."""

    ids: Array
    frozen: Array
    mask_id: int

    @staticmethod
    def of(rows: list[list[int]], mask_id: int, pad_id: int, given: list[list[bool]] | None = None) -> Canvas:
        """Canvas of rows of different length, padded on the right. Masks are open, all else is frozen.

        `given` marks tokens that are frozen even where they equal the mask id (a literal in a prompt), and
        alone decides where noise is no mask.
        """
        length = max(len(row) for row in rows)
        ids = np.full((len(rows), length), pad_id, np.int64)
        frozen = np.ones((len(rows), length), bool)
        for b, row in enumerate(rows):
            ids[b, : len(row)] = row
            open_here = (ids[b, : len(row)] == mask_id) | (mask_id == NO_MASK)
            if given is not None:
                open_here &= ~np.array(given[b], bool)
            frozen[b, : len(row)] = ~open_here
        return Canvas(ids, frozen, mask_id)

    @cached_property
    def masked(self) -> Array:
        """Open positions that are still noise, [B, L]."""
        return (self.ids == self.mask_id) & ~self.frozen

    def apply(self, commits: Iterable[Commit], steps: list[int]) -> tuple[Canvas, list[Frame]]:
        """The changed canvas and a frame for each request that changed; `steps` are their step numbers.

        Raises ValueError if a commit touches a frozen position.
        """
        ids = self.ids.copy()
        changes: list[list[tuple[int, int, float, Kind]]] = [[] for _ in steps]
        for commit in commits:
            if (commit.chosen & self.frozen).any():
                raise ValueError("a commit touches a frozen position")
            ids = np.where(commit.chosen, commit.tokens, ids)
            rows, positions = (x.tolist() for x in commit.chosen.nonzero())
            tokens, confidence = commit.tokens[commit.chosen].tolist(), commit.confidence[commit.chosen].tolist()
            for row, position, token, c in zip(rows, positions, tokens, confidence, strict=True):
                changes[row].append((position, token, c, commit.kind))
        frames = []
        for row, changed in enumerate(changes):
            if changed:
                where_, what, sure, kinds = zip(*changed, strict=True)
                frames.append(Frame(steps[row], where_, what, sure, kinds, row))
        return replace(self, ids=ids), frames

    def replay(self, frames: Iterable[Frame]) -> Canvas:
        """This canvas after the frames: replayed onto the first canvas they give the last."""
        ids = self.ids.copy()
        for frame in frames:
            ids[frame.row, list(frame.positions)] = frame.tokens
        return replace(self, ids=ids)
