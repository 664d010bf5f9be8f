"""Losses that are no cross-entropy, per token and per unit of total noise; pure functions of tensors.

Shapes: any leading ones, then V tokens. x is what stands there, x0 what should.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def score_entropy(log_score_V: Tensor, x: Tensor, x0: Tensor, sigma: Tensor, mask_id: int | None) -> Tensor:
    """Score entropy of SEDD (arXiv 2310.16834, eq. 9): what a score lacks to be p_t(y | x0) / p_t(x | x0).

    log_score: log ratios of every token y to the one that is there. sigma: total noise, of x's shape. mask_id None
    means uniform noise. Sum over y of rate(x, y) times s_y - r_y log s_y + r_y (log r_y - 1), r the true ratios; 0
    for a score that is right. Times d sigma / dt and integrated over time it bounds -log p(x0).
    """
    size, gained = log_score_V.shape[-1], torch.expm1(sigma)
    at_x0 = log_score_V.gather(-1, x0[..., None]).squeeze(-1)
    score_V = log_score_V.exp()
    if mask_id is not None:
        ratio = 1 / gained
        total = score_V.sum(-1) - score_V[..., mask_id]
        return torch.where(x == mask_id, total - ratio * at_x0 + ratio * (ratio.log() - 1), 0.0)
    ratio = gained / (gained + size)  # of a token's chance that is not x0 to that of x0
    total = score_V.sum(-1) - score_V.gather(-1, x[..., None]).squeeze(-1)
    logs = log_score_V.sum(-1) - log_score_V.gather(-1, x[..., None]).squeeze(-1)
    clean = total - ratio * logs + (size - 1) * ratio * (ratio.log() - 1)
    moved = total - logs - (1 / ratio - 1) * at_x0 - (ratio.log() + 1) / ratio - (size - 2)
    return torch.where(x == x0, clean, moved) / size


def uniform_score(log_p_V: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The log score [..., V] that a distribution of clean tokens implies under uniform noise.

    Score entropy of it is DUO's NELBO (arXiv 2506.10892, its Rao-Blackwell form; UDLM, arXiv 2412.10193).
    """
    alpha = torch.exp(-sigma)[..., None]
    mixed_V = torch.log(log_p_V.shape[-1] * alpha * log_p_V.exp() + (1 - alpha))
    return mixed_V - mixed_V.gather(-1, x[..., None])


def uniform_prior(alpha: Tensor, size: int) -> Tensor:
    """KL divergence, nats a token, of a token kept with chance alpha, else random, from a random one."""
    others = (1 - alpha) / size
    kept = alpha + others
    return kept * torch.log(size * kept) + (size - 1) * torch.xlogy(others, size * others)


def cart_weights(masked_BL: Tensor, document_BL: Tensor, share: float = 0.3) -> Tensor:
    """Dream's weights of masked tokens [B, L] (CART, arXiv 2508.15487): half the sum, over the tokens of the document
    that are not masked, of a geometric distribution in their distance. 0 at others."""
    index = torch.arange(masked_BL.shape[1], device=masked_BL.device)
    apart = (index[:, None] - index).abs()
    near_LL = torch.where(apart > 0, 0.5 * share * torch.exp((apart - 1) * math.log(1 - share)), 0.0)
    seen_BLL = ~masked_BL[:, None] & (document_BL[:, None] == document_BL[:, :, None])
    return (seen_BLL * near_LL).sum(-1) * masked_BL
