"""Stochastic samplers, a transition at a time: what a token is at time s, given the canvas at the later time t.

Pure functions of numpy arrays. They compute in the dtype of what they are given, so a grid of times in float32
rounds as the references do. x0 is the network's distribution of clean tokens; it has no mass on the mask. A score
[N, V] holds p_t(y) / p_t(x) for every token y in place of x, the token that is there, whose own is 1 (SEDD,
arXiv 2310.16834). `mask_id` None means uniform noise: random tokens instead of masks.
Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from unmask.canvas import Array
from unmask.decoding.options import option
from unmask.decoding.sampling import uniforms

SamplerName = Literal["ancestral", "ddpm", "ddpm_cache", "psi", "analytic", "euler", "first_hitting"]
SAMPLER_NAMES: tuple[str, ...] = get_args(SamplerName)
Removal = Literal["greedy", "ancestral", "none"]

# purposes of random draws
TOKEN_DRAW = 4
HIT_DRAW = 5
PICK_DRAW = 6
LEAVE_DRAW = 7


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What samplers read beside what all methods do."""

    noise_removal: Removal = "greedy"  # what the last step makes of the noise that is left
    psi_kappa: float = option(1.0, ge=0, le=1)  # psi: share of the ancestral step
    nucleus_p: float = option(1.0, gt=0, le=1)  # of x0; unlike with top_p the token that crosses it goes


@dataclass(frozen=True)
class SamplerOptions(Parameters):
    """How a canvas is sampled; names are those of the field.

    ancestral: draws from q(x_s | x_t), averaged over x0. ddpm: MDLM's name for it (arXiv 2406.07524). ddpm_cache:
    the same with chances of a schedule without floor (MDLM, BD3-LM), and a canvas that a step left as it was is
    not read again. psi: mixes it with a new forward process from the estimate of x0 (DUO). analytic, euler: by
    ratios of probabilities (SEDD, arXiv 2310.16834). first_hitting: one token a step, at the time of its own
    (arXiv 2409.02908), which is exact.
    """

    name: SamplerName = "ancestral"
    steps: int = 128  # of a block; first_hitting has as many as there are masks
    eps: float = field(default=1e-5, kw_only=True)  # where the times of a full canvas end
    dtype: Literal["float64", "float32"] = field(default="float64", kw_only=True)  # of the times
    # goes on to the end of the schedule where no mask is left, as the references do
    whole: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Move:
    """A step of a sampler from time t to the earlier time s; `removal` makes clean tokens of what is left."""

    t: Any
    s: Any
    removal: Removal = "none"


def plan(options: SamplerOptions, blocks: bool) -> list[Move]:
    """The moves of one block.

    A full canvas goes evenly from 1 to eps, and what is left is removed there. Block diffusion goes to 0; its
    reference spreads n times over [0, 1] and makes steps of 1 / n from them, so that the last removes what is left.
    """
    n = options.steps
    dtype = np.dtype(options.dtype)
    if blocks:
        times = np.linspace(1, 0, n, dtype=dtype)
        earlier = np.maximum(times - 1 / n, 0).astype(dtype)
        return [Move(t, s, "none" if t > 0 else "ancestral") for t, s in zip(times, earlier, strict=True)]
    times = np.linspace(1, options.eps, n + 1, dtype=dtype)
    moves = [Move(t, s) for t, s in pairwise(times)]
    return moves if options.noise_removal == "none" else [*moves, Move(times[-1], 0.0, options.noise_removal)]


def posterior(x0_NV: Array, x_N: Array, alpha_s: Any, alpha_t: Any, mask_id: int | None) -> Array:
    """q(x_s | x_t) [N, V] where the clean token is distributed as x0.

    By Bayes: the chance to come from a token to x_t, times what the token's chance is at time s. For x0 of one
    token that is exact; for a distribution it is the parametrisation by the mean (DUO, arXiv 2506.10892). A token
    under absorbing noise is clean and stays.
    """
    if mask_id is None:
        index = np.arange(len(x_N))
        size = x0_NV.shape[1]
        kept = alpha_t / alpha_s
        before = corrupted(x0_NV, alpha_s)
        q = before * ((1 - kept) / size)
        q[index, x_N] += before[index, x_N] * kept
        return q / (alpha_t * x0_NV[index, x_N] + (1 - alpha_t) / size)[:, None]
    q = x0_NV * ((alpha_s - alpha_t) / (1 - alpha_t))
    q[:, mask_id] = (1 - alpha_s) / (1 - alpha_t)
    clean = x_N != mask_id
    q[clean] = 0
    q[clean, x_N[clean]] = 1
    return q


def corrupted(x0_NV: Array, alpha: Any) -> Array:
    """Uniform noise on distributions: what x0 is once tokens are kept with chance alpha and random otherwise."""
    return alpha * x0_NV + (1 - alpha) / x0_NV.shape[1]


def psi_posterior(x0_NV: Array, x_N: Array, alpha_s: Any, alpha_t: Any, kappa: float) -> Array:
    """DUO's psi sampler on uniform noise: kappa of the ancestral step, and of the rest a step to time 0 that is
    noised again to s."""
    back = corrupted(posterior(x0_NV, x_N, alpha_s / alpha_s, alpha_t, None), alpha_s)
    return kappa * posterior(x0_NV, x_N, alpha_s, alpha_t, None) + (1 - kappa) * back


def first_hitting(t: Any, u: float, masks: int) -> Any:
    """When the next of `masks` masks turns into a token, going down from time t under a linear schedule: the
    latest of as many uniform times below t."""
    return t * u ** (1 / masks)


def nucleus(p_NV: Array, top_p: float) -> Array:
    """Distributions without what comes after mass top_p; the token that crosses it goes too, the best one stays
    (BD3-LM)."""
    if top_p >= 1:
        return p_NV
    order = (-p_NV).argsort(-1, kind="stable")
    ranked = np.take_along_axis(p_NV, order, -1)
    inside = ranked.cumsum(-1) <= top_p
    inside[:, 0] = True
    kept = np.zeros_like(p_NV)
    np.put_along_axis(kept, order, ranked * inside, -1)
    return kept / kept.sum(-1, keepdims=True)


def score_of(x0_NV: Array, x_N: Array, sigma: Any, mask_id: int) -> Array:
    """The score that a distribution of clean tokens implies under absorbing noise (MDLM)."""
    ratio = 1 / np.expm1(sigma)  # of the chance of a token that is kept to that of a mask
    masked = x_N == mask_id
    score = np.where(masked[:, None], x0_NV * ratio, 0)
    score[:, mask_id] = np.where(masked, 1, 1 / ratio)
    score[~masked, x_N[~masked]] = 1
    return score


def staggered(score_NV: Array, dsigma: Any, mask_id: int | None) -> Array:
    """p_s(y) / p_t(x), the noise between s and t taken off: the inverse of the forward process on a score."""
    grown = np.exp(dsigma)
    total = score_NV.sum(-1, keepdims=True)
    if mask_id is None:
        return score_NV * grown - (grown - 1) / score_NV.shape[1] * total
    out = score_NV * grown
    out[:, mask_id] -= (grown - 1) * total[:, 0]
    return out


def reached(x_N: Array, dsigma: Any, size: int, mask_id: int | None) -> Array:
    """The chance [N, V] of every token to have become x after noise dsigma."""
    kept = np.exp(-dsigma)
    index = np.arange(len(x_N))
    if mask_id is None:
        out = np.full((len(x_N), size), (1 - kept) / size)
    else:
        out = np.where(x_N == mask_id, 1 - kept, 0)[:, None] * np.ones(size)
    out[index, x_N] += kept
    return out


def analytic(score_NV: Array, x_N: Array, dsigma: Any, mask_id: int | None) -> Array:
    """q(x_s | x_t) [N, V] by Bayes on an exact score (Tweedie); of an inexact one, entries may be below 0."""
    return staggered(score_NV, dsigma, mask_id) * reached(x_N, dsigma, score_NV.shape[1], mask_id)


def denoised(score_NV: Array, x_N: Array, sigma: Any, mask_id: int | None) -> Array:
    """The analytic step that takes off all noise there is; a mask is not an outcome."""
    out = analytic(score_NV, x_N, sigma, mask_id)
    if mask_id is not None:
        out[:, mask_id] = 0
    return out


def euler(score_NV: Array, x_N: Array, dsigma: Any, mask_id: int | None) -> Array:
    """q(x_s | x_t) [N, V] to first order in dsigma: reverse rates are forward rates times the score."""
    index = np.arange(len(x_N))
    forward = np.full(len(x_N), 1 / score_NV.shape[1]) if mask_id is None else (x_N == mask_id) * 1.0
    out = score_NV * (forward * dsigma)[:, None]
    out[index, x_N] = 0
    out[index, x_N] = 1 - out.sum(-1)
    return out


def inverse(weights_NV: Array, u_N: Array) -> Array:
    """Tokens [N] drawn with chances in proportion to weights, by one uniform draw each; a weight below 0, as
    ratios of a network that is not exact can give, is none."""
    cumulative = np.maximum(weights_NV, 0).astype(np.float64).cumsum(-1)
    total = cumulative[:, -1]
    drawn = np.minimum(u_N * total, np.nextafter(total, 0))
    rows = zip(cumulative, drawn, strict=True)
    return np.array([row.searchsorted(value, side="right") for row, value in rows], np.int64)


@dataclass(frozen=True)
class SeededDraws:
    """Where a sampler's random choices come from: the request's own seed, the number of the move (`update`, over all
    blocks) and the position, never its company. Recordings of other projects stand in for it."""

    seed: int

    def _uniforms(self, update: int, purpose: int, position_N: Any = 0) -> Array:
        return uniforms(np.array(self.seed), np.array(update), np.array(position_N), purpose)

    def tokens(self, weights_NV: Array, update: int, position_N: Array) -> Array:
        """Tokens [N] with chances in proportion to weights [N, V]."""
        return inverse(weights_NV, self._uniforms(update, TOKEN_DRAW, position_N))

    def leaving(self, chance: float, update: int, position_N: Array) -> Array | None:
        """Which masks become tokens, bool [N], each with a chance; None where `tokens` is to decide that too."""
        return self._uniforms(update, LEAVE_DRAW, position_N) < chance

    def hit(self, update: int) -> float:
        """A uniform draw in (0, 1) for a first-hitting time."""
        return float(self._uniforms(update, HIT_DRAW)[0])

    def pick(self, update: int, count: int) -> int:
        """One of `count` masks, 0 .. count - 1."""
        return int(float(self._uniforms(update, PICK_DRAW)[0]) * count)
