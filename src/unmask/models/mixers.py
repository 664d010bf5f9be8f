"""What mixes positions in a layer; `MIXERS` names every kind, and `config.mixers` which layer has which.

Another mixer, attention-free or not, is a file with a module that has `forward(x_BTD, context)`, its entry in `MIXERS`
and its name in `config.MixerName`. Its weights' names in public checkpoints are its family's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from unmask.attention import AttentionMask, attend
from unmask.models.config import ModelConfig
from unmask.models.layers import Norm, Projection
from unmask.models.mamba2 import Mamba2, States


class Cache(Protocol):
    """What was read before: for attention it keeps this window's keys and values and returns all visible ones."""

    states: States | None  # of recurrent layers; None where there are none

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Context:
    """What a layer knows of a pass besides its input."""

    rope: tuple[Tensor, Tensor]  # cos and sin [B, T, r] of the columns' positions
    mask: AttentionMask = None  # who may attend to whom
    cache: Cache | None = None  # what layers keep of what was read before
    gate_BT1: Tensor | None = None  # 1 where an adapter acts, or at a canvas's columns; None for nowhere
    query_BT: Tensor | None = None  # what rotated queries are scaled by; None for 1
    local_rope: tuple[Tensor, Tensor] | None = None  # of the local layers, where they have their own
    run_BT: Tensor | None = None  # for layers without a mask: columns of one number follow on one another; None: all do


def rotate(x_BHTK: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
    """Rotates the first 2r features of each head, pairing feature i with i + r."""
    r = cos_BTr.shape[-1]
    cos = cos_BTr[:, None].to(x_BHTK.dtype)
    sin = sin_BTr[:, None].to(x_BHTK.dtype)
    a = x_BHTK[..., :r]
    b = x_BHTK[..., r : 2 * r]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x_BHTK[..., 2 * r :]], -1)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.width = config.head_dim
        self.scale = config.attention_scale or None  # of scores; None: one over the root of the width
        size = config.hidden_size
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self.q_proj = Projection(size, queries, config.qkv_bias, config.adapter_rank)
        self.k_proj = Projection(size, keys, config.qkv_bias, config.adapter_rank)
        self.v_proj = Projection(size, keys, config.qkv_bias, config.adapter_rank)
        self.o_proj = Projection(queries, size, config.out_bias, config.adapter_rank)
        self.q_norm = Norm(config, config.head_dim) if config.qk_norm else None
        self.k_norm = Norm(config, config.head_dim) if config.qk_norm else None

    def values(self, x_BTD: Tensor, k_BTGK: Tensor, gate_BT1: Tensor | None) -> Tensor:
        """Values [B, T, G, K]; the keys are those before their norm."""
        return self.v_proj(x_BTD, gate_BT1).view(k_BTGK.shape)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        shape = (*x_BTD.shape[:2], -1, self.width)
        gate = context.gate_BT1
        q = self.q_proj(x_BTD, gate).view(shape)
        k = self.k_proj(x_BTD, gate).view(shape)
        v = self.values(x_BTD, k, gate).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q = self.q_norm(q)
            k = self.k_norm(k)
        q = rotate(q.transpose(1, 2), *context.rope)
        k = rotate(k.transpose(1, 2), *context.rope)
        if context.query_BT is not None:
            q = q * context.query_BT[:, None, :, None].to(q.dtype)
        if context.cache is not None:
            k, v = context.cache.update(self.layer, k, v)
        mixed = attend(q, k, v, context.mask, scale=self.scale)
        return self.o_proj(mixed.transpose(1, 2).reshape(*shape[:2], -1), gate)


MIXERS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {"attention": Attention, "mamba2": Mamba2}
