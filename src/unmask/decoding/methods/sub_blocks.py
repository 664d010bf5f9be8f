"""Blocks written in parts, one part after another (Fast-dLLM v2, arXiv 2509.26328).

A shifted head knows the first token of a block from the block before: reading that block once it is finished,
which stores its keys and values, gives the token, and the parts are denoised with it in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unmask.canvas import Commit
from unmask.decoding.feed import Columns
from unmask.decoding.methods import denoise
from unmask.decoding.methods.denoise import Denoising
from unmask.decoding.options import option
from unmask.decoding.request import Asked, CacheKind, Row, Scheme, Setting, StepResult


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What is read by this method alone."""

    sub_block_length: int | None = option(None, ge=1)  # parts of a block that are written one after another


@dataclass(frozen=True)
class Options(Parameters, denoise.Options):
    """Blocks are written in parts."""

    method: ClassVar[str] = "sub_blocks"

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.options.sub_block_length is not None and asked.layout == "block_causal"

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        return super().reads(asked) | {"sub_block_length"}

    @classmethod
    def caches(cls, asked: Asked) -> tuple[CacheKind, ...]:
        return ("auto", "none", "exact", "dual")

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        return SubBlocks(row, setting, self.sub_block_length)


class SubBlocks(Denoising):
    """The window is a part of a block, or the first token of one; forwards read the whole block.

    With cache `dual` a part is read alone, against old keys and values of the block's other parts, until a
    part begins with a mask; what stands before the block is exact.
    """

    def __init__(self, row: Row, setting: Setting, part: int | None) -> None:
        super().__init__(row, setting)
        self.part = part or self.block
        self.block_start = self.start
        self.leads = False  # the window is a first token that the block before knows
        self.fresh = False  # keys and values of the whole block are in the cache

    @property
    def text_end(self) -> int:
        if self.cache == "none":
            return 0
        return self.start if self.leads else self.block_start

    def settle(self) -> bool:
        masked = self.row.masked
        if not masked.any():
            return False
        first = int(masked.argmax())
        block = (first + self.offset) // self.block * self.block - self.offset
        self.fresh &= block == self.block_start
        self.block_start = block
        length = self.row.length
        leads = bool(self.shift) and 0 < first == block
        start = first if leads else block + (first - block) // self.part * self.part
        block_end = min(block + self.block, length)
        end = first + 1 if leads else min(start + self.part, block_end)
        if (start, end) != (self.start, self.end) or leads != self.leads:
            self._begin(end)
        self.start = start
        self.end = end
        self.leads = leads
        self._await()
        self.row.block_end = block_end
        return True

    def columns(self) -> Columns:
        low = self.row.cached if self.cache != "none" else 0
        if self.leads:  # the block before is result, and nothing of the new one
            return self._read(min(low, self.start - 1), self.start)
        if self._reads_part():
            return self._read(self.start, self.end, (self.end, self.row.block_end))
        return self._read(low, self.row.block_end)

    def _reads_part(self) -> bool:
        return self.cache == "dual" and self.fresh and not self.row.masked[self.start]

    def take(self, result: StepResult) -> list[Commit]:
        commits = super().take(result)
        if self.cache != "none":
            self.row.cached = self.block_start
        self.fresh |= not self.leads
        return commits
