"""From logits to proposed tokens: temperature, top-p, top-k and seed, per request.

Shapes: N scored positions, V vocabulary, B requests, L positions. The same in torch, for networks on a GPU,
is in `backends.torch`; both draw the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unmask.canvas import Array

if TYPE_CHECKING:
    from unmask.decoding.feed import Sampling

# purposes of draws: a token, a position
TOKEN_DRAW = 0
CHOICE_DRAW = 1
COLD = 1e-9  # temperatures below it are 0: logits over them are no longer numbers
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


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


def draw(weights_V: Array, u: float) -> int:
    """The token that a uniform u in (0, 1) falls on, of weights that need not sum to one."""
    cumulative = weights_V.cumsum()
    return int(min(np.searchsorted(cumulative, u * cumulative[-1], side="right"), len(weights_V) - 1))


@dataclass(frozen=True)
class Scores:
    """What the network thinks of each position: arrays of one shape, [N] or laid out as [B, L]."""

    token: Array  # proposed token
    confidence: Array  # its probability under the network, float64
    entropy: Array  # of the distribution, nats
    margin: Array  # probability of the best token minus that of the second
    draw: Array  # one uniform per position, for rules that choose at random

    @staticmethod
    def none(count: int) -> Scores:
        """In place of scores that nobody reads."""
        return Scores(np.zeros(count, np.int64), *(np.zeros(count) for _ in range(4)))

    def rows(self, index: Array | slice) -> Scores:
        """Some of them."""
        return Scores(*(values[index] for values in vars(self).values()))

    def grid(self, row: Array | int, position: Array, shape: tuple[int, int]) -> Scores:
        """Lays flat scores out on a [B, L] grid; -inf confidence and margin, +inf entropy elsewhere."""
        out = []
        for values, fill in zip(vars(self).values(), (0, -np.inf, np.inf, -np.inf, 1.0), strict=True):
            out.append(np.full(shape, fill, values.dtype))
            out[-1][row, position] = values
        return Scores(*out)


def keep_top(logits_NV: Array, top_k_N: Array, top_p_N: Array) -> Array:
    """Logits with everything outside top-k, then outside the nucleus, at -inf.

    top_k 0 and top_p 1 switch a filter off; the token that crosses p is kept (Dream, SDAR, LLaDA2).
    """
    kept = np.full_like(logits_NV, -np.inf)
    for n, (row, k, p) in enumerate(zip(logits_NV, top_k_N.tolist(), top_p_N.tolist(), strict=True)):
        ids = survivors(row, k, p)
        kept[n, ids] = row[ids]
    return kept


def survivors(row: Array, top_k: int, top_p: float, most: int = 2048) -> Array:
    """Ids that the filters leave, ascending; of equal logits the lowest ids come first.

    Only the `most` highest are sorted, and all of them where that does not settle who is in the nucleus.
    """
    size = len(row)
    k = min(top_k, size) if top_k > 0 else size
    if top_p >= 1:
        return _highest(row, k)
    ids = _highest(row, k if top_k > 0 else min(most, size))
    order = (-row[ids]).argsort(kind="stable")
    mass = np.exp(row[ids] - row.max())[order]
    share = mass / (mass.sum() if len(ids) == k else np.exp(row - row.max()).sum())
    before = share.cumsum() - share
    outside = before >= top_p
    # a sum in another order could put a token that stands at the very edge on the other side
    settled = bool(outside[-1]) or len(ids) == k
    if not settled or not np.abs(before - top_p).min() > 1e-9:
        return _sorted_survivors(row, k, top_p)
    return np.sort(ids[order[~outside | (np.arange(len(ids)) == 0)]])


def _sorted_survivors(row: Array, k: int, top_p: float) -> Array:
    order = (-row).argsort(kind="stable")
    ranked = np.where(np.arange(len(row)) < k, row[order], -np.inf)
    p = np.exp(ranked - ranked[0])
    p /= p.sum()
    inside = ~(p.cumsum() - p >= top_p) & (np.arange(len(row)) < k)
    inside[0] = True
    return np.sort(order[inside])


def _highest(row: Array, k: int) -> Array:
    """Ids of the k highest, ascending; of equal ones the lowest ids."""
    if k >= len(row):
        return np.arange(len(row))
    pieces = min(4 * k, len(row))  # in k of them the highest reaches the k-th of all pieces' highest: a lower bound
    maxima = row[: len(row) // pieces * pieces].reshape(-1, pieces).max(0)
    ids = (row >= np.partition(maxima, pieces - k)[pieces - k]).nonzero()[0]
    if len(ids) < k:  # NaN
        return np.sort((-row).argsort(kind="stable")[:k])
    values = row[ids]
    edge = np.partition(values, len(ids) - k)[len(ids) - k]
    above = ids[values > edge]
    return np.sort(np.concatenate([above, ids[values == edge][: k - len(above)]]))


def warmed(logits_NV: Array, temperature_N: Array, top_k_N: Array, top_p_N: Array) -> Array:
    """Float64 logits over temperature, filtered; rows of temperature 0 are left as they are."""
    logits = logits_NV.astype(np.float64)
    warm = temperature_N > 0
    if warm.any():
        logits /= np.where(warm, temperature_N, 1.0)[:, None]
        top_k = np.where(warm, top_k_N, 0)
        top_p = np.where(warm, top_p_N, 1.0)
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
    warm = temperature_N > 0
    filtered = warm & ((top_k_N > 0) | (top_p_N < 1))
    parts = []
    places = []
    for rows in ((~warm).nonzero()[0], (warm & ~filtered).nonzero()[0]):  # a row is scored alike in any company
        if len(rows):
            # at temperature 0 a sum of float32 exponentials is exact enough to compare confidences by
            hot = bool(warm[rows[0]])
            logits = logits_NV[rows]
            logits = logits / temperature_N[rows, None] if hot else logits
            if banned is not None:
                logits[:, banned] = -np.inf
            parts.append(_scored(logits, token_draw_N[rows], choice_draw_N[rows], hot))
            places.append(rows)
    for n in filtered.nonzero()[0].tolist():  # only what the filters leave is looked at again
        row = logits_NV[n].astype(np.float64) / temperature_N[n]
        if banned is not None:
            row[banned] = -np.inf
        ids = survivors(row, int(top_k_N[n]), float(top_p_N[n]))
        one = _scored(row[None, ids], token_draw_N[[n]], choice_draw_N[[n]], True)
        parts.append(Scores(ids[one.token], one.confidence, one.entropy, one.margin, one.draw))
        places.append(np.array([n]))
    back = np.concatenate(places).argsort()
    return Scores(*(np.concatenate(fields)[back] for fields in zip(*(vars(s).values() for s in parts), strict=True)))


def untempered(scores: Scores, logits_NV: Array, sampling: Sampling) -> Scores:
    """Scores of drawn tokens under the logits at temperature 1, of what the filters leave, where that is asked for."""
    if sampling.plain is None:
        return scores
    out = [values.copy() for values in (scores.confidence, scores.entropy, scores.margin)]
    for n in (sampling.plain & (sampling.temperature > 0)).nonzero()[0].tolist():
        row = logits_NV[n].astype(np.float64)
        ids = survivors(row / sampling.temperature[n], int(sampling.top_k[n]), float(sampling.top_p[n]))
        one = _scored(row[None, ids], sampling.token_draw[[n]], sampling.choice_draw[[n]], False)
        out[0][n] = one.confidence[0] * np.exp(row[scores.token[n]] - row[ids[one.token[0]]])
        out[1][n] = one.entropy[0]
        out[2][n] = one.margin[0]
    return Scores(scores.token, out[0], out[1], out[2], scores.draw)


def _scored(logits: Array, token_draw_N: Array, choice_draw_N: Array, warm: bool) -> Scores:
    """Takes the best token of each row or, if warm, samples one; the rows are as they are sampled from."""
    index = np.arange(len(logits))
    token = logits.argmax(-1)
    top = logits[index, token]
    p = np.exp(logits - top[:, None])
    total = p.sum(-1, dtype=np.float64)
    entropy = np.log(total) - np.einsum("nv,nv->n", p, np.maximum(logits, -1e30) - top[:, None]) / total
    p[index, token] = -1.0
    second = p.max(-1).clip(min=0) if p.shape[-1] > 1 else np.zeros(len(p))
    p[index, token] = 1.0
    if warm:
        cumulative = p.cumsum(-1)
        for n in range(len(p)):
            drawn = np.searchsorted(cumulative[n], token_draw_N[n] * cumulative[n, -1], side="right")
            token[n] = min(drawn, p.shape[-1] - 1)
    confidence = p[index, token] / total
    return Scores(token, confidence.astype(np.float64), entropy.astype(np.float64), (1 - second) / total, choice_draw_N)
