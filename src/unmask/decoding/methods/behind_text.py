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
from unmask.decoding.sampling import Scores
from unmask.layout import BEHIND_TEXT
from unmask.models.config import ModelConfig


def repeats(config: ModelConfig) -> int:
    """1 where a block begins with the last token of the text once more, for a head that scores the next position."""
    return int(not config.in_place)


def slides(asked: Asked) -> bool:
    """Whether every step has a window of its own, from the first mask on."""
    return asked.layout == "causal_window" or not asked.config.in_place


@dataclass(frozen=True)
class Options(denoise.Options):
    """A block of masks behind causal text is filled by a commit rule."""

    method: ClassVar[str] = "behind_text"

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        others = asked.options.rule in ("checked", "token_edit")
        return asked.mode == "diffusion" and asked.layout in BEHIND_TEXT and not others

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
    """Mode verify: a block is drafted behind the text in one forward, and checked by the next (linear self-speculation,
    arXiv 2607.05722). The text is that of mode ar, token for token."""

    method: ClassVar[str] = "self_checked"

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.mode == "verify" and asked.layout == "causal_blocks"

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
    """Reads text, and then by turns drafts and checks.

    A draft is drawn by the uniform that the base's token will be drawn by, so that above temperature 0 as many hold as
    can.
    """

    def __init__(self, row: Row, setting: Setting) -> None:
        super().__init__(row, setting)
        self.config = setting.config
        self.block = row.request.block_length or row.length
        self.drafting = False
        self.drafts: list[int] = []  # guesses for the positions after the text
        self.firsts: list[int] = []  # rows that are scored first of each block

    def settle(self) -> bool:
        going = super().settle()
        if self.start < 2 or self.start + 1 >= self.row.length:  # no text before the last token, or nothing to guess
            self.drafting = False
        return going

    def columns(self) -> Columns:
        row = self.row
        start = self.start
        low = row.cached if self.exact else 0
        drafts = np.array(self.drafts, np.int64)
        if not self.drafting:
            place = np.arange(low, start + len(drafts))
            column = np.arange(start - 1 - low, len(place))
            allowed = None if self.constraint is None else self.constraint.after(drafts, start)
            ids = np.concatenate([row.canvas.ids[0, low:start], drafts])
            return Columns(ids, place, np.full(len(place), TEXT), column, place[column] + 1, allowed=allowed)
        text = np.arange(low, start - 1)
        place = np.arange(start - 1, min(start - 1 + self.block, self.config.max_length))
        block = np.full(len(place), row.canvas.mask_id)
        block[0] = row.canvas.ids[0, start - 1]
        skipped = 1 - repeats(self.config)  # the head of a block that is scored in place says nothing new
        target = place + repeats(self.config)
        useful = np.arange(skipped, len(place))
        useful = useful[target[useful] < row.length - 1]
        return Columns(
            ids=np.concatenate([row.canvas.ids[0, text], block]),
            position=np.concatenate([text, place]),
            anchor=np.concatenate([np.full(len(text), TEXT), np.full(len(place), start - 2)]),
            column=len(text) + useful,
            target=target[useful],
        )

    def take(self, result: StepResult) -> list[Commit]:
        row = self.row
        start = self.start
        token = result.scores.token
        if self.drafting:
            self.drafts = self._fitting(token)
            self.drafting = False
            if self.exact:
                row.cached = start - 1
            return []
        kept, sure = accept(np.array(self.drafts, np.int64) == token[: len(self.drafts)], token)
        made = [*self.drafts[:kept], sure][: row.length - start]
        row.accepted.append(kept)
        self.drafts = []
        self.drafting = True
        if self.exact:
            row.cached = start + kept
        return [self.commit(slice(start, start + len(made)), made, result.scores.confidence[: len(made)])]

    def _fitting(self, token: Array) -> list[int]:
        """Drafts [n] up to the first that the grammar forbids."""
        drafts: list[int] = token.tolist()
        if self.constraint is None:
            return drafts
        able = self.constraint.after(token, self.start)[np.arange(len(token)), token]
        return drafts if able.all() else drafts[: int(able.argmin())]


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
        fresh = token[firsts[kept] + 1 : ends[kept]][: row.length - after - 1]
        self.drafts = self._fitting(np.concatenate([made, fresh]).astype(np.int64))[len(made) :]
        return [self.commit(slice(start, after), made, result.scores.confidence[firsts[: len(made)]])]
