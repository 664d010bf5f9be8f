"""The canvas being written, the commits that change it and the frames that record the changes.

Shapes: B requests, L positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
NO_MASK = -1  # mask id of a canvas whose noise is random tokens
T = TypeVar("T")
Kind = Literal["unmask", "edit", "remask", "renoise", "insert", "delete"]
MOVES: tuple[Kind, ...] = ("insert", "delete")  # kinds that move what stands after them


@dataclass(frozen=True)
class Frame:
    """What one step did to one request. Everything that shows or stores decoding consumes frames only.

    Positions are those before the step. First tokens are written; then, all at once, `delete` takes out the
    token at its position and `insert` puts a mask before the one at its. What stands after them, up to `end`,
    moves: what is pushed past it is lost, and room before it is filled with masks.
    """

    step: int  # counts forward passes of the request, from 1
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    kinds: tuple[Kind, ...]
    row: int = 0  # which request of the batch
    end: int = 0  # where moves stop; 0 in a frame without any

    def written(self, ids: list[int], mask_id: int) -> list[int]:
        """The ids of the request's canvas after this step."""
        out, deleted, inserted = list(ids), set[int](), set[int]()
        for position, token, kind in zip(self.positions, self.tokens, self.kinds, strict=True):
            if kind in MOVES:
                (deleted if kind == "delete" else inserted).add(position)
            else:
                out[position] = token
        return moved(out, deleted, inserted, self.end, mask_id) if deleted or inserted else out

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        return fields if self.end else {name: value for name, value in fields.items() if name != "end"}


def moved(values: list[T], deleted: set[int], inserted: set[int], end: int, gap: T) -> list[T]:
    """Values of positions after some before `end` are deleted and a gap is inserted before others."""
    part: list[T] = []
    for position in range(end):
        part += [gap] if position in inserted else []
        part += [] if position in deleted else [values[position]]
    return part[:end] + [gap] * (end - len(part)) + values[end:]


@dataclass(frozen=True)
class Commit:
    """Changes to a canvas: where `chosen` [B, L], the token becomes `tokens` [B, L]; of an insert or a delete
    see `Frame`, and `end` is where it stops to move."""

    chosen: Array
    tokens: Array
    confidence: Array
    kind: Kind
    end: int = 0


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

        Raises ValueError if a commit touches or moves a frozen position.
        """
        changes: list[list[tuple[int, int, float, Kind]]] = [[] for _ in steps]
        ends = [0] * len(steps)
        for commit in sorted(commits, key=lambda c: c.kind in MOVES):
            if (commit.chosen & self.frozen).any():
                raise ValueError("a commit touches a frozen position")
            rows, positions = (x.tolist() for x in commit.chosen.nonzero())
            tokens, confidence = commit.tokens[commit.chosen].tolist(), commit.confidence[commit.chosen].tolist()
            for row, position, token, c in zip(rows, positions, tokens, confidence, strict=True):
                changes[row].append((position, token, c, commit.kind))
                if commit.kind in MOVES:
                    ends[row] = commit.end
                    if self.frozen[row, position : commit.end].any():
                        raise ValueError("a commit moves a frozen position")
        frames = []
        for row, changed in enumerate(changes):
            if changed:
                where_, what, sure, kinds = zip(*changed, strict=True)
                frames.append(Frame(steps[row], where_, what, sure, kinds, row, ends[row]))
        return self.replay(frames), frames

    def replay(self, frames: Iterable[Frame]) -> Canvas:
        """This canvas after the frames: replayed onto the first canvas they give the last."""
        ids = self.ids.copy()
        for frame in frames:
            if frame.end:
                ids[frame.row] = frame.written(ids[frame.row].tolist(), self.mask_id)
            else:
                ids[frame.row, list(frame.positions)] = frame.tokens
        return replace(self, ids=ids)
