"""Decoding by checked drafts: the adapter drafts, the base checks its drafts in the same forward.

In mode verify what holds is the base's own text; under the rule `checked` of mode diffusion a draft holds
where the base finds it likely enough. Above temperature 0, speculative sampling (arXiv 2302.01318) leaves the base's
distribution exactly as it is, whatever the drafts. Shapes: n drafts of one request, V vocabulary.
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
from unmask.decoding.request import Asked, MethodOptions, Row, Scheme, Setting, StepResult, sampled
from unmask.decoding.sampling import ACCEPT_DRAW, COLD, draw, uniforms
from unmask.decoding.suffixes import Suffixes

FORCED_ODDS = 0.9  # that tokens of a forced run are those that the model would take
# that the next token is the one that followed the last 1, 2, .. tokens before (`unmask bench lookup` counts it)
FOUND_ODDS = (0.0, 0.13, 0.44, 0.51, 0.58, 0.6, 0.9, 0.9, 0.95)
LEAST = 0.15  # that a found draft must be worth: a column costs more than less would bring
SLOT_ODDS = 0.5  # what a slot's draft is taken to be worth before it is known, given all before it hold


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What is read by this method alone."""

    draft_threshold: float = option(0.0, ge=0, le=1)  # drafts and slots less likely to be of use are not fed
    draft_columns: int = option(0, ge=0)  # most columns of new text, drafts and slots of a forward; 0: no limit
    lookup: int = option(5, ge=0)  # most drafts that are copied from the prompt and the answer; 0: none


@dataclass(frozen=True)
class Options(Parameters, MethodOptions):
    """Drafts are checked by the weights that write: exactly in mode verify, by likelihood under rule `checked`."""

    method: ClassVar[str] = "draft"
    tolerance: float | None = None  # a draft holds at this share of the best token's chance; None: exactly

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
        if asked.layout == "causal":
            return SAMPLING | PROCESSORS | {"lookup"}
        own = SAMPLING | PROCESSORS | {"block_length", "draft_threshold", "draft_columns", "lookup"}
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


class Verifying(Scheme):
    """Feeds text not yet result, drafts as if they were text, and new slots for every outcome of the check.

    Every step commits the drafts that hold and the base's token after them, and then drafts anew (`draft`). A draft
    or a slot is fed where the chance that it will be of use reaches the rule's `draft_threshold`: of a draft, that it
    and all before it hold, by their confidences; of the j-th slot of an outcome, that of the outcome times
    SLOT_ODDS to the j. Of those the likeliest make up `draft_columns` columns at most, drafts half of them.

    Drafts that need no network come beside: what a grammar forces, and what followed the last tokens before. A network
    without an adapter has those alone.
    """

    def __init__(self, row: Row, setting: Setting, options: Options) -> None:
        super().__init__(row, setting)
        self.options = options
        adapted = setting.layout.kind == "drafts"
        self.window = (row.request.block_length or row.length) if adapted else 1  # one sure token and its drafts
        self.suffixes = Suffixes()
        self.constraint = Constraint.of(row)
        self.start = 0
        self.vocabulary_size = setting.config.vocab_size
        self.drafts: list[int] = []  # guesses for the positions after the text
        self.distributions = list[Array]()  # [V] each, that they were drawn from, above temperature 0
        self.chances = [1.0]  # that the text holds, and all drafts up to each
        self.sizes = list[int]()  # slots fed for each outcome: no draft holds, one does, ..
        self.group: Group | None = None

    def settle(self) -> bool:
        masked = self.row.masked
        self.start = int(masked.argmax())
        self.row.final = self.start
        going = bool(masked.any())
        if going:
            self._look_up()
        return going

    def _look_up(self) -> None:
        """Goes on with drafts that need no network, or takes them in place of the others where they are surer."""
        found, odds = self._found()
        found = found[: self.row.length - self.start - 1]
        agreed = next((n for n, pair in enumerate(zip(self.drafts, found, strict=False)) if pair[0] != pair[1]), None)
        if not found or (agreed is None and len(found) <= len(self.drafts)):
            return
        if agreed is not None:
            if odds < self.chances[1] or self.temperature >= COLD:  # drawn drafts stay with what they were drawn from
                return
            self.drafts = self.drafts[:agreed]
            self.chances = self.chances[: agreed + 1]
        for token in found[len(self.drafts) :]:
            if self.chances[-1] * odds < max(self.options.draft_threshold, LEAST):
                break
            self.drafts.append(token)
            self.chances.append(self.chances[-1] * odds)
            if self.temperature >= COLD:
                self.distributions.append(np.arange(self.vocabulary_size) == token)

    def _found(self) -> tuple[list[int], float]:
        """Drafts for the positions from the first open one on, and the chance that each holds if those before do."""
        if self.constraint is not None:
            forced = self.constraint.grammar.run(self.constraint.state(self.start))
            if forced:
                return list(forced), FORCED_ODDS
        if not self.options.lookup:
            return [], 0.0
        known = len(self.suffixes.tokens)
        self.suffixes.extend(self.row.canvas.ids[0, known : self.start].tolist())
        found, size = self.suffixes.follow(self.options.lookup)
        return found, FOUND_ODDS[size]

    def columns(self) -> Columns:
        row = self.row
        start = self.start
        low = row.cached if self.exact else 0
        texts = start + len(self.drafts)
        drafts = np.array(self.drafts, np.int64)
        places = np.arange(low, texts)
        anchor = np.full(texts - low, TEXT)
        column = np.arange(start - 1 - low, texts - low)
        slots = np.zeros(0, np.int64)
        sizes = self._sizes()
        self.sizes = sizes
        if any(sizes):
            own = np.repeat(np.arange(start - 1, texts), sizes)
            slots = texts - low + np.arange(len(own))
            place = own + 1 + np.arange(len(own)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            places = np.concatenate([places, place])
            anchor = np.concatenate([anchor, own])
        ids = np.full(len(places), row.canvas.mask_id)
        ids[: start - low] = row.canvas.ids[0, low:start]
        ids[start - low : texts - low] = drafts
        allowed = None if self.constraint is None else self.constraint.after(drafts, start)
        return Columns(ids, places, anchor, column, places[column] + 1, allowed=allowed, slot=slots)

    def _sizes(self) -> list[int]:
        """Slots of each outcome's group: one fewer than the window at most, whose first token needs none, inside the
        canvas, only likely ones, and the likeliest where there are columns for some only."""
        options = self.options
        sizes = [0] * len(self.chances)
        likely = list[tuple[float, int]]()
        for kept, (holds, next_holds) in enumerate(zip(self.chances, [*self.chances[1:], 0.0], strict=True)):
            room = min(self.window - 1, self.row.length - self.start - kept - 1)
            likely += [((holds - next_holds) * SLOT_ODDS ** (j + 1), kept) for j in range(room)]
        likely = [slot for slot in likely if slot[0] >= options.draft_threshold]
        if options.draft_columns:
            likely = sorted(likely, key=lambda slot: -slot[0])[: options.draft_columns - 1 - len(self.drafts)]
        for _, kept in likely:
            sizes[kept] += 1
        return sizes

    def take(self, result: StepResult) -> list[Commit]:
        row = self.row
        start = self.start
        scores = result.scores
        drafts = np.array(self.drafts, np.int64)
        checks = np.arange(len(drafts) + 1)
        tolerance = self.options.tolerance
        if not self.distributions:
            best = scores.token[: len(drafts)]
            holds = drafts == best if tolerance is None else result.odds(checks[:-1], drafts) >= tolerance
            kept, sure = accept(holds, scores.token)
        else:
            p = result.probabilities(checks)
            draws = uniforms(np.array(row.request.seed), np.array(row.steps), result.target, ACCEPT_DRAW)
            q = np.array(self.distributions)
            kept, sure = accept_sampled(drafts, q, p, draws, result.sampling.token_draw)
        made = [*self.drafts[:kept], sure][: row.length - start]
        row.accepted.append(kept)
        self._begin(kept, made, result)
        if self.exact:
            row.cached = start + kept
        return [self.commit(slice(start, start + len(made)), made, scores.confidence[: len(made)])]

    def _begin(self, kept: int, made: list[int], result: StepResult) -> None:
        """Forgets the drafts and makes the group of the text that holds the next to be drafted."""
        self.drafts = []
        self.distributions = []
        self.chances = [1.0]
        self.group = None
        if self.sizes[kept]:
            slots = result.first_slot + sum(self.sizes[:kept]) + np.arange(self.sizes[kept])
            self.group = Group(slots, result.offset + kept, made[-1], self.start + len(made))
            if self.constraint is not None:
                self.group.state = self.constraint.read(made, self.start)

    def draft(self, now: Logits, sampling: Sampling, n: int, token: int, sureness: float) -> None:
        """Takes the next slot's token from row n of `now`, or stops where it is not likely enough to hold.

        token and sureness: the row's best at temperature 0 without a grammar; else they are read anew.
        """
        group = self.group
        if group is None:
            return
        options = self.options
        constraint = self.constraint
        warm = sampling.temperature[n] > 0
        q: Array | None = None
        if warm or constraint is not None:
            q = now.probabilities(np.array([n]), sampling.rows(np.array([n])))[0]
            if constraint is not None:
                q = constraint.draft(q, group.state, self.row.length - group.start - len(self.drafts))
            if q is None:
                self.group = None
                return
            token = draw(q, sampling.token_draw[n]) if warm else int(q.argmax())
            # of its best token, whichever was drawn: a draw that chose whether it is checked would bias the text
            sureness = float(q.max())
        if self.chances[-1] * sureness < options.draft_threshold:
            self.group = None
            return
        self.drafts.append(token)
        self.chances.append(self.chances[-1] * sureness)
        if warm and q is not None:
            self.distributions.append(q)
        group.slots = group.slots[1:]
        group.row = n
        group.token = token
        if constraint is not None:
            group.state = constraint.grammar.step(group.state, token)
        if not len(group.slots) or (options.draft_columns and len(self.drafts) >= options.draft_columns // 2):
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
        schemes_going = [scheme for scheme, _ in going]
        temperatures = [scheme.temperature for scheme in schemes_going]
        sampling = sampled([scheme.row for scheme in schemes_going], temperatures, [1] * len(going), place)
        sampling = replace(sampling, native=None)
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


def accept_sampled(drafts: Array, q: Array, p: Array, accept_draws: Array, token_draws: Array) -> tuple[int, int]:
    """As `accept`, for drafts sampled from q [n, V] against the base's p [n + 1, V].

    accept_draws [n] and token_draws [n + 1] are uniforms in (0, 1). A draft x is kept with chance
    min(1, p(x) / q(x)); the first that is not is replaced by a draw from max(p - q, 0).
    """
    for i, token in enumerate(drafts):
        if accept_draws[i] * q[i, token] >= p[i, token]:
            rest = np.maximum(p[i] - q[i], 0.0)
            return i, draw(rest if rest.sum() > 0 else p[i], token_draws[i])
    return len(drafts), draw(p[len(drafts)], token_draws[len(drafts)])
