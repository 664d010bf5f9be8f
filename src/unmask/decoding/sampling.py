"""From logits to proposed tokens: temperature, top-p, top-k and seed, per request.

Shapes: N scored positions, V vocabulary, B requests, L positions. The same in torch, for networks on a GPU,
is in `engine.torch_backend`; both draw the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.canvas import Array

_GOLDEN, _MIX1, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(x: Array) -> Array:
    """splitmix64's finaliser on uint64 (arithmetic wraps around)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


def uniforms(seed: Array, step: Array, position: Array, purpose: int) -> Array:
    """Float64 draws in (0, 1), a pure function of integers (seed, step, position) that broadcast together.

    Counter-based, so a request's draws depend on its own seed and never on who shares its batch.
    """
    parts = [np.atleast_1d(np.asarray(part, np.int64)).astype(np.uint64) for part in (seed, step, position, purpose)]
    state = _mix(parts[0] + _GOLDEN)
    for part in parts[1:]:
        state = _mix(state ^ (part * _GOLDEN + _MIX2))
    return ((state >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52


@dataclass(frozen=True)
class Scores:
    """What the network thinks of each position: arrays of one shape, [N] or laid out as [B, L]."""

    token: Array  # proposed token
    confidence: Array  # its probability under the network, float64
    entropy: Array  # of the distribution, nats
    margin: Array  # probability of the best token minus that of the second
    draw: Array  # one uniform per position, for rules that choose at random

    def rows(self, index: Array) -> Scores:
        """The scores of some requests of a grid."""
        return Scores(
            self.token[index], self.confidence[index], self.entropy[index], self.margin[index], self.draw[index]
        )

    def grid(self, row: Array, position: Array, shape: tuple[int, int]) -> Scores:
        """Lays flat scores out on a [B, L] grid; -inf confidence and margin, +inf entropy elsewhere."""
        fills = (0, -np.inf, np.inf, -np.inf, 1.0)
        out = []
        for values, fill in zip(vars(self).values(), fills, strict=True):
            laid = np.full(shape, fill, values.dtype)
            laid[row, position] = values
            out.append(laid)
        return Scores(*out)


def keep_top(logits_NV: Array, top_k_N: Array, top_p_N: Array) -> Array:
    """Logits with everything outside top-k, then outside the nucleus, at -inf.

    top_k 0 and top_p 1 switch a filter off; the token that crosses p is kept (Dream, SDAR, LLaDA2).
    """
    order = (-logits_NV).argsort(-1, kind="stable")
    ranked = np.take_along_axis(logits_NV, order, -1)
    rank = np.arange(logits_NV.shape[-1])
    k = np.where(top_k_N > 0, top_k_N, logits_NV.shape[-1])
    ranked = np.where(rank >= k[:, None], -np.inf, ranked)
    p = np.exp(ranked - ranked[:, :1])
    p /= p.sum(-1, keepdims=True)
    outside = (p.cumsum(-1) - p >= top_p_N[:, None]) & (top_p_N[:, None] < 1.0) & (rank > 0)
    kept = np.full_like(logits_NV, -np.inf)
    np.put_along_axis(kept, order, np.where(outside, -np.inf, ranked), -1)
    return kept


def warmed(logits_NV: Array, temperature_N: Array, top_k_N: Array, top_p_N: Array) -> Array:
    """Float64 logits over temperature, filtered; rows of temperature 0 are left as they are."""
    logits = logits_NV.astype(np.float64)
    warm = temperature_N > 0
    if warm.any():
        logits /= np.where(warm, temperature_N, 1.0)[:, None]
        top_k, top_p = np.where(warm, top_k_N, 0), np.where(warm, top_p_N, 1.0)
        if ((top_k > 0) | (top_p < 1)).any():
            logits = keep_top(logits, top_k, top_p)
    return logits


def propose(
    logits_NV: Array,
    temperature_N: Array,
    top_k_N: Array,
    top_p_N: Array,
    token_draw_N: Array,
    choice_draw_N: Array,
    banned: int | None,
) -> Scores:
    """Samples a token for every position and scores it; logits are float32 and stay as they are.

    Temperature 0 takes the best token. Confidence, entropy and margin are of the distribution that is
    sampled from: the network's own at temperature 0 or 1 without filters.
    """
    if banned is not None:
        logits_NV = logits_NV.copy()
        logits_NV[:, banned] = -np.inf
    cold = not (temperature_N > 0).any()
    # at temperature 0 a sum of float32 exponentials is exact enough to compare confidences by
    logits = logits_NV if cold else warmed(logits_NV, temperature_N, top_k_N, top_p_N)
    index = np.arange(len(logits))
    token = logits.argmax(-1)
    top = logits[index, token]
    p = np.exp(logits - top[:, None])
    total = p.sum(-1, dtype=np.float64)
    entropy = np.log(total) - np.einsum("nv,nv->n", p, np.maximum(logits, -1e30) - top[:, None]) / total
    p[index, token] = -1.0
    second = p.max(-1).clip(min=0) if p.shape[-1] > 1 else np.zeros(len(p))
    p[index, token] = 1.0
    if not cold:
        cumulative = p.cumsum(-1)
        for n in (temperature_N > 0).nonzero()[0]:
            drawn = np.searchsorted(cumulative[n], token_draw_N[n] * cumulative[n, -1], side="right")
            token[n] = min(drawn, p.shape[-1] - 1)
    confidence = p[index, token] / total
    return Scores(token, confidence.astype(np.float64), entropy.astype(np.float64), (1 - second) / total, choice_draw_N)
