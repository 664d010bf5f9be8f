"""Decoding by checked drafts: the adapter drafts, the base checks its drafts in the same forward.

In mode verify what holds is the base's own text, token for token that of mode ar, above temperature 0 too: the base's
token is drawn by the uniform that mode ar draws it by, and a draft holds where it is that token. Under the rule
`checked` of mode diffusion a draft holds at temperature 0 where the base finds it likely enough.
Shapes: n drafts of one request, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from unmask.canvas import Array, Commit
from unmask.decoding.constraint import Constraint
from unmask.decoding.feed import TEXT, Columns, Logits, Sampling
from unmask.decoding.methods import denoise
from unmask.decoding.methods.denoise import PROCESSORS, SAMPLING
from unmask.decoding.options import option
from unmask.decoding.planner import Odds
from unmask.decoding.request import Asked, MethodOptions, Row, Scheme, Setting, StepResult, sampled
from unmask.decoding.sampling import COLD, draw
from unmask.decoding.suffixes import Suffixes

# What is believed of drafts before their counts say more:
FORCED_ODDS = 0.9  # that tokens of a forced run are those that the model would take
# that the next token is the one that followed the last 1, 2, .. tokens before (`unmask bench lookup` counts it)
FOUND_ODDS = (0.0, 0.13, 0.44, 0.51, 0.58, 0.6, 0.9, 0.9, 0.95)
SLOT_ODDS = 0.5  # that a slot's draft, not known yet, comes to be fed and holds, given all before it do
Kind = tuple[str | int, ...]  # of drafts that are counted together: where from, how deep, how sure
LEAST = 0.02  # chance of drafts that nobody plans with


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What is read by this method alone."""

    lookup: int = option(5, ge=0)  # most drafts that are copied from the prompt and the answer; 0: none


@dataclass(frozen=True)
class Options(Parameters, MethodOptions):
    """Drafts are checked by the weights that write: exactly in mode verify, by likelihood under rule `checked`."""

    method: ClassVar[str] = "draft"
    tolerance: float | None = None  # at temperature 0 a draft holds at this share of the best chance; None: exactly

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.mode == "verify" or (asked.mode == "diffusion" and asked.options.rule == "checked")

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        options = asked.options
        block = options.block_length or asked.config.block_length
        if asked.mode == "verify":
            if block == 1 and asked.layout == "drafts":
                return "mode 'verify' needs a block_length of at least 2: one sure token and a draft"
            return None
        if asked.layout == "drafts" and block >= 2 and not options.remask_budget:
            return None
        return (
            f"rule 'checked' is for models with an adapter that drafts, a block_length of at least 2 and no remasking; "
            f"model '{asked.name}' has block_length {block}, remask_budget {options.remask_budget}; use threshold"
        )

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        if asked.layout != "drafts":
            return SAMPLING | PROCESSORS | {"lookup"}
        own = SAMPLING | PROCESSORS | {"block_length", "lookup"}
        return own if asked.mode == "verify" else own | {"threshold"}

    @classmethod
    def of(cls, asked: Asked) -> Self:
        made = super().of(asked)
        return made if asked.mode == "verify" else replace(made, tolerance=asked.options.threshold)

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        return Verifying(row, setting, self)


@dataclass(frozen=True)
class Forced(denoise.Options):
    """Mode ar: one token after another, but for those that a grammar leaves no choice of."""

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.mode == "ar"

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        drafted = row.request.grammar is not None and row.request.temperature < COLD
        return Verifying(row, setting, Options(lookup=0)) if drafted else super().scheme(row, setting)


@dataclass
class Group:
    """The slots that saw exactly the text that turned out to hold, while they are drafted one after another."""

    slots: Array  # [k], their numbers among the feed's
    row: int  # of the logits that chose the token before the next slot
    token: int  # that token
    start: int  # position of the first draft
    state: int = 0  # of the grammar before the next draft


class LeftToRight(Scheme):
    """Writes from the first open position on, with the draws of mode ar, which writes one of them after another."""

    def __init__(self, row: Row, setting: Setting) -> None:
        super().__init__(row, setting)
        self.constraint = Constraint.of(row)
        self.start = self.first = int(row.masked.argmax())

    def draw_steps(self, target: Array) -> Array:
        return target - self.first + 1

    def settle(self) -> bool:
        masked = self.row.masked
        self.start = int(masked.argmax())
        self.row.final = self.start
        return bool(masked[self.start])


class Verifying(LeftToRight):
    """Feeds text not yet read, drafts as if they were text, and new slots for every outcome of the check.

    Every step commits the drafts that hold and the base's token after them, and then drafts anew (`draft`). The planner
    says how many drafts and slots are fed, by their chances to be of use: of a draft, that it and all before it hold;
    of the j-th slot of an outcome, that of the outcome times the odds of the first j slots. Without any, a step is
    that of mode ar.

    Drafts that need no network come beside: what a grammar forces, and what followed the last tokens before. A network
    without an adapter has those alone.
    """

    def __init__(self, row: Row, setting: Setting, options: Options) -> None:
        super().__init__(row, setting)
        self.options = options
        adapted = setting.layout.kind == "drafts"
        self.window = (row.request.block_length or row.length) if adapted else 1  # one sure token and its drafts
        self.suffixes = Suffixes()
        self.tolerance = options.tolerance if self.temperature < COLD else None
        self.odds = Odds(setting.odds if self.lossless else None)
        self.drafts: list[int] = []  # guesses for the positions after the text
        self.kinds = list[Kind]()  # of each, by what they are counted
        self.chances = [1.0]  # that the text holds, and all drafts up to each
        self.unfed: tuple[Kind, int] | None = None  # the first draft, where the planner left it out
        self.sizes = [0]  # slots fed for each outcome: no draft holds, one does, ..
        self.least = 0.0  # chance below which a draft would not be fed
        self.group: Group | None = None

    @property
    def lossless(self) -> bool:
        """Whether the text is that of mode ar, whatever is drafted."""
        return self.tolerance is None

    @property
    def unread(self) -> int:
        """Columns of text that the next forward reads, drafts left out."""
        return self.start - (self.row.cached if self.exact else 0)

    def look_up(self) -> None:
        """Goes on with drafts that need no network, or takes them in place of the others where they are surer; called
        by the planner first."""
        found, source, belief = self._found()
        if not found:
            return
        found = found[: self.row.length - self.start - 1]
        agreed = next((n for n, pair in enumerate(zip(self.drafts, found, strict=False)) if pair[0] != pair[1]), None)
        if not found or (agreed is None and len(found) <= len(self.drafts)):
            return
        if agreed is not None:
            if self.odds.of((source, agreed > 0), belief) < self.chances[agreed + 1] / self.chances[agreed]:
                return
            self._cut(agreed)
        for token in found[len(self.drafts) :]:
            kind = (source, len(self.drafts) > 0)
            chance = self.chances[-1] * self.odds.of(kind, belief)
            if chance < LEAST:
                break
            self._add(token, kind, chance)

    def _add(self, token: int, kind: Kind, chance: float) -> None:
        self.drafts.append(token)
        self.kinds.append(kind)
        self.chances.append(chance)

    def _cut(self, count: int) -> None:
        del self.drafts[count:], self.kinds[count:], self.chances[count + 1 :]

    def _found(self) -> tuple[list[int], str | int, float]:
        """Drafts for the positions from the first open one on, where they come from, and what is believed of each: the
        chance that it holds if those before do."""
        if self.constraint is not None:
            forced = self.constraint.grammar.run(self.constraint.state(self.start))
            if forced:
                return list(forced), "forced", FORCED_ODDS
        if not self.options.lookup:
            return [], "", 0.0
        known = len(self.suffixes.tokens)
        self.suffixes.extend(self.row.canvas.ids[0, known : self.start].tolist())
        found, size = self.suffixes.follow(self.options.lookup)
        return found, size, FOUND_ODDS[size]

    def leave(self, count: int) -> None:
        """Keeps the first drafts only; called by the planner before it gives slots."""
        self.unfed = (self.kinds[0], self.drafts[0]) if self.drafts and not count else None
        if count < len(self.drafts):
            self._cut(count)
        self.sizes = [0] * (count + 1)

    def possible_slots(self, least: float) -> list[tuple[float, int]]:
        """Chance to be of use, above `least`, and outcome of each slot that could be fed: one fewer than the window at
        most, whose first token needs none, inside the canvas."""
        out = list[tuple[float, int]]()
        if self.window < 2:
            return out
        for kept, (holds, next_holds) in enumerate(zip(self.chances, [*self.chances[1:], 0.0], strict=True)):
            value = holds - next_holds
            for j in range(min(self.window - 1, self.row.length - self.start - kept - 1)):
                value *= self.odds.of(("slot", j), SLOT_ODDS)
                if value <= least:
                    break
                out.append((value, kept))
        return out

    def columns(self) -> Columns:
        row = self.row
        start = self.start
        low = start - self.unread
        texts = start + len(self.drafts)
        drafts = np.array(self.drafts, np.int64)
        places = np.arange(low, texts)
        ids = row.canvas.ids[0, low:start]
        if len(drafts):
            ids = np.concatenate([ids, drafts])
        anchor = np.full(texts - low, TEXT)
        column = np.arange(start - 1 - low, texts - low)
        slots = drafts[:0]
        if any(self.sizes):
            own = np.repeat(np.arange(start - 1, texts), self.sizes)
            slots = texts - low + np.arange(len(own))
            place = own + 1 + np.arange(len(own)) - np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes)
            places = np.concatenate([places, place])
            anchor = np.concatenate([anchor, own])
            ids = np.concatenate([ids, np.full(len(own), row.canvas.mask_id)])
        allowed = None if self.constraint is None else self.constraint.after(drafts, start)
        return Columns(ids, places, anchor, column, places[column] + 1, allowed=allowed, slot=slots)

    def take(self, result: StepResult) -> list[Commit]:
        row = self.row
        start = self.start
        scores = result.scores
        drafts = np.array(self.drafts, np.int64)
        if self.tolerance is None:
            holds = drafts == scores.token[: len(drafts)]
        else:
            holds = result.odds(np.arange(len(drafts)), drafts) >= self.tolerance
        kept, sure = accept(holds, scores.token)
        for depth, (kind, held) in enumerate(zip(self.kinds[: kept + 1], holds.tolist(), strict=False)):
            self.odds.note(kind, held)
            if kind[0] == "adapter":
                self.odds.note(("slot", depth), held)
        made = [*self.drafts[:kept], sure][: row.length - start]
        if self.unfed is not None:
            self.odds.note(self.unfed[0], self.unfed[1] == made[0])
        row.accepted.append(kept)
        self._begin(kept, made, result)
        if self.exact:
            row.cached = start + kept
        return [self.commit(slice(start, start + len(made)), made, scores.confidence[: len(made)])]

    def _begin(self, kept: int, made: list[int], result: StepResult) -> None:
        """Forgets the drafts and makes the group of the text that holds the next to be drafted."""
        self._cut(0)
        self.group = None
        if self.sizes[kept]:
            slots = result.first_slot + sum(self.sizes[:kept]) + np.arange(self.sizes[kept])
            self.group = Group(slots, result.offset + kept, made[-1], self.start + len(made))
            if self.constraint is not None:
                self.group.state = self.constraint.read(made, self.start)

    def draft(self, now: Logits, sampling: Sampling, n: int, token: int, sureness: float) -> None:
        """Takes the next slot's token from row n of `now`, or stops where it is not likely enough to hold.

        token and sureness: the row's best at temperature 0 without a grammar; else they are read anew. Above
        temperature 0 the token is drawn by the uniform that the base's will be drawn by.
        """
        group = self.group
        if group is None:
            return
        constraint = self.constraint
        warm = sampling.temperature[n] > 0
        if warm or constraint is not None:
            q: Array | None = now.probabilities(np.array([n]), sampling.rows(np.array([n])))[0]
            if constraint is not None and q is not None:
                q = constraint.draft(q, group.state, self.row.length - group.start - len(self.drafts))
            if q is None:
                self.group = None
                return
            token = draw(q, sampling.token_draw[n]) if warm else int(q.argmax())
            sureness = float(q[token])
        depth = len(self.drafts)
        kind = ("adapter", depth, int(sureness * 8))
        chance = self.chances[-1] * self.odds.of(kind, sureness)
        if chance < self.least:
            self.odds.note(("slot", depth), False)
            self.group = None
            return
        self._add(token, kind, chance)
        group.slots = group.slots[1:]
        group.row = n
        group.token = token
        if constraint is not None:
            group.state = constraint.grammar.step(group.state, token)
        if not len(group.slots):
            self.group = None


def draft(schemes: list[Verifying], logits: Logits, blame: Callable[[Row], AbstractContextManager[None]]) -> None:
    """Drafts anew for all requests, one slot of each at a time, from the logits of the forward that checked."""
    before = logits
    while True:
        going = [(scheme, scheme.group) for scheme in schemes if scheme.group is not None and scheme.row.error is None]
        if not going:
            return
        slot = np.array([g.slots[0] for _, g in going])
        row = np.array([g.row for _, g in going])
        token = np.array([g.token for _, g in going])
        place = np.array([g.start + len(s.drafts) for s, g in going])
        now = logits.after_token(slot, before, row, token)
        sampling = replace(sampled([scheme for scheme, _ in going], [1] * len(going), place), native=None)
        plain = (sampling.temperature == 0) & [scheme.constraint is None for scheme, _ in going]
        scores = now.propose(sampling) if plain.any() else None
        for n, (scheme, _) in enumerate(going):
            best = (0, 0.0) if scores is None else (int(scores.token[n]), float(scores.confidence[n]))
            with blame(scheme.row):
                scheme.draft(now, sampling, n, *best)
        before = now


def accept(holds: Array, best: Array) -> tuple[int, int]:
    """How many drafts are kept, those before the first that does not hold, and the base's token after them.

    holds: bool [n]; greedily, which drafts are the base's best tokens, best [n + 1]. Where it is those whose chance
    reaches a share of the best token's, the text is the drafts' (in kind typical acceptance, arXiv 2401.10774).
    """
    count = len(holds) if holds.all() else int(holds.argmin())
    return count, int(best[count])
