"""What is remembered between steps: keys and values, one slot per position.

A slot's number is its token's position, so nothing is ever moved: text writes its slots in place, and
writing them again (a block being denoised, a draft that did not hold) overwrites. How many slots hold is
for the feed to say. Shapes: B requests, G key/value heads, S slots, W columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.models.config import ModelConfig


class SlotCache:
    """Static keys and values of all layers, plus one spare slot that padding and drafts' slots write to."""

    def __init__(self, config: ModelConfig, rows: int, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        shapes = [(rows, heads, slots + 1, width) for heads, width in config.key_shapes]
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]
        self.spare = slots
        self._write = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self._visible = 0

    def begin(self, positions_BW: Tensor, kept_BW: Tensor, visible: int) -> None:
        """Prepares a forward over a window: which slots it writes and how many earlier slots it sees."""
        self._write = torch.where(kept_BW, positions_BW, self.spare)
        self._visible = visible

    def update(self, layer: int, k_BGWK: Tensor, v_BGWK: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the window's keys and values; returns those of slots 0 .. visible - 1, then the window's."""
        seen = []
        for store, new in ((self.keys[layer], k_BGWK), (self.values[layer], v_BGWK)):
            seen.append(torch.cat([store[:, :, : self._visible], new], 2))
            index = self._write[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
            store.scatter_(2, index, new)
        return seen[0], seen[1]

    def extend(self, rows: int, slots: int) -> None:
        """Adds room for more requests at the end, and slots up to a number."""
        more = max(0, slots - self.spare)
        # the spare slot stays the last one; nothing reads it
        grow = (0, 0, 0, more, 0, 0, 0, rows)
        self.keys, self.values = ([F.pad(x, grow) for x in layers] for layers in (self.keys, self.values))
        self.spare += more

    def select(self, rows: Tensor) -> None:
        """Keeps the given requests only."""
        self.keys, self.values = ([x[rows] for x in layers] for layers in (self.keys, self.values))
