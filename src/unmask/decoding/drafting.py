"""Decoding by checked drafts: the adapter drafts, the base checks its drafts in the same forward.

In mode verify what holds is the base's own text; under the rule `checked` of mode diffusion a draft holds
where the base finds it likely enough.
"""

from __future__ import annotations

import numpy as np

from unmask.canvas import Array, Commit
from unmask.decoding.constraint import Constraint
from unmask.decoding.feed import TEXT, Columns
from unmask.decoding.request import Read, Row
from unmask.decoding.sampling import uniforms
from unmask.decoding.verify import accept_greedy, accept_sampled, accept_tolerant

ACCEPT_DRAW = 2  # purpose of the draws that decide whether a sampled draft holds


class Verifying:
    """Feeds text not yet read, drafts as if they were text, and new slots for every outcome of the check.

    Every step commits the drafts that hold and the base's token after them.
    """

    proposes = True

    def __init__(self, row: Row, cache: str) -> None:
        self.row, self.exact = row, cache == "exact"
        self.window = row.request.block_length or row.length  # one sure token and its drafts
        self.constraint = Constraint.of(row)
        self.start = 0
        self.prefill_end: int | None = None  # of a forward that only reads text
        self.drafts: Array = np.zeros(0, np.int64)  # guesses for the positions after the text
        self.distributions: Array | None = None  # [n, V] that they were sampled from, above temperature 0

    @property
    def temperature(self) -> float:
        return self.row.request.temperature

    def settle(self) -> bool:
        masked = self.row.masked
        self.start = self.row.final = int(masked.argmax())
        return bool(masked.any())

    def columns(self) -> Columns:
        row, start = self.row, self.start
        low, texts = row.cached if self.exact else 0, start + len(self.drafts)
        self.prefill_end = row.prefill_end(low, start) if self.exact else None
        if self.prefill_end is not None:
            return Columns.text(row.canvas.ids[0], low, self.prefill_end)
        ids, position = [row.canvas.ids[0, low:start], self.drafts], [np.arange(low, texts)]
        anchor = [np.full(texts - low, TEXT)]
        for outcome in range(start - 1, texts):
            place = np.arange(outcome + 1, outcome + 1 + self._slots(outcome))
            ids.append(np.full(len(place), row.canvas.mask_id))
            position.append(place)
            anchor.append(np.full(len(place), outcome))
        places = np.concatenate(position)
        column = np.arange(start - 1 - low, len(places))  # of the last known token and all after it
        allowed = None if self.constraint is None else self.constraint.after(self.drafts, start)
        return Columns(np.concatenate(ids), places, np.concatenate(anchor), column, places[column] + 1, allowed=allowed)

    def _slots(self, anchor: int) -> int:
        """Slots of a group: one fewer than the window, whose first token needs none, and inside the canvas."""
        window = min(self.window, self.row.length - self.start)
        return max(0, min(window - 1, self.row.length - anchor - 2))

    def take(self, read: Read) -> list[Commit]:
        row, start, count = self.row, self.start, len(self.drafts)
        if self.prefill_end is not None:
            row.cached, row.prefills = self.prefill_end, row.prefills + 1
            return []
        scores, checks = read.scores, np.arange(count + 1)
        tolerant = row.request.mode == "diffusion"
        if self.distributions is None and tolerant:
            odds = read.odds(checks[:-1], self.drafts)
            kept, sure = accept_tolerant(self.drafts, scores.token[checks], odds, row.request.rule.threshold)
        elif self.distributions is None:
            kept, sure = accept_greedy(self.drafts, scores.token[checks])
        else:
            p = read.probabilities(checks)
            seed, step = np.array(row.request.seed), np.array(row.steps)
            accept = uniforms(seed, step, read.target[checks], ACCEPT_DRAW)
            kept, sure = accept_sampled(self.drafts, self.distributions, p, accept, read.sampling.token_draw[checks])
        made = [*self.drafts[:kept].tolist(), sure][: row.length - start]
        row.accepted.append(kept)
        self._draft_anew(kept, made, read)
        if self.exact:
            row.cached = start + kept
        shape = row.canvas.ids.shape
        chosen, tokens, confidence = np.zeros(shape, bool), np.zeros(shape, np.int64), np.zeros(shape)
        where = (0, slice(start, start + len(made)))
        chosen[where], tokens[where], confidence[where] = True, made, scores.confidence[: len(made)]
        return [Commit(chosen, tokens, confidence, "unmask")]

    def _draft_anew(self, kept: int, made: list[int], read: Read) -> None:
        """Takes the proposals of the group that saw exactly the text that turned out to hold."""
        sizes = [self._slots(self.start - 1 + i) for i in range(kept + 1)]
        first = len(self.drafts) + 1 + sum(sizes[:kept])
        own, warm = np.arange(first, first + sizes[kept]), self.row.request.temperature > 0
        if self.constraint is not None:
            self.drafts, q = self.constraint.drafts(made, self.start, read, own, warm)
            self.distributions = q if warm and len(q) else None
            return
        taken = read.probabilities(own) if warm and len(own) else None
        # of its best token, whichever was drawn: a draw that chose whether it is checked would bias the text
        sure = read.scores.confidence[own] if taken is None else taken.max(-1)
        count = int((sure >= self.row.request.rule.draft_threshold).cumprod().sum())
        self.drafts = read.scores.token[own[:count]]
        self.distributions = taken[:count] if taken is not None and count else None
