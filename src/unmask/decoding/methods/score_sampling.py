"""Samplers of score networks (SEDD, arXiv 2310.16834): steps from ratios of probabilities.

A score [N, V] holds p_t(y) / p_t(x) for every token y in place of x, the token that is there (whose own is 1).
Shapes: N positions, V vocabulary. `mask_id` None means uniform noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unmask.canvas import Array


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
