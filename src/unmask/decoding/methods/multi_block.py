"""Several blocks decoded at once (D2F, arXiv 2508.09192; MultiBD; d3LLM, arXiv 2601.07568).

The first unfinished block is decoded as ever. While it is, the block after the last active one becomes active once that
one is written to a share (`block_add_threshold`). An active block writes by the rule, one token at any rate, once the
block before it is written to a share (`decoded_token_threshold`); until then only what reaches `skip_threshold`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from unmask.canvas import Array
from unmask.decoding.budget import StepBudget
from unmask.decoding.feed import Columns
from unmask.decoding.methods import denoise
from unmask.decoding.methods.denoise import Denoising
from unmask.decoding.options import option
from unmask.decoding.request import Asked, Row, Scheme, Setting
from unmask.decoding.rules import RULES
from unmask.decoding.sampling import Scores


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What is read by this method alone."""

    buffer_size: int = option(1, ge=1, off=1)  # blocks that are active at once
    block_add_threshold: float = option(0.1, ge=0, le=1)  # share of the last active block from which the next joins
    decoded_token_threshold: float = option(0.95, ge=0, le=1)  # share of a block from which the next obeys the rule
    skip_threshold: float = option(0.9, ge=0, le=1)  # confidence that is written in a block that does not yet
    # prefix and dual: steps for which a block that is finished is still read again
    cache_delay_iter: int = option(0, ge=0, off=0)


def joins(shares: Sequence[float], buffer_size: int, block_add_threshold: float) -> bool:
    """Whether one more block becomes active, `shares` of the active ones being written."""
    return len(shares) < buffer_size and shares[-1] >= block_add_threshold


def obeying(shares: Sequence[float], decoded_token_threshold: float) -> list[bool]:
    """Which active blocks write by the rule (fully activated), `shares` of them being written; the first one does."""
    return [True, *(share >= decoded_token_threshold for share in shares[:-1])]


@dataclass(frozen=True)
class Options(Parameters, denoise.Options):
    """Several blocks are filled at once by a commit rule."""

    method: ClassVar[str] = "multi_block"

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        blocks = asked.mode == "diffusion" and asked.layout in ("bidirectional", "block_causal")
        return blocks and asked.options.buffer_size > 1

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        options = asked.options
        if asked.layout == "bidirectional" and options.block_length is None:
            return "option buffer_size needs blocks; give block_length too"
        if options.rule in RULES and (RULES[options.rule].ranks or options.rule == "random"):
            judging = [name for name, rule in RULES.items() if not rule.ranks and rule.final and name != "random"]
            return f"option buffer_size needs a rule that judges: {', '.join(judging)}; '{options.rule}' keeps a number"
        return super().suits(asked)

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        own = {"buffer_size", "block_add_threshold", "decoded_token_threshold", "skip_threshold"}
        if asked.layout == "bidirectional":
            own.add("cache_delay_iter")
        return (super().reads(asked) | own) - {"remask_budget"}

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        return MultiBlock(row, setting, self)


class MultiBlock(Denoising):
    """The window is the first unfinished block, and what is read and scored reaches to the last active one.

    Keys and values: a block-causal model's are exact once a block and all before it are finished, so a block is read
    with the ones after it until then. Approximate ones of a bidirectional model are made anew when the first block
    changes.
    """

    def __init__(self, row: Row, setting: Setting, options: Parameters) -> None:
        super().__init__(row, setting)
        self.options = options
        self.eos_ids = setting.eos_ids if row.request.ends else frozenset[int]()
        self.first = self.start
        self.remask_left = 0
        self.active_end = self.end

    @property
    def reach(self) -> int:
        return self.active_end

    def settle(self) -> bool:
        going = super().settle()
        self.active_end = max(self.active_end, self.end)
        if going and self.active_end < self.row.length and not self._ends():
            shares = [self._share(*edges) for edges in self._blocks()]
            if joins(shares, self.options.buffer_size, self.options.block_add_threshold):
                self.active_end = min(self.active_end + self.block, self.row.length)
        return going

    def _blocks(self) -> list[tuple[int, int]]:
        """First and last + 1 positions of the active blocks."""
        edges = [self.start, *range(self.end, self.active_end, self.block), self.active_end]
        return list(pairwise(edges))

    def _share(self, start: int, end: int) -> float:
        """How much of a block's own text is written."""
        free = ~self.row.canvas.frozen[0, start:end]
        return 1.0 - float(self.row.masked[start:end].sum()) / max(int(free.sum()), 1)

    def _ends(self) -> bool:
        """Whether an end of text is written in an active block: nothing after it will be wanted."""
        active = slice(self.start, self.active_end)
        written = self.row.canvas.ids[0, active][~self.row.canvas.frozen[0, active]]
        return not self.eos_ids.isdisjoint(written.tolist())

    def columns(self) -> Columns:
        delayed = self._reads_part() and self.forwards < self.options.cache_delay_iter
        return self._columns_from(max(self.start - self.block, self.first) if delayed else self.start)

    def _choose(self, scores: Scores, open_1L: Array) -> Array:
        blocks = self._blocks()
        obey = obeying([self._share(*edges) for edges in blocks], self.options.decoded_token_threshold)
        place = np.arange(self.row.length)
        chosen = super()._choose(scores, open_1L & (place < self.end))
        for (start, end), by_rule in list(zip(blocks, obey, strict=True))[1:]:
            own = open_1L & (place >= start) & (place < end)
            if by_rule:
                one = StepBudget(np.array([1]), np.array([0.0]))
                chosen |= RULES[self.rule.name](scores, own, one, self.rule)
            else:
                chosen |= own & (scores.confidence >= self.options.skip_threshold)
        return chosen
