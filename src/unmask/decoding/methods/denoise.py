"""Decoding by denoising: windows of masks that a rule fills in a few steps. AR is a window of one.

Shapes: L canvas positions, n scored columns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from unmask.canvas import Array, Commit
from unmask.decoding.budget import StepBudget, plan, share, step_budget
from unmask.decoding.constraint import Constraint
from unmask.decoding.feed import TEXT, Columns
from unmask.decoding.processors import ProcessorParameters
from unmask.decoding.request import Asked, CacheKind, MethodOptions, Row, Scheme, Setting, StepResult
from unmask.decoding.rules import RULES, remask
from unmask.decoding.sampling import Scores
from unmask.layout import GROUPED

SAMPLING = {"temperature", "top_k", "top_p", "cache"}
PROCESSORS = {declared.name for declared in fields(ProcessorParameters)}


@dataclass(frozen=True)
class Options(MethodOptions):
    """Masks are filled by a commit rule; in mode ar one after another."""

    method: ClassVar[str] = "denoise"

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return True

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        if asked.mode == "ar" or (asked.config.corruption != "uniform" and asked.config.output != "log_score"):
            return None
        return f"model '{asked.name}' is decoded by a sampler, not by a rule; leave out rule"

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        if asked.mode == "ar":
            return SAMPLING | PROCESSORS
        return windowed(asked) | PROCESSORS | {"remask_budget"}

    @classmethod
    def caches(cls, asked: Asked) -> tuple[CacheKind, ...]:
        parts = asked.layout == "bidirectional" and not asked.config.recurrent  # a state is of all that was read
        return ("auto", "none", "prefix", "dual") if parts else super().caches(asked)

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        return Denoising(row, setting)


def windowed(asked: Asked) -> set[str]:
    """Options that all ways read which denoise windows of masks."""
    out = {*SAMPLING, "block_length", "max_denoising_steps", "convention"}
    if asked.layout == "bidirectional":
        out.add("cache_refresh")
    if asked.config.mask_token_id is not None and asked.config.output == "logits" and asked.layout not in GROUPED:
        out.add("guidance")
    return out


class Denoising(Scheme):
    """The whole canvas, a block of it, or one token; with no cache, an exact or an approximate one.

    Under `drafts` the window slides: it starts at the first mask, whose token the text alone decides, so that
    one is committed at every step. Approximate caches (class A, Fast-dLLM, arXiv 2505.22618): all is read at
    a block's first step, then `prefix` reads again from the block on and `dual` the block alone.
    """

    def __init__(self, row: Row, setting: Setting) -> None:
        super().__init__(row, setting)
        layout = setting.layout
        self.layout = layout
        self.shift = int(setting.config.shift)
        self.rule = row.request.rule
        self.convention = self.rule.convention
        self.constraint = Constraint.of(row)
        self.forced: dict[int, int] = {}  # positions of the window where only one token may stand, and that token
        self.slides = layout.kind == "drafts"
        self.block = row.request.block_length or row.length
        first = int(row.masked.argmax())
        # blocks of a bidirectional model count from the first mask (LLaDA), others from position 0 or an offset
        self.offset = -first % self.block if self.convention.blocks_from_prompt else 0
        aligned = layout.kind not in ("bidirectional", *GROUPED)
        self.start = (first + self.offset) // self.block * self.block - self.offset if aligned else first
        self.end = min(self.start + self.block, row.length)
        self.pays_empty = self.convention.empty_steps and self.rule.ranks
        self.budget = 0  # steps planned for the block
        self.step = 0  # steps of it that are past
        self.forwards = 0  # made for it
        self.masks = 0  # at its start
        self.ends: Array = np.zeros(0, np.int64)  # tokens written by the end of each step, where that is the most
        self.shares: list[int] = []  # tokens due at each step, where a schedule counts a whole block
        self.remask_left = row.request.remask_budget
        self.confidence = np.full(row.length, np.inf)  # of committed tokens when they were written
        self.revised = np.zeros(row.length, bool)  # masked again once already

    def settle(self) -> bool:
        masked = self.row.masked
        if self.slides and masked.any():
            self.start = int(masked.argmax())
            self._begin(min(self.start + self.block, self.row.length))
        while not masked[self.start : self.end].any() and not self._owes():
            if not masked.any():
                return False
            self.start = self.end
            self._begin(min(self.end + self.block, self.row.length))
        self._await()
        self.row.block_end = self.end
        return True

    def _await(self) -> None:
        """Plans the steps of a window that is new, and goes on to the next that is due anything."""
        if self._one:  # nothing to plan, and its token is due
            self.row.final = self.start
            return
        if self.budget == 0:
            self._plan()
        while self.rule.ranks and not self.pays_empty and self._owed() == 0:
            self.step += 1
        self.row.final = int(self.row.masked.argmax()) if self._writes_once() else self.start

    @property
    def _one(self) -> bool:
        """Whether the window is one token that the next step writes, as in mode ar."""
        return self.end - self.start == 1 and self.rule.name == "sequential" and not self.pays_empty

    def _writes_once(self) -> bool:
        """Whether what is committed stays."""
        return self.remask_left == 0 and self.rule.final

    def _begin(self, end: int) -> None:
        self.end = end
        self.budget = 0
        self.step = 0
        self.forwards = 0

    def _plan(self) -> None:
        """Settles how many steps the block gets and, where they may be held back, what each is to end with."""
        self.masks = int(self.row.masked[self.start : self.end].sum())
        most = self.row.request.max_denoising_steps
        counted = self.block if self.rule.schedule == "block" else self.masks
        self.budget = counted if most is None else most
        if self.rule.schedule == "even" and not self.pays_empty:  # never more steps than masks
            self.budget = min(self.budget, self.masks)
        if self.rule.schedule == "block":
            self.shares = plan("block", self.block, self.budget)
        if self.convention.due_is == "most":
            self.ends = np.cumsum(plan(self.rule.schedule, self.masks, self.budget, self.convention.schedule_eps))

    def _owes(self) -> bool:
        """Whether steps without work are still to be paid for."""
        return self.pays_empty and 0 < self.step < self.budget

    def _owed(self) -> int:
        """Tokens that the schedule asks of this step."""
        masks = int(self.row.masked[self.start : self.end].sum())
        if self.convention.due_is == "most":
            count = int(self.ends[min(self.step, self.budget - 1)]) - (self.masks - masks)
        elif self.rule.schedule == "block":
            count = self.shares[self.step] if self.step < self.budget - 1 else masks
        else:
            count = step_budget(self.rule.schedule, masks, self.step, self.budget, self.convention.schedule_eps)
        return max(count, 1 if self.slides else 0, 0 if self.rule.ranks else self.convention.num_to_transfer)

    @property
    def reach(self) -> int:
        """Where the positions end that a step may write."""
        return self.end

    def columns(self) -> Columns:
        return self._columns_from(self.start)

    def _columns_from(self, start: int) -> Columns:
        """The columns of a step; what is read in part begins at `start`."""
        end = self.reach
        length = self.row.length
        cached_after = (0, 0)
        if self.layout.kind == "bidirectional":
            low = 0
            high = length
            if self._reads_part():
                # a shifted head scores the first position one column earlier
                low = max(0, start - self.shift) if self.row.masked[start] else start
                high = end if self.cache == "dual" else length
                cached_after = (high, length)
        else:  # nothing after the window is seen, and a last token that scores nothing is not fed
            low = min(self.row.cached, max(0, start - self.shift)) if self.exact else 0
            ends_early = self.shift and self.layout.kind in ("causal", *GROUPED)
            high = max(end - int(ends_early), low + 1)
        return self._read(low, high, cached_after)

    def _read(self, low: int, high: int, cached_after: tuple[int, int] = (0, 0)) -> Columns:
        """The positions from low to high - 1 as columns, and what the window asks of them."""
        start = self.start
        end = self.reach
        position = np.arange(low, high)
        anchor = np.where(position >= start, start - 1, TEXT) if self.slides else np.full(high - low, TEXT)
        target = np.arange(start, end)[self._scored()[start:end]]
        column = np.maximum(target - self.shift, low) - low
        ids = self.row.canvas.ids[0, low:high]
        allowed = None
        if self.constraint is not None and len(target):
            allowed = self.constraint.allowed(start, end, target)
            only = allowed.sum(1) == 1
            self.forced = dict(zip(target[only].tolist(), allowed[only].argmax(1).tolist(), strict=True))
        return Columns(ids, position, anchor, column, target, cached_after, offset=self.offset, allowed=allowed)

    def _scored(self) -> Array:
        """Positions whose scores are asked for, bool [L]; those in the window count."""
        return self.row.masked

    def _reads_part(self) -> bool:
        """Whether an approximate cache answers for the rest at this step."""
        if self.cache not in ("prefix", "dual") or self.forwards == 0:
            return False
        refresh = self.row.request.cache_refresh
        return refresh == 0 or self.forwards % refresh != 0

    def take(self, result: StepResult) -> list[Commit]:
        row = self.row
        if self._one:
            return self._take_one(result)
        open_1L = (row.masked & self._window())[None]
        if result.possible is not None:
            if len(result.possible) and not result.possible.any():
                raise RuntimeError("no token of the window is allowed by the grammar")  # rather than for ever
            open_1L[0, result.target[~result.possible]] = False
        scores = result.scores.grid(0, result.target, row.canvas.ids.shape)
        steps_left = max(self.budget - self.step, 1)
        chosen = self._choose(scores, open_1L)
        for place, token in self.forced.items():
            chosen[0, place] = True
            scores.token[0, place] = token
            scores.confidence[0, place] = 1.0
        if self.constraint is not None:
            chosen = self._held(self.constraint, chosen, scores, result)
        commits = [Commit(chosen, scores.token, scores.confidence, "unmask")]
        if self.remask_left > 0:
            revise = self._revise(chosen, open_1L, steps_left)
            masks = np.full_like(scores.token, row.canvas.mask_id)
            commits.append(Commit(revise, masks, self.confidence[None].copy(), "remask"))
        self.confidence = np.where(chosen[0], scores.confidence[0], self.confidence)
        self._taken()
        return commits

    def _held(self, constraint: Constraint, chosen: Array, scores: Scores, result: StepResult) -> Array:
        """What of the choice [1, L] goes together. The last planned step writes all of it, with other tokens where it
        must; before it, what does not go waits for a step that sees the rest."""
        ids = self.row.canvas.ids[0].copy()
        sureness = scores.confidence[0].copy()
        if self.slides:
            sureness[self.start] = np.inf
        kept = constraint.agreed(self.start, self.reach, chosen[0], scores.token[0], sureness, ids)
        if self.step >= self.budget - 1:
            ids[kept] = scores.token[0, kept]
            left_out = (chosen[0] & ~kept)[: self.end].nonzero()[0]
            for place, (token, p) in constraint.complete(self.start, self.reach, left_out, ids, result).items():
                scores.token[0, place] = token
                scores.confidence[0, place] = p
                kept[place] = True
        return kept[None]

    def _take_one(self, result: StepResult) -> list[Commit]:
        """What the rule comes to in a window of one, without its grids: mode ar spends its time here."""
        token = int(result.scores.token[0])
        forced = [] if self.constraint is None else self.constraint.forced(token, self.start)
        self.row.forced += len(forced)
        run = slice(self.start, self.start + 1 + len(forced))
        made = self.commit(run, [token, *forced], [result.scores.confidence[0], *[1.0] * len(forced)])
        self._taken()
        return [made]

    def _taken(self) -> None:
        """Counts a forward."""
        if self.exact:  # everything before the window is final and was fed
            self.row.cached = self.start
        self.step += 1
        self.forwards += 1

    def _choose(self, scores: Scores, open_1L: Array) -> Array:
        """Positions to write, [1, L]."""
        opens = self.cache in ("prefix", "dual") and self.forwards == 0
        if opens and self.convention.first_step == "one" and open_1L[0, self.start]:
            return np.arange(self.row.length)[None] == self.start
        part = share(self.rule.schedule, self.step, self.budget, self.convention.schedule_eps)
        asked = StepBudget(np.array([self._owed()]), np.array([part]))
        return RULES[self.rule.name](self._first_is_best(scores) if self.slides else scores, open_1L, asked, self.rule)

    def _window(self) -> Array:
        index = np.arange(self.row.length)
        return (index >= self.start) & (index < self.reach)

    def _first_is_best(self, scores: Scores) -> Scores:
        """Scores in which the window's first position beats all: no later step could know it better."""
        best = [scores.confidence.copy(), scores.entropy.copy(), scores.margin.copy(), scores.draw.copy()]
        for values, highest in zip(best, (np.inf, 0.0, np.inf, 0.0), strict=True):
            values[0, self.start] = highest
        return Scores(scores.token, *best)

    def _revise(self, chosen: Array, open_1L: Array, steps_left: int) -> Array:
        """Committed tokens of the window to mask again, within the request's budget; never in its last step."""
        canvas = self.row.canvas
        count = np.array([0])
        # a block that this step completes is done: what was written last is not taken back
        if steps_left > 1 and (open_1L & ~chosen).any():
            count[0] = min(-(-self.remask_left // (steps_left - 1)), self.remask_left)
        eligible = (self._window() & ~canvas.frozen[0] & ~self.revised)[None] & ~open_1L
        revise = remask(self.confidence[None], eligible, count)
        self.revised |= revise[0]
        self.remask_left -= int(revise.sum())
        return revise
