"""What one forward reads and gives: the contract between the decoding loop and the backends that compute.

Shapes: B requests, W columns, N scored rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from unmask.canvas import Array
from unmask.decoding.processors import Adjustment
from unmask.decoding.sampling import Scores
from unmask.layout import PADDING, Layout
from unmask.models.config import ModelConfig

TEXT = -1  # anchor of a column that is text


@dataclass(frozen=True)
class Columns:
    """The columns of one request: ids, positions and anchors [W] (TEXT, or the last text position that a
    draft's slot sees); and the columns [n] that are scored, each for the position `target` [n]. Besides the
    cached slots before its first column a request may see those from beyond[0] to beyond[1] - 1. `signal`: what
    `ConditioningLogits.signal` gave for the anchored columns, None at a canvas's first step. With `guidance` s
    above 0 its scores are u + (s + 1) (c - u), u those of `twin` [W]: other ids read in a row of their own.
    `slot` [m]: columns of slots whose states are kept, to be scored once they can be told what comes before them.
    `time`: the noise level that a time-conditioned network is told (the total noise sigma). Blocks of the layout
    are counted `offset` positions early. `allowed`: tokens [k, V] that the first k scored columns may propose;
    None: all."""

    ids: Array
    position: Array
    anchor: Array
    column: Array
    target: Array
    beyond: tuple[int, int] = (0, 0)
    signal: Any = None
    twin: Array | None = None
    offset: int = 0
    guidance: float = 0.0
    time: float = 0.0
    allowed: Array | None = None
    slot: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def rows(self) -> int:
        """Rows of the batch that the request takes."""
        return 1 if self.twin is None else 2

    @staticmethod
    def text(ids: Array, low: int, high: int, offset: int = 0) -> Columns:
        """Text of a canvas [L] from position `low` to `high` - 1, to be read and not scored."""
        none = np.zeros(0, np.int64)
        return Columns(ids[low:high], np.arange(low, high), np.full(high - low, TEXT), none, none, offset=offset)


@dataclass(frozen=True)
class Feed:
    """One forward for all requests, padded on the right; a guided request's twin is the row after its own.
    Scored rows run request by request, left to right."""

    ids: Array  # [B, W]
    position: Array  # [B, W]
    document: Array  # [B, W], 0, or PADDING
    anchor: Array  # [B, W]
    cached: Array  # [B], positions below it have keys and values in the cache
    beyond: Array  # [B, 2], first and last + 1 of the positions after the columns that the cache answers for
    row: Array  # [N], request of each scored row
    column: Array  # [N]
    target: Array  # [N], position that the row's score is of
    signals: list[Any]  # [B]
    offset: Array  # [B], added to positions where the layout counts blocks
    guidance: Array  # [N], above 0 where the twin, the next row, is scored as well
    time: Array  # [B], float32
    slot_row: Array  # [M], request of each slot whose state is kept
    slot_column: Array  # [M]

    @staticmethod
    def of(requests: list[Columns], cached: Array) -> Feed:
        """Lays requests out; `cached` [requests] positions of each are in the cache."""
        rows = [(ids, r) for r in requests for ids in ((r.ids,) if r.twin is None else (r.ids, r.twin))]
        taken = np.array([r.rows for r in requests])
        widths = np.array([len(ids) for ids, _ in rows])
        shape = (len(rows), int(widths.max()))
        ids, position, anchor = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, TEXT, np.int64)
        for b, (own, r) in enumerate(rows):
            ids[b, : len(own)], position[b, : len(own)], anchor[b, : len(own)] = own, r.position, r.anchor
        document = np.where(np.arange(shape[1]) < widths[:, None], 0, PADDING)
        counts = [len(r.column) for r in requests]
        row, guidance = np.repeat(taken.cumsum() - taken, counts), np.repeat([r.guidance for r in requests], counts)
        column, target = (np.concatenate([getattr(r, f) for r in requests]) for f in ("column", "target"))
        beyond, signals = np.array([r.beyond for _, r in rows]), [r.signal for _, r in rows]
        offset, time = np.array([r.offset for _, r in rows]), np.array([r.time for _, r in rows], np.float32)
        early = (ids, position, document, anchor, np.repeat(cached, taken), beyond)
        counts = [len(r.slot) for r in requests]
        slots = (np.repeat(taken.cumsum() - taken, counts), np.concatenate([r.slot for r in requests]))
        return Feed(*early, row, column, target, signals, offset, guidance, time, *slots)

    def rows(self, index: Array) -> Feed:
        """The feed of some requests, as wide as they need."""
        width = int((self.document[index] != PADDING).sum(1).max())
        ids, position, document, anchor = (
            grid[index, :width] for grid in (self.ids, self.position, self.document, self.anchor)
        )
        place = np.full(len(self.ids), -1)
        place[index] = np.arange(len(index))
        mine = place[self.row] >= 0
        row, column, target = place[self.row[mine]], self.column[mine], self.target[mine]
        signals, scale = [self.signals[i] for i in index.tolist()], self.guidance[mine]
        early = (ids, position, document, anchor, self.cached[index], self.beyond[index])
        kept = place[self.slot_row] >= 0
        slots = (place[self.slot_row[kept]], self.slot_column[kept])
        return Feed(*early, row, column, target, signals, self.offset[index], scale, self.time[index], *slots)

    @property
    def of_draft(self) -> Array:
        """Which scored rows are slots of drafts, bool [N]."""
        return self.anchor[self.row, self.column] != TEXT


@dataclass(frozen=True)
class Sampling:
    """How each scored row is sampled: arrays [N]."""

    temperature: Array
    top_k: Array
    top_p: Array
    token_draw: Array
    choice_draw: Array
    native: Array | None = None  # which are scored in the network's own precision; None: none

    def columns(self) -> tuple[Array, Array, Array, Array, Array]:
        return self.temperature, self.top_k, self.top_p, self.token_draw, self.choice_draw

    def rows(self, index: Array | slice) -> Sampling:
        rows = Sampling(*(values[index] for values in self.columns()))
        return rows if self.native is None else replace(rows, native=self.native[index])


class Logits(Protocol):
    """Scores of a forward's rows, left where they were computed."""

    def propose(self, sampling: Sampling) -> Scores:
        """A token for each row and how sure the network is of it."""
        ...

    def probabilities(self, index: Array, sampling: Sampling) -> Array:
        """Float64 distributions [len(index), V] that rows are sampled from."""
        ...

    def odds(self, index: Array, tokens: Array) -> Array:
        """Probability of a token at each row [len(index)] over that of the row's best, at temperature 1."""
        ...

    def after_token(self, slot: Array, before: Any, row: Array, token: Array) -> Logits:
        """The feed's slots `slot` [n], scored by the sequential (Hydra) draft head once the token before them is known.

        token [n] was chosen by row `row` [n] of `before`: these logits, or those of the slots before. A network without
        such a head scores a slot by its own state alone.
        """
        ...

    def adjust(self, index: Array, adjustment: Adjustment) -> None:
        """Changes the logits of rows as an adjustment says, for all that is asked afterwards."""
        ...

    def restrict(self, index: Array, allowed: Array) -> Array:
        """Leaves rows only the allowed tokens, bool [len(index), V], in all that is asked afterwards. A row that could
        propose none of them stays as it was: which rows could, bool [len(index)]."""
        ...


class ConditioningLogits(Logits, Protocol):
    """Of a network that denoises a canvas of noise, and is told what its step before thought."""

    def best(self, index: Array, sampling: Sampling) -> tuple[Array, Array]:
        """The most likely token of rows and its probability at the rows' temperature, [len(index)] each."""
        ...

    def signal(self, index: Array, sampling: Sampling) -> Any:
        """What rows think, for the feed of the next step; only its own backend can read it."""
        ...


class Backend(Protocol):
    """Computes forwards. `open` makes room for requests; `forward` keeps the keys and values of text columns
    at their positions, where a later feed's `cached` says how many of them still hold."""

    config: ModelConfig

    def open(self, layout: Layout, rows: int, slots: int, use_cache: bool) -> None: ...

    def admit(self, rows: int, slots: int) -> None:
        """Makes room for more requests, after those there are."""
        ...

    def forward(self, feed: Feed) -> Logits: ...

    def keep(self, rows: Array) -> None:
        """Goes on with the given requests only."""
        ...
