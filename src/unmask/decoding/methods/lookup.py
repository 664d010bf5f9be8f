"""Drafts that need no network, checked as text by the forward that reads them: what a grammar forces, and what followed
the last tokens when they stood before (prompt lookup decoding)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unmask.decoding.methods import denoise, draft
from unmask.decoding.options import option
from unmask.decoding.request import Asked, MethodOptions, Row, Scheme, Setting

LONGEST = 8  # tokens that a suffix is matched by


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What is read by this method alone."""

    lookup: int = option(5, ge=0)  # most drafts that are copied from the prompt and the answer; 0: none


@dataclass(frozen=True)
class Options(Parameters, MethodOptions):
    """Mode verify of a network without an adapter."""

    method: ClassVar[str] = "lookup"

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.mode == "verify" and asked.layout == "causal"

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        return None

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        return denoise.SAMPLING | denoise.PROCESSORS | {"lookup"}

    @classmethod
    def reads_rule(cls, asked: Asked) -> bool:
        return False

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        return LookingUp(row, setting, self.lookup)


@dataclass(frozen=True)
class Forced(denoise.Options):
    """Mode ar: one token after another, but for those that a grammar leaves no choice of."""

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.mode == "ar"

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        drafted = row.request.grammar is not None and row.request.temperature == 0
        return LookingUp(row, setting, 0) if drafted else super().scheme(row, setting)


class Suffixes:
    """Where each run of 1 to LONGEST tokens stood last, of a text that grows."""

    def __init__(self) -> None:
        self.tokens = list[int]()
        self.after: dict[tuple[int, ...], int] = {}  # a run, to the place behind it

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            end = len(self.tokens)
            for size in range(1, min(LONGEST, end) + 1):  # what ends here is known once something follows
                self.after[tuple(self.tokens[end - size :])] = end
            self.tokens.append(token)

    def follow(self, most: int) -> list[int]:
        """What followed the longest run at the end that stood before; nothing where none did."""
        end = len(self.tokens)
        for size in range(min(LONGEST, end), 0, -1):
            place = self.after.get(tuple(self.tokens[end - size :]))
            if place is not None:
                return self.tokens[place : place + most]
        return []


class LookingUp(draft.Verifying):
    """Verifies found drafts; what it writes is what mode `ar` writes."""

    def __init__(self, row: Row, setting: Setting, most: int) -> None:
        super().__init__(row, setting, draft.Options())
        self.most = most
        self.vocabulary_size = setting.config.vocab_size
        self.suffixes = Suffixes()

    def settle(self) -> bool:
        going = super().settle()
        if going:
            self.drafts = self._found()[: self.row.length - self.start - 1]
            self.chances = [1.0] * (len(self.drafts) + 1)
            if self.temperature > 0:
                self.distributions = list(np.eye(self.vocabulary_size)[self.drafts])
        return going

    def _found(self) -> list[int]:
        """Drafts for the positions from the first open one on; those of a grammar are surer than copies."""
        if self.constraint is not None:
            forced = self.constraint.grammar.run(self.constraint.state(self.start))
            if forced:
                return list(forced)
        if not self.most:
            return []
        known = len(self.suffixes.tokens)
        self.suffixes.extend(self.row.canvas.ids[0, known : self.start].tolist())
        return self.suffixes.follow(self.most)

    def _sizes(self) -> list[int]:
        return [0] * len(self.chances)  # no slots: nothing in the network drafts
