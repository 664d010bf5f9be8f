"""From logits to proposed tokens: temperature, top-p, top-k and seed, per request, in float64.

Shapes: N scored positions, V vocabulary, B requests, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (arithmetic wraps around)."""
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def uniforms(seed: Tensor, step: Tensor, position: Tensor, purpose: int) -> Tensor:
    """Float64 draws in (0, 1), a pure function of int64 (seed, step, position) that broadcast together.

    Counter-based, so a request's draws depend on its own seed and never on who shares its batch.
    """
    state = _mix(seed + _GOLDEN)
    for part in (step, position, torch.full_like(position, purpose)):
        state = _mix(state ^ (part * _GOLDEN + _MIX2))
    return (_shift_right(state, 12).double() + 0.5) / 2**52


@dataclass(frozen=True)
class Scores:
    """What the network thinks of each position: tensors of one shape, [N] or laid out as [B, L]."""

    token: Tensor  # proposed token
    confidence: Tensor  # its probability under the network, float64
    entropy: Tensor  # of the distribution, nats
    margin: Tensor  # probability of the best token minus that of the second
    draw: Tensor  # one uniform per position, for rules that choose at random

    def rows(self, index: Tensor) -> Scores:
        """The scores of some requests of a grid."""
        return Scores(
            self.token[index], self.confidence[index], self.entropy[index], self.margin[index], self.draw[index]
        )

    def grid(self, where: Tensor) -> Scores:
        """Lays flat scores out on a [B, L] grid; -inf confidence and margin, +inf entropy elsewhere."""
        fills = (0, -torch.inf, torch.inf, -torch.inf, 1.0)
        fields = (self.token, self.confidence, self.entropy, self.margin, self.draw)
        out = []
        for field, fill in zip(fields, fills, strict=True):
            out.append(
                torch.full(where.shape, fill, dtype=field.dtype, device=field.device).masked_scatter(where, field)
            )
        return Scores(*out)


def keep_top(logits_NV: Tensor, top_k_N: Tensor, top_p_N: Tensor) -> Tensor:
    """Logits with everything outside top-k, then outside the nucleus, at -inf.

    top_k 0 and top_p 1 switch a filter off; the token that crosses p is kept (Dream, SDAR, LLaDA2).
    """
    order = logits_NV.sort(stable=True, dim=-1, descending=True)
    rank = torch.arange(logits_NV.shape[-1], device=logits_NV.device)
    k = torch.where(top_k_N > 0, top_k_N, logits_NV.shape[-1])
    kept = order.values.masked_fill(rank >= k[:, None], -torch.inf)
    p = kept.softmax(-1)
    outside = (p.cumsum(-1) - p >= top_p_N[:, None]) & (top_p_N[:, None] < 1.0) & (rank > 0)
    kept = kept.masked_fill(outside, -torch.inf)
    return torch.full_like(logits_NV, -torch.inf).scatter(-1, order.indices, kept)


def propose(
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor,
    top_p_N: Tensor,
    token_draw_N: Tensor,
    choice_draw_N: Tensor,
    banned: int | None,
) -> Scores:
    """Samples a token for every position and scores it.

    Temperature 0 takes the best token. Confidence, entropy and margin are of the distribution that is
    sampled from: the network's own at temperature 0 or 1 without filters.
    """
    logits = logits_NV.double()
    if banned is not None:
        logits = logits.index_fill(-1, torch.tensor(banned, device=logits.device), -torch.inf)
    warm = temperature_N > 0
    if bool(warm.any()):
        logits = logits / torch.where(warm, temperature_N, 1.0)[:, None]
        top_k, top_p = torch.where(warm, top_k_N, 0), torch.where(warm, top_p_N, 1.0)
        if bool(((top_k > 0) | (top_p < 1)).any()):
            logits = keep_top(logits, top_k, top_p)
    best = logits.topk(min(2, logits.shape[-1]), -1)
    p = (logits - best.values[:, :1]).exp_()
    total = p.sum(-1, keepdim=True)
    token = best.indices[:, 0]
    if bool(warm.any()):
        cumulative = p.cumsum(-1)
        sampled = torch.searchsorted(cumulative, token_draw_N[:, None] * cumulative[:, -1:], right=True)
        token = torch.where(warm, sampled.squeeze(1).clamp(max=p.shape[-1] - 1), token)
    p = p / total
    top = p.gather(1, best.indices)
    return Scores(
        token=token,
        confidence=p.gather(1, token[:, None]).squeeze(1),
        entropy=torch.special.entr(p).sum(-1),
        margin=top[:, 0] - top[:, 1] if top.shape[1] > 1 else top[:, 0],
        draw=choice_draw_N,
    )
