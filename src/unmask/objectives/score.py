"""Objectives of noise-conditioned networks: SEDD's score entropy, and DUO's bound under uniform noise.

The losses are pure functions, per token and per unit of total noise. Shapes: any leading ones, then V tokens. x is
what stands there, x0 what should.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmask.layout import Layout
from unmask.models.config import Corruption
from unmask.models.transformer import Transformer
from unmask.noise import NetworkSchedule, NoiseSchedule, clip_times
from unmask.objectives.draws import Draws
from unmask.objectives.masked import check_clip
from unmask.objectives.objective import Noised, Objective, Rows, training_mask


def score_entropy(log_score_V: Tensor, x: Tensor, x0: Tensor, sigma: Tensor, mask_id: int | None) -> Tensor:
    """Score entropy of SEDD (arXiv 2310.16834, eq. 9): what a score lacks to be p_t(y | x0) / p_t(x | x0).

    log_score: log ratios of every token y to the one that is there. sigma: total noise, of x's shape. mask_id None
    means uniform noise. Sum over y of rate(x, y) times s_y - r_y log s_y + r_y (log r_y - 1), r the true ratios; 0
    for a score that is right. Times d sigma / dt and integrated over time it bounds -log p(x0).
    """
    size = log_score_V.shape[-1]
    gained = torch.expm1(sigma)
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


def absorbing_prior(alpha: Tensor, size: int) -> Tensor:
    """KL divergence, nats a token, of a token kept with chance alpha, else the mask, from a random token of the
    others with that chance, else the mask."""
    return alpha * math.log(size - 1)


@dataclass(frozen=True)
class NoiseConditioned(Objective):
    """One noise level a row; every supervised token has a loss, per unit of total noise, times d sigma / dt.

    schedule and noise_range are the network's own (ModelConfig.noise_schedule, noise_range). clip: interval that
    times are drawn from. All logits of a micro-batch are held at once.
    """

    corruption: Corruption = "uniform"
    schedule: NetworkSchedule = "log_linear"
    noise_range: tuple[float, float] = (1e-3, 1.0)
    clip: tuple[float, float] = (1e-3, 1.0)

    def __post_init__(self) -> None:
        check_clip(self.clip)
        if self.schedule == "linear":
            raise ValueError("schedule 'linear' has no end where networks are told the noise; use log_linear")

    def network(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        own: dict[str, Any] = {
            "shift": self.shift,
            "layout": "bidirectional",
            "corruption": self.corruption,
            "noise_schedule": self.schedule,
            "noise_range": self.noise_range,
            "time_conditioned": bool(shape.get("time_condition_size")),
        }
        return own if self.corruption == "absorbing" else {**own, "mask_token_id": None}

    def corrupt(self, rows: Rows, draws: Draws, mask_id: int | None, vocab_size: int = 0) -> Noised:
        length = rows.ids.shape[1]
        device = rows.ids.device
        if self.corruption == "absorbing":
            if mask_id is None:
                raise ValueError("absorbing noise needs a model with a mask_token_id")
            replacement = torch.full_like(rows.ids, mask_id)
        else:
            replacement = draws.tokens(length, vocab_size).to(device)
        t = clip_times(draws.strata(1), *self.clip).double().numpy()[:, 0]
        level = NoiseSchedule.of_network(self.schedule, *self.noise_range)
        alpha, sigma, rate = (torch.from_numpy(np.asarray(f(t))) for f in (level.alpha, level.sigma, level.rate))
        u = draws.uniforms(length).to(device)
        noised = torch.where(u < alpha.to(device)[:, None], rows.ids, replacement)
        noised = torch.where(rows.supervised, noised, rows.ids)
        weights, normaliser = self._weigh(rate.to(device)[:, None].expand(noised.shape), rows.supervised, rows)
        return Noised(
            inputs=noised,
            targets=rows.ids,
            weights=weights,
            rows=rows,
            normaliser=normaliser,
            time=sigma.float().to(device),
        )

    def loss(self, model: Transformer, noised: Noised) -> Tensor:
        if noised.time is None:
            raise ValueError("a noise-conditioned network needs the noise level of each row")
        rows = noised.rows
        sigma = noised.time[:, None].expand(noised.inputs.shape)
        mask = training_mask(Layout("bidirectional"), rows)
        out_BLV = model(noised.inputs, rows.position, mask, None, noised.time)
        with torch.autocast(out_BLV.device.type, enabled=False):
            log_score = self.log_score(out_BLV.float(), noised.inputs, sigma)
            mask_id = model.config.mask_token_id if self.corruption == "absorbing" else None
            losses = score_entropy(log_score, noised.inputs, noised.targets, sigma, mask_id)
            return torch.where(noised.weights > 0, losses * noised.weights, 0.0).sum()

    def log_score(self, out_BLV: Tensor, ids_BL: Tensor, sigma_BL: Tensor) -> Tensor:
        """Log score [B, L, V] of what the network gives."""
        raise NotImplementedError


@dataclass(frozen=True)
class SEDD(NoiseConditioned):
    """Denoising score entropy (arXiv 2310.16834) of a network whose output is log scores (ModelConfig.output)."""

    corruption: Corruption = "absorbing"

    def network(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        if not shape.get("time_condition_size"):
            raise ValueError("sedd needs model.time_condition_size: its scores depend on the noise")
        return {**super().network(shape), "output": "log_score", "score_scaled": self.corruption == "absorbing"}

    def log_score(self, out_BLV: Tensor, ids_BL: Tensor, sigma_BL: Tensor) -> Tensor:
        return out_BLV


@dataclass(frozen=True)
class DUO(NoiseConditioned):
    """The NELBO of uniform noise (DUO, arXiv 2506.10892) of a network that gives logits of clean tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corruption != "uniform":
            raise ValueError("duo is for uniform noise; masked diffusion is objective mdlm")

    def log_score(self, out_BLV: Tensor, ids_BL: Tensor, sigma_BL: Tensor) -> Tensor:
        return uniform_score(out_BLV.log_softmax(-1), ids_BL, sigma_BL)
