"""What one forward reads and gives: the contract between the decoding loop and the backends that compute.

Shapes: B requests, W columns, N scored rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """The columns of one request, and which of them are scored or kept.

    With `guidance` s above 0 its scores are u + (s + 1) (c - u), u those of a row that reads `unconditional` instead.
    """

    ids: Array  # [W]
    position: Array  # [W]
    anchor: Array  # [W], TEXT, or the last text position that a draft's slot sees
    column: Array  # [n], columns that are scored
    target: Array  # [n], the position that each scores
    cached_after: tuple[int, int] = (0, 0)  # first and last + 1 of the cached positions seen besides those before it
    self_conditioning: Any = None  # of the step before, for the anchored columns; None at a canvas's first step
    unconditional: Array | None = None  # [W]
    offset: int = 0  # how many positions early the layout counts blocks
    guidance: float = 0.0
    time: float = 0.0  # noise level (total noise sigma) that a time-conditioned network is told
    allowed: Array | None = None  # bool [k, V], tokens that the first k scored columns may propose; None: all
    slot: Array = field(default_factory=lambda: np.zeros(0, np.int64))  # [m], columns whose states are kept

    @property
    def rows(self) -> int:
        """Rows of the batch that the request takes."""
        return 1 if self.unconditional is None else 2

    @staticmethod
    def text(ids: Array, low: int, high: int, offset: int = 0, scored: bool = False) -> Columns:
        """Text of a canvas [L] from position `low` to `high` - 1, to be read; `scored`: each scores the next one."""
        column = np.arange(high - low if scored else 0)
        place = np.arange(low, high)
        return Columns(ids[low:high], place, np.full(high - low, TEXT), column, low + column + 1, offset=offset)


@dataclass(frozen=True)
class Feed:
    """One forward for all requests, padded on the right; a guided request's unconditional row is the one after its own.
    Scored rows run request by request, left to right."""

    ids: Array  # [B, W]
    position: Array  # [B, W]
    document: Array  # [B, W], 0, or PADDING
    anchor: Array  # [B, W]
    cached: Array  # [B], positions below it have keys and values in the cache
    cached_after: Array  # [B, 2], first and last + 1 of the positions after the columns that the cache answers for
    row: Array  # [N], request of each scored row
    column: Array  # [N]
    target: Array  # [N], position that the row's score is of
    self_conditioning: list[Any]  # [B]
    offset: Array  # [B], added to positions where the layout counts blocks
    guidance: Array  # [N], above 0 where the unconditional row, the next, is scored as well
    time: Array  # [B], float32
    slot_row: Array  # [M], request of each slot whose state is kept
    slot_column: Array  # [M]

    @staticmethod
    def of(requests: list[Columns], cached: Array) -> Feed:
        """Lays requests out; `cached` [requests] positions of each are in the cache."""
        rows: list[tuple[Array, Columns]] = []
        first = []  # row of each request
        for request in requests:
            first.append(len(rows))
            rows.append((request.ids, request))
            if request.unconditional is not None:
                rows.append((request.unconditional, request))
        widths = np.array([len(ids) for ids, _ in rows])
        shape = (len(rows), int(widths.max()))
        ids = np.zeros(shape, np.int64)
        position = np.zeros(shape, np.int64)
        anchor = np.full(shape, TEXT, np.int64)
        for b, (own, request) in enumerate(rows):
            ids[b, : len(own)] = own
            position[b, : len(own)] = request.position
            anchor[b, : len(own)] = request.anchor
        counts = [len(request.column) for request in requests]
        return Feed(
            ids=ids,
            position=position,
            document=np.where(np.arange(shape[1]) < widths[:, None], 0, PADDING),
            anchor=anchor,
            cached=np.repeat(cached, [request.rows for request in requests]),
            cached_after=np.array([request.cached_after for _, request in rows]),
            row=np.repeat(first, counts),
            column=np.concatenate([request.column for request in requests]),
            target=np.concatenate([request.target for request in requests]),
            self_conditioning=[request.self_conditioning for _, request in rows],
            offset=np.array([request.offset for _, request in rows]),
            guidance=np.repeat([request.guidance for request in requests], counts),
            time=np.array([request.time for _, request in rows], np.float32),
            slot_row=np.repeat(first, [len(request.slot) for request in requests]),
            slot_column=np.concatenate([request.slot for request in requests]),
        )

    @property
    def settled(self) -> int:
        """Columns that hold in every row whatever the scores say: those before the first that is scored."""
        first = (self.document != PADDING).sum(1)
        np.minimum.at(first, self.row, self.column)
        return int(first.min())

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
    plain: Array | None = None  # which are scored at temperature 1, whatever they are drawn at; None: none

    def columns(self) -> tuple[Array, Array, Array, Array, Array]:
        return self.temperature, self.top_k, self.top_p, self.token_draw, self.choice_draw

    def rows(self, index: Array | slice) -> Sampling:
        kinds = (None if kind is None else kind[index] for kind in (self.native, self.plain))
        return Sampling(*(values[index] for values in self.columns()), *kinds)


class Logits(Protocol):
    """Scores of a forward's rows, left where they were computed."""

    def propose(self, sampling: Sampling) -> Scores:
        """A token for each row and how sure the network is of it."""

    def probabilities(self, index: Array, sampling: Sampling) -> Array:
        """Float64 distributions [len(index), V] that rows are sampled from."""

    def odds(self, index: Array, tokens: Array) -> Array:
        """Probability of a token at each row [len(index)] over that of the row's best, at temperature 1."""

    def after_token(self, slot: Array, before: Any, row: Array, token: Array) -> Logits:
        """The feed's slots `slot` [n], scored by the sequential (Hydra) draft head once the token before them is known.

        token [n] was chosen by row `row` [n] of `before`: these logits, or those of the slots before. A network without
        such a head scores a slot by its own state alone.
        """

    def adjust(self, index: Array, adjustment: Adjustment) -> None:
        """Changes the logits of rows as an adjustment says, for all that is asked afterwards."""

    def restrict(self, index: Array, allowed: Array) -> Array:
        """Leaves rows only the allowed tokens, bool [len(index), V], in all that is asked afterwards. A row that could
        propose none of them stays as it was: which rows could, bool [len(index)]."""


class ConditioningLogits(Logits, Protocol):
    """Of a network that denoises a canvas of noise, conditioned on its own predictions of the step before."""

    def best(self, index: Array, sampling: Sampling) -> tuple[Array, Array]:
        """The most likely token of rows and its probability at the rows' temperature, [len(index)] each."""

    def self_conditioning(self, index: Array, sampling: Sampling) -> Any:
        """What rows think, for the feed of the next step; only its own backend can read it."""


class Backend(Protocol):
    """Computes forwards. `open` makes room for requests; `forward` keeps the keys and values of text columns
    at their positions, where a later feed's `cached` says how many of them still hold."""

    config: ModelConfig

    def open(self, layout: Layout, rows: int, slots: int, use_cache: bool) -> None: ...

    def admit(self, rows: int, slots: int) -> None:
        """Makes room for more requests, after those there are."""

    def forward(self, feed: Feed) -> Logits: ...

    def keep(self, rows: Array) -> None:
        """Goes on with the given requests only."""

    def share(self, source: int, target: int, count: int) -> bool:
        """Gives a row the keys and values of another's first `count` positions; false where that is not implemented."""

    def pass_costs(self) -> dict[int, float] | None:
        """Seconds of a forward by its columns on this machine; None where they are not measured."""
