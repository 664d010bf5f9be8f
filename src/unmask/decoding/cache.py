"""What is remembered between steps: keys and values, one slot per position.

A slot's number is its token's position, so nothing is ever moved: a window writes its slots in place, and
writing them again (a block being denoised) overwrites. Shapes: B requests, G key/value heads, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.models.config import ModelConfig


class SlotCache:
    """Static keys and values of all layers, plus one spare slot that padding writes to."""

    def __init__(self, config: ModelConfig, rows: int, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_layers, rows, config.num_kv_heads, slots + 1, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.spare = slots
        self._write = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self._visible = 0

    def begin(self, positions_BW: Tensor, valid_BW: Tensor, visible: int) -> None:
        """Prepares a forward over a window: which slots it writes and how many slots it may see."""
        self._write = torch.where(valid_BW, positions_BW, self.spare)
        self._visible = visible

    def update(self, layer: int, k_BGWK: Tensor, v_BGWK: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the window's keys and values; returns those of slots 0 .. visible - 1."""
        for store, new in ((self.keys[layer], k_BGWK), (self.values[layer], v_BGWK)):
            index = self._write[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
            store.scatter_(2, index, new)
        return self.keys[layer, :, :, : self._visible], self.values[layer, :, :, : self._visible]

    def select(self, rows: Tensor) -> None:
        """Keeps the given requests only."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
