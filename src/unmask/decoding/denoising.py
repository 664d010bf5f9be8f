"""Decoding by denoising: windows of masks that a rule fills in a few steps. AR is a window of one.

Shapes: L canvas positions, n scored columns.
"""

from __future__ import annotations

import numpy as np

from unmask.canvas import Array, Commit
from unmask.decoding.feed import TEXT, Columns
from unmask.decoding.request import Read, Row
from unmask.decoding.rules import RULES, remask
from unmask.decoding.sampling import Scores
from unmask.layout import Layout

# rules whose commits no later step of the same rule takes back
WRITE_ONCE = frozenset({"quota", "threshold", "factor", "entropy_bound", "margin", "random", "sequential"})


class Denoising:
    """The whole canvas, a block of it, or one token; with no cache, an exact or an approximate one.

    Under `drafts` the window slides: it starts at the first mask, whose token the text alone decides, so that
    one is committed at every step. Approximate caches (class A, Fast-dLLM, arXiv 2505.22618): all is read at
    a block's first step, then `prefix` reads again from the block on and `dual` the block alone.
    """

    proposes = True

    def __init__(self, row: Row, layout: Layout, cache: str, shift: int) -> None:
        self.row, self.layout, self.cache, self.shift = row, layout, cache, shift
        self.slides = layout.kind == "drafts"
        self.block = row.request.block_length or row.length
        first = int(row.masked.argmax())
        # blocks of a bidirectional model count from the first mask (LLaDA), others from position 0
        self.start = first if layout.kind in ("bidirectional", "drafts") else first // self.block * self.block
        self.end = min(self.start + self.block, row.length)
        self.steps_in_block = self.budget = 0
        self.prefill_end: int | None = None  # of a forward that only reads text
        self.remask_left = row.request.remask_budget
        self.confidence = np.full(row.length, np.inf)  # of committed tokens when they were written
        self.revised = np.zeros(row.length, bool)  # masked again once already

    @property
    def temperature(self) -> float:
        return self.row.request.temperature

    def settle(self) -> bool:
        masked = self.row.masked
        if not masked.any():
            return False
        if self.slides:
            self.start = int(masked.argmax())
            self.end = min(self.start + self.block, self.row.length)
            self.steps_in_block = self.budget = 0
        while not masked[self.start : self.end].any():
            self.start, self.end = self.end, min(self.end + self.block, self.row.length)
            self.steps_in_block = self.budget = 0
        if self.budget == 0:
            # never more steps than masks: a step that is not needed is not paid for
            masks, most = int(masked[self.start : self.end].sum()), self.row.request.max_denoising_steps
            self.budget = masks if most is None else min(most, masks)
        self.row.final = int(masked.argmax()) if self._writes_once() else self.start
        return True

    def _writes_once(self) -> bool:
        """Whether what is committed stays."""
        return self.remask_left == 0 and self.row.request.rule.name in WRITE_ONCE

    def columns(self) -> Columns:
        start, end, length = self.start, self.end, self.row.length
        beyond = (0, 0)
        if self.layout.kind == "bidirectional":
            low, high = 0, length
            if self._reads_part():
                low, high = start, end if self.cache == "dual" else length
                beyond = (high, length)
        else:  # nothing after the window is seen, and a last token that scores nothing is not fed
            low = min(self.row.cached, max(0, start - self.shift)) if self.cache == "exact" else 0
            self.prefill_end = (
                self.row.prefill_end(low, start, self.layout.block_length) if self.cache == "exact" else None
            )
            if self.prefill_end is not None:
                return Columns.text(self.row.canvas.ids[0], low, self.prefill_end)
            ends_early = self.shift and self.layout.kind in ("causal", "drafts")
            high = max(end - int(ends_early), low + 1)
        position = np.arange(low, high)
        anchor = np.where(position >= start, start - 1, TEXT) if self.slides else np.full(high - low, TEXT)
        target = np.arange(start, end)[self.row.masked[start:end]]
        column = np.maximum(target - self.shift, low) - low
        return Columns(self.row.canvas.ids[0, low:high], position, anchor, column, target, beyond)

    def _reads_part(self) -> bool:
        """Whether an approximate cache answers for the rest at this step."""
        if self.cache not in ("prefix", "dual") or self.steps_in_block == 0:
            return False
        refresh = self.row.request.cache_refresh
        return refresh == 0 or self.steps_in_block % refresh != 0

    def take(self, read: Read) -> list[Commit]:
        row, request = self.row, self.row.request
        if self.prefill_end is not None:
            row.cached, row.prefills = self.prefill_end, row.prefills + 1
            return []
        open_1L = (row.masked & self._window())[None]
        scores = read.scores.grid(np.zeros(len(read.target), np.int64), read.target, open_1L.shape)
        steps_left = np.array([max(self.budget - self.steps_in_block, 1)])
        ranked = self._sure_first(scores) if self.slides else scores
        chosen = RULES[request.rule.name](ranked, open_1L, steps_left, request.rule)
        commits = [Commit(chosen, scores.token, scores.confidence, "unmask")]
        if self.remask_left > 0:
            revise = self._revise(chosen, open_1L, int(steps_left[0]))
            masks = np.full_like(scores.token, row.canvas.mask_id)
            commits.append(Commit(revise, masks, self.confidence[None].copy(), "remask"))
        self.confidence = np.where(chosen[0], scores.confidence[0], self.confidence)
        if self.cache == "exact":  # everything before the window is final and was fed
            row.cached = self.start
        self.steps_in_block += 1
        return commits

    def _window(self) -> Array:
        index = np.arange(self.row.length)
        return (index >= self.start) & (index < self.end)

    def _sure_first(self, scores: Scores) -> Scores:
        """Scores in which the window's first position beats all: no later step could know it better."""
        best = [scores.confidence.copy(), scores.entropy.copy(), scores.margin.copy(), scores.draw.copy()]
        for values, surest in zip(best, (np.inf, 0.0, np.inf, 0.0), strict=True):
            values[0, self.start] = surest
        return Scores(scores.token, *best)

    def _revise(self, chosen: Array, open_1L: Array, steps_left: int) -> Array:
        """Committed tokens of the window to mask again, within the request's budget; never in its last step."""
        canvas, count = self.row.canvas, np.array([0])
        # a block that this step completes is done: what was written last is not taken back
        if steps_left > 1 and (open_1L & ~chosen).any():
            count[0] = min(-(-self.remask_left // (steps_left - 1)), self.remask_left)
        eligible = (self._window() & ~canvas.frozen[0] & ~self.revised)[None] & ~open_1L
        revise = remask(self.confidence[None], eligible, count)
        self.revised |= revise[0]
        self.remask_left -= int(revise.sum())
        return revise
