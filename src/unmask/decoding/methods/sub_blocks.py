"""Blocks written in parts, one part after another (Fast-dLLM v2, arXiv 2509.26328).

A shifted head knows the first token of a block from the block before: reading that block once it is finished,
which stores its keys and values, gives the token, and the parts are denoised with it in place.
"""

from __future__ import annotations

from unmask.canvas import Commit
from unmask.decoding.feed import Columns
from unmask.decoding.methods.denoise import Denoising
from unmask.decoding.request import Read, Row
from unmask.layout import Layout


class SubBlocks(Denoising):
    """The window is a part of a block, or the first token of one; forwards read the whole block.

    With cache `dual` a part is read alone, against old keys and values of the block's other parts, until a
    part begins with a mask; what stands before the block is exact.
    """

    def __init__(self, row: Row, layout: Layout, cache: str, shift: int) -> None:
        super().__init__(row, layout, cache, shift)
        self.part = row.request.sub_block_length or self.block
        self.block_start = self.start
        self.leads = False  # the window is a first token that the block before knows
        self.fresh = False  # keys and values of the whole block are in the cache

    def settle(self) -> bool:
        masked = self.row.masked
        if not masked.any():
            return False
        first = int(masked.argmax())
        block = (first + self.offset) // self.block * self.block - self.offset
        self.fresh &= block == self.block_start
        self.block_start, length = block, self.row.length
        leads = bool(self.shift) and 0 < first == block
        start = first if leads else block + (first - block) // self.part * self.part
        block_end = min(block + self.block, length)
        end = first + 1 if leads else min(start + self.part, block_end)
        if (start, end) != (self.start, self.end) or leads != self.leads:
            self._begin(end)
        self.start, self.end, self.leads = start, end, leads
        self._await()
        self.row.block_end = block_end
        return True

    def columns(self) -> Columns:
        low, high, beyond = self.row.cached if self.cache != "none" else 0, self.row.block_end, (0, 0)
        text = self._text(low, self.start if self.leads else self.block_start) if self.cache != "none" else None
        if text is not None:
            return text
        if self.leads:  # the block before is read, and nothing of the new one
            low, high = min(low, self.start - 1), self.start
        elif self._reads_part():
            low, high, beyond = self.start, self.end, (self.end, high)
        return self._read(low, high, beyond)

    def _reads_part(self) -> bool:
        return self.cache == "dual" and self.fresh and not self.row.masked[self.start]

    def take(self, read: Read) -> list[Commit]:
        commits = super().take(read)
        if self.prefill_end is not None:
            return commits
        if self.cache != "none":
            self.row.cached = self.block_start
        self.fresh |= not self.leads
        return commits
