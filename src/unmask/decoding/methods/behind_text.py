"""Decoding by a block of masks behind text that is read causally: one head that also writes in mode ar.

Nemotron-Labs-Diffusion, SDLM and WeDLM. Text before the block is read in the forward that denoises it, and its keys and
values are exact; the block's are never kept, since once written it is read again as text. What a block's columns see
of each other is the layout's: all (causal_blocks), or what is written before the masks (causal_window).
Shapes: L canvas positions, n drafts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unmask.canvas import Array, Commit
from unmask.decoding.budget import StepBudget, share
from unmask.decoding.feed import TEXT, Columns
from unmask.decoding.methods import denoise
from unmask.decoding.methods.denoise import PROCESSORS, SAMPLING, Denoising, windowed
from unmask.decoding.methods.draft import LeftToRight, accept
from unmask.decoding.request import Asked, CacheKind, MethodOptions, Row, Scheme, Setting, StepResult
from unmask.decoding.rules import RULES
from unmask.decoding.sampling import Scores, draw
from unmask.layout import BEHIND_TEXT
from unmask.models.config import ModelConfig


def repeats(config: ModelConfig) -> int:
    """1 where a block begins with the last token of the text once more, for a head that scores the next position."""
    return int(not config.in_place)


def slides(asked: Asked) -> bool:
    """Whether every step has a window of its own, from the first mask on."""
    return asked.layout == "causal_window" or not asked.config.in_place


BLOCK_ODDS = 0.9  # that a draft of a block holds, all before it holding, before counts say more


@dataclass(frozen=True)
class Options(denoise.Options):
    """A block of masks behind causal text is filled by a commit rule."""

    method: ClassVar[str] = "behind_text"

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        others = asked.options.rule in ("checked", "token_edit")
        return asked.mode == "diffusion" and asked.layout in BEHIND_TEXT and not others

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        if asked.layout == "causal_window" and not asked.config.in_place:  # I-DLM
            return f"model '{asked.name}' drafts by its masks and checks what it drafts; use mode 'verify' or 'ar'"
        return super().suits(asked)

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        return (windowed(asked) | PROCESSORS) - ({"max_denoising_steps"} if slides(asked) else set())

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        return BehindText(row, setting)


class BehindText(Denoising):
    """A block is filled where it is; or a window slides, at every step from the first mask on.

    A network whose head scores the next position reads the last token once more at the head of its window, which is as
    wide at the end of the canvas as elsewhere: what is behind it is read and not scored.
    """

    def __init__(self, row: Row, setting: Setting) -> None:
        super().__init__(row, setting)
        config = setting.config
        self.repeats = repeats(config)
        self.ordered = setting.layout.kind == "causal_window"
        self.slides = self.ordered or self.repeats > 0
        self.longest = config.max_length
        self.leads = False  # the text alone gives the next token

    def settle(self) -> bool:
        going = super().settle()
        first = self.convention.first_step == "text" and self.forwards == 0 and bool(self.row.masked[self.start])
        self.leads = going and (first or self.start <= self.repeats)
        return going

    def columns(self) -> Columns:
        row = self.row
        start = self.start
        ids = row.canvas.ids[0]
        early = 1 if self.leads else self.repeats
        low = min(row.cached, start - early) if self.exact else 0
        text = np.arange(low, start)
        place = np.zeros(0, np.int64)
        anchor = start - 1 - self.repeats
        order = 0
        if self.leads:
            target = np.array([start])
            column = np.array([len(text) - 1])
        elif self.ordered:
            own = np.arange(start, self.end)
            target = own[row.masked[own]]
            place = np.concatenate([own[~row.masked[own]], target])
            order = 1
            column = start - low + len(place) - len(target) + np.arange(len(target))
        else:
            end = min(start + self.block, self.longest) if self.slides else self.end
            place = np.arange(start, end) - self.repeats
            target = np.arange(start, self.end)[row.masked[start : self.end]]
            column = len(text) + target - start
        block = np.full(len(place), row.canvas.mask_id)
        block[place < row.length] = ids[place[place < row.length]]
        allowed = None
        if self.constraint is not None:
            end = start + 1 if self.leads else self.end
            allowed = self.constraint.allowed(start, end, target)
            only = allowed.sum(1) == 1
            self.forced = dict(zip(target[only].tolist(), allowed[only].argmax(1).tolist(), strict=True))
        return Columns(
            ids=np.concatenate([ids[text], block]),
            position=np.concatenate([text, place]),
            anchor=np.concatenate([np.full(len(text), TEXT), anchor + order * np.arange(len(place))]),
            column=column,
            target=target,
            allowed=allowed,
        )

    def _choose(self, scores: Scores, open_1L: Array) -> Array:
        if self.leads:
            return np.arange(self.row.length)[None] == self.start
        part = share(self.rule.schedule, self.step, self.budget, self.convention.schedule_eps)
        asked = StepBudget(np.array([self._owed()]), np.array([part]))
        return RULES[self.rule.name](scores, open_1L, asked, self.rule)

    def _taken(self) -> None:
        super()._taken()
        if self.leads:  # which is no step of the block's schedule
            self.budget = 0
            self.step = 0


@dataclass(frozen=True)
class SelfChecked(MethodOptions):
    """Mode verify: a block is drafted behind the text in one forward, and checked by the next (self-speculation, arXiv
    2607.05722; of I-DLM the strided decoding). The text is that of mode ar, token for token."""

    method: ClassVar[str] = "self_checked"

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.mode == "verify" and asked.layout in BEHIND_TEXT

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        block = asked.options.block_length or asked.config.block_length
        return None if block > 1 else "mode 'verify' needs a block_length of at least 2: the last token and a draft"

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        return SAMPLING | PROCESSORS | {"block_length"}

    @classmethod
    def caches(cls, asked: Asked) -> tuple[CacheKind, ...]:
        return ("auto", "none", "exact")

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        return SelfChecking(row, setting)


class SelfChecking(LeftToRight):
    """Feeds drafts as text, and behind the last of them a block of masks that drafts what follows if all hold. Where
    one fails, the next forward drafts anew behind the text: what stood behind it hardly ever holds. What a grammar
    forces is drafted too.

    A draft is drawn by the uniform that the base's token will be drawn by, so that above temperature 0 as many hold as
    can. The planner says how long the block is, by how often drafts so deep held and what columns cost.
    """

    def __init__(self, row: Row, setting: Setting) -> None:
        super().__init__(row, setting)
        self.config = setting.config
        self.eos_ids = setting.eos_ids if row.request.ends else frozenset()
        self.block = row.request.block_length or row.length
        self.repeats = repeats(setting.config)
        self.ordered = setting.layout.kind == "causal_window"
        self.odds = setting.odds
        self.drafts: list[int] = []  # guesses for the positions after the text
        self.forced = 0  # of them, the last ones, that a grammar forces
        self.length = self.block  # columns of the block that is fed

    def survival(self) -> Array:
        """The chance that the first 0, 1, .. drafts of a block hold, up to the longest block's [drafts + 1]."""
        own = [self.odds.of(("block", depth // 4), BLOCK_ODDS) for depth in range(self.block - 1)]
        return np.cumprod([1.0, *own])

    def columns(self) -> Columns:
        row = self.row
        start = self.start
        low = row.cached if self.exact else 0
        drafts = np.array(self.drafts, np.int64)
        known = np.concatenate([row.canvas.ids[0, :start], drafts])
        text = np.arange(low, len(known))
        column = np.arange(start - 1 - low, len(text))
        again = 0 if self.ordered else self.repeats  # masks that see those before them see the text's last token too
        anchor = len(known) - 1 - again
        place = np.arange(anchor + 1, min(anchor + 1 + self.length - self.repeats + again, self.config.max_length))
        target = place + self.repeats
        useful = np.arange(len(place))[(target > len(known)) & (target < row.length)]
        if anchor < 0 or self.eos_ids.intersection(self.drafts) or not len(useful):
            place = target = useful = place[:0]
        block = np.full(len(place), row.canvas.mask_id)
        if again and len(place):
            block[0] = known[-1]
        return Columns(
            ids=np.concatenate([known[text], block]),
            position=np.concatenate([text, place]),
            anchor=np.concatenate([np.full(len(text), TEXT), anchor + self.ordered * np.arange(len(place))]),
            column=np.concatenate([column, len(text) + useful]),
            target=np.concatenate([low + column + 1, target[useful]]),
            allowed=None if self.constraint is None else self.constraint.after(drafts, start),
        )

    def take(self, result: StepResult) -> list[Commit]:
        row = self.row
        start = self.start
        token = result.scores.token
        count = len(self.drafts)
        kept, sure = accept(np.array(self.drafts, np.int64) == token[:count], token)
        made = [*self.drafts[:kept], sure][: row.length - start]
        row.accepted.append(kept)
        for depth in range(min(kept + 1, count - self.forced)):
            self.odds.note(("block", depth // 4), depth < kept)
        if self.exact:
            row.cached = start + kept
        slots = np.arange(count + 1, len(token)) if kept == count else np.zeros(0, np.int64)
        self.drafts = self._fitting(made, token[slots].tolist(), (result, slots.tolist()))
        forced = self._forced(made + self.drafts)
        self.drafts += forced
        self.forced = len(forced)
        return [self.commit(slice(start, start + len(made)), made, result.scores.confidence[: len(made)])]

    def _fitting(
        self, made: list[int], drafts: list[int], scored: tuple[StepResult, list[int]] | None = None
    ) -> list[int]:
        """Drafts for what follows `made`, the tokens of this step, up to an end of text: where the grammar forbids one,
        another by its scored row, or none from there on."""
        left = self.row.length - self.start - len(made)
        end = next((place + 1 for place, token in enumerate(drafts) if token in self.eos_ids), len(drafts))
        drafts = drafts[: min(end, max(left - 1, 0))]
        if self.constraint is None:
            return drafts
        grammar = self.constraint.grammar
        state = self.constraint.read(made, self.start)
        out: list[int] = []
        for place, token in enumerate(drafts):
            after = grammar.go(state, token, left - place)
            if not after:
                if scored is None:
                    break
                result, rows = scored
                q = self.constraint.draft(result.probabilities(np.array([rows[place]]))[0], state, left - place)
                if q is None:
                    break
                warm = self.row.request.temperature > 0
                token = draw(q, result.sampling.token_draw[rows[place]]) if warm else int(q.argmax())
                after = grammar.step(state, token)
            out.append(token)
            state = after
        return out

    def _forced(self, written: list[int]) -> list[int]:
        """Drafts that the grammar forces behind `written`, the tokens of this step and other drafts."""
        if self.constraint is None or not self.eos_ids.isdisjoint(written):
            return []
        run = self.constraint.grammar.run(self.constraint.read(written, self.start))
        return list(run[: max(self.row.length - self.start - len(written) - 1, 0)])


@dataclass(frozen=True)
class SelfSpeculative(SelfChecked):
    """Rule self_speculative (SDLM): blocks behind every draft check it and draft anew, all in one forward. The text is
    that of the block's first column, a token a step (rule prefix at threshold 1)."""

    method: ClassVar[str] = "self_speculative"

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.mode == "diffusion" and asked.options.rule == "self_speculative"

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        block = asked.options.block_length or asked.config.block_length
        if asked.layout == "causal_blocks" and not asked.config.in_place and block > 1:
            return None
        return (
            "rule 'self_speculative' is for models whose block begins with the text's last token (SDLM) and a "
            f"block_length of at least 2; model '{asked.name}' has layout {asked.layout}, block_length {block}"
        )

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        return Speculating(row, setting)


class Speculating(SelfChecking):
    """Feeds the drafts as text, and a block behind the text and one behind each draft, which begins with that."""

    def __init__(self, row: Row, setting: Setting) -> None:
        super().__init__(row, setting)
        self.firsts: list[int] = []  # rows that are scored first of each block

    def columns(self) -> Columns:
        row = self.row
        start = self.start
        low = row.cached if self.exact else 0
        drafts = np.array(self.drafts, np.int64)
        known = np.concatenate([row.canvas.ids[0, :start], drafts])
        leads = start < 2  # no text before a block: the text alone gives the next token
        text = np.arange(low, start if leads else len(known) - 1)
        ids = [known[text]]
        position = [text]
        anchor = [np.full(len(text), TEXT)]
        column = [len(text) - 1] if leads else []
        self.firsts = [0] if leads else []
        for head in range(start - 1, 0 if leads else len(known)):
            place = np.arange(head, min(head + self.block, self.config.max_length))
            self.firsts.append(len(column))
            before = sum(map(len, ids))
            column += [before + n for n in range(len(place)) if head + n + 1 < row.length]
            ids.append(np.where(place == head, known[head], row.canvas.mask_id))
            position.append(place)
            anchor.append(np.full(len(place), head - 1))
        places = np.concatenate(position)
        allowed = None
        if self.constraint is not None:
            after = self.constraint.after(drafts, start)
            allowed = np.ones((len(column), after.shape[1]), bool)
            allowed[self.firsts] = after
        return Columns(
            ids=np.concatenate(ids),
            position=places,
            anchor=np.concatenate(anchor),
            column=np.array(column),
            target=places[column] + 1,
            allowed=allowed,
        )

    def take(self, result: StepResult) -> list[Commit]:
        row = self.row
        start = self.start
        token = result.scores.token
        drafts = np.array(self.drafts, np.int64)
        firsts = np.array(self.firsts)
        kept, sure = accept(drafts == token[firsts[: len(drafts)]], token[firsts])
        made = [*self.drafts[:kept], sure]
        if self.exact:
            row.cached = start if start < 2 else min(start + kept, start - 1 + len(drafts))
        row.accepted.append(kept)
        ends = [*firsts[1:], len(token)]
        after = start + len(made)
        self.drafts = self._fitting(made, token[firsts[kept] + 1 : ends[kept]].tolist())
        return [self.commit(slice(start, after), made, result.scores.confidence[firsts[: len(made)]])]
