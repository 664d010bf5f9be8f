"""DiffusionGemma's network: one set of weights that reads text causally and denoises a canvas behind it.

Text and canvas are columns of one forward. Text is read as by an autoregressive model. A canvas (gated columns)
sees the text before it and itself, has scalars of its own at the end of every layer, and is conditioned on what
the step before thought of it. Nothing that text computes depends on a canvas, so its keys and values keep.

Shape letters: as in `transformer`; N tokens, E experts, I inner size of an expert, C columns of a canvas.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.attention import AttentionMask, WindowMasks
from unmask.layout import PADDING, Coordinates, Layout
from unmask.models.config import LayerAttention, ModelConfig
from unmask.models.layers import ACTIVATIONS, MLP, Norm, dispatch
from unmask.models.mixers import Attention, Cache, Context
from unmask.models.transformer import Transformer

Rope = tuple[Tensor, Tensor]


def rotary(layer: LayerAttention, positions_BT: Tensor) -> Rope:
    """cos and sin [B, T, head_dim / 2] of a layer; pairs that are not turned have angle 0."""
    pair = torch.arange(layer.head_dim // 2, dtype=torch.float64, device=positions_BT.device)
    frequency = layer.rope_theta ** (-2 * pair / layer.head_dim) * (pair < layer.rotated_pairs)
    angle = positions_BT[..., None] * frequency
    return angle.cos().float(), angle.sin().float()


class GemmaAttention(Attention):
    """Normed queries, keys and values, unscaled; in some layers the keys before their norm are the values."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        kind = config.attention[layer]
        sizes = replace(config, head_dim=kind.head_dim, num_kv_heads=kind.num_kv_heads)
        super().__init__(replace(sizes, qk_norm=True, attention_scale=1.0), layer)
        self.kind = kind
        self.eps = config.norm_eps
        if self.kind.keys_are_values:
            del self.v_proj

    def values(self, x_BTD: Tensor, k_BTGK: Tensor, gate_BT1: Tensor | None) -> Tensor:
        v = k_BTGK if self.kind.keys_are_values else super().values(x_BTD, k_BTGK, gate_BT1)
        return F.rms_norm(v.float(), v.shape[-1:], None, self.eps).to(v.dtype)


class GemmaRouter(nn.Module):
    """Chooses experts by normed and scaled features; every expert's weight has a scale of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.expert_scale = nn.Parameter(torch.ones(config.num_experts))
        self.config = config

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts [N, k] and their weights [N, k] in float32."""
        x = F.rms_norm(x_ND.float(), x_ND.shape[-1:], None, self.config.norm_eps).to(x_ND.dtype)
        x = x * self.scale * self.config.hidden_size**-0.5
        p = F.linear(x, self.weight).softmax(-1, dtype=torch.float32)
        top = p.topk(self.config.experts_per_token, -1)
        weight = top.values / top.values.sum(-1, keepdim=True)
        return top.indices, weight * self.expert_scale[top.indices]


class GemmaExperts(nn.Module):
    """Gated MLPs whose weights are kept together: gate and up [E, 2 I, D], down [E, D, I]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count = config.num_experts
        self.gate_up = nn.Parameter(torch.zeros(count, 2 * config.expert_size, config.hidden_size))
        self.down = nn.Parameter(torch.zeros(count, config.hidden_size, config.expert_size))
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, number: int, x_ND: Tensor) -> Tensor:
        gate, up = F.linear(x_ND, self.gate_up[number]).chunk(2, -1)
        return F.linear(self.activation(gate) * up, self.down[number])


class GemmaBlock(nn.Module):
    """Attention, then an MLP and experts side by side, each with a norm before and after it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.mixer = GemmaAttention(config, layer)
        self.mlp = MLP(config, config.intermediate_size)
        self.router = GemmaRouter(config)
        self.experts = GemmaExperts(config)
        norms = (Norm(config, config.hidden_size) for _ in range(7))
        self.norm1, self.mixer_norm, self.norm2, self.mlp_norm, self.norm3, self.experts_norm, self.sum_norm = norms
        self.text_scalar = nn.Parameter(torch.ones(1))
        self.canvas_scalar = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        mask = context.mask
        if isinstance(mask, WindowMasks):
            mask = mask.by_window[self.mixer.kind.window]
        mixed = self.mixer(self.norm1(x), replace(context, mask=mask, gate_BT1=None))
        x = x + self.mixer_norm(mixed)
        flat = x.flatten(0, 1)
        index, weight = self.router(flat)
        routed = dispatch(self.norm3(flat), index, weight, self.experts).view_as(x)
        both = self.mlp_norm(self.mlp(self.norm2(x))) + self.experts_norm(routed)
        scalar: Tensor = self.text_scalar
        if context.gate_BT1 is not None:
            scalar = torch.where(context.gate_BT1, self.canvas_scalar, scalar)
        return (x + self.sum_norm(both)) * scalar


class SelfConditioning(nn.Module):
    """What a canvas's columns begin as: their embeddings and a reading of the step before, normed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = Norm(config, config.hidden_size)
        self.mlp = MLP(config, config.intermediate_size)
        self.eps = config.norm_eps

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """x and condition [B, T, D]; none is one of zeros."""
        x = x if condition is None else x + self.mlp(self.norm(condition))
        return F.rms_norm(x.float(), x.shape[-1:], None, self.eps).to(x.dtype)


class DiffusionGemma(Transformer):
    """A canvas and the text before it in, logits out. `config.attention` says how each layer attends."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.self_conditioning = SelfConditioning(config)

    def make_block(self, layer: int) -> nn.Module:
        return GemmaBlock(self.config, layer)

    def make_rotary_tables(self) -> None:
        """None: for the lengths that this model reads they would take hundreds of megabytes."""

    def _embed(self, ids_BT: Tensor) -> Tensor:
        x = self.embedding(ids_BT)
        return x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype)

    def mean_embedding(self, p_NV: Tensor) -> Tensor:
        """Self-conditioning [N, D] from the distributions of the step before: the mean embedding."""
        weight = self.embedding.weight
        return p_NV.to(weight.dtype) @ weight * torch.tensor(self.config.hidden_size**0.5, dtype=weight.dtype)

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: AttentionMask = None,
        cache: Cache | None = None,
        time_B: Tensor | None = None,
        gate_BT: Tensor | None = None,
        every_loop: bool = False,
        condition_BTD: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, D], before any un-shift and before the head.

        positions_BT defaults to 0..T-1. gate_BT (bool): which columns are of a canvas, None for none.
        condition_BTD: what a canvas's columns are conditioned on, 0 at others; None for none. time_B is ignored.
        """
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        x = self._embed(ids_BT)
        gate = None if gate_BT is None else gate_BT[..., None]
        if gate is not None:
            x = torch.where(gate, self.self_conditioning(x, condition_BTD), x)
        ropes: dict[tuple[float, ...], Rope] = {}
        for block, layer in zip(self.blocks, self.config.attention, strict=True):
            kind = (layer.rope_theta, layer.head_dim, layer.rotated_pairs)
            if kind not in ropes:
                ropes[kind] = rotary(layer, positions_BT)
            x = block(x, Context(ropes[kind], mask, cache, gate))
        return self.norm(x)

    def canvas_logits(self, ids_BT: Tensor, valid_BT: Tensor, canvas_length: int) -> Tensor:
        """Logits [B, T, V] of rows whose last `canvas_length` tokens are a canvas and the others its text.

        valid_BT is false for padding. A canvas's position is scored by its own column, unconditioned; a
        position of text by the column before it.
        """
        position = (valid_BT.long().cumsum(1) - 1).clamp(min=0)
        start_B1 = valid_BT.sum(1, keepdim=True) - canvas_length
        gate = valid_BT & (position >= start_B1)
        anchor = torch.where(gate, start_B1 - 1, -1)
        rows = Coordinates.drafts(position, anchor, torch.where(valid_BT, 0, PADDING))
        mask = WindowMasks.of(Layout("canvas"), self.config.windows, rows)
        x = self.hidden(ids_BT, position, mask, gate_BT=gate)
        return self.head(torch.where(gate[..., None], x, self.unshift(x, position)))
