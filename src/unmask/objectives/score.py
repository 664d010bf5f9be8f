"""Objectives of noise-conditioned networks: SEDD's score entropy, and DUO's bound under uniform noise.

The losses are pure functions, per token and per unit of total noise. Shapes: any leading ones, then V tokens. x is
what stands there, x0 what should.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

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
            "output": "logits",
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
        weights = rate.to(device)[:, None].expand(noised.shape)
        return self._noised(noised, rows, weights, rows.supervised, sigma.float().to(device))

    def loss(self, model: Transformer, noised: Noised) -> Tensor:
        if noised.time is None:
            raise ValueError("a noise-conditioned network needs the noise level of each row")
        rows = noised.rows
        sigma = noised.time[:, None].expand(noised.targets.shape)
        ids = noised.inputs.argmax(-1) if noised.inputs.dim() == 3 else noised.inputs
        mask = training_mask(Layout("bidirectional"), rows)
        out_BLV = model(noised.inputs, rows.position, mask, None, noised.time)
        with torch.autocast(out_BLV.device.type, enabled=False):
            log_score = self.log_score(out_BLV.float(), ids, sigma)
            mask_id = model.config.mask_token_id if self.corruption == "absorbing" else None
            losses = score_entropy(log_score, ids, noised.targets, sigma, mask_id)
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


def gaussian_alpha(gamma: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Alpha of the argmax of a one-hot vector times sqrt(sigmoid(-gamma)) plus noise times sqrt(sigmoid(gamma)), its
    chance to be kept, else random (DUO's diffusion transformation operator, arXiv 2506.10892, eq. 10), and its
    derivative by gamma; float64."""
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64, device=gamma.device)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    ratio = torch.exp(-gamma.double() / 2)[..., None]
    below = torch.special.log_ndtr(z + ratio)  # any other token's draw is less
    own = torch.trapezoid(density * torch.exp((size - 1) * below), z)
    slope = torch.exp((size - 2) * below - (z + ratio) ** 2 / 2) / math.sqrt(2 * math.pi)
    change = -torch.trapezoid(density * slope, z) * ratio[..., 0] / 2
    return (size * own - 1) / (size - 1), size * change


@dataclass(frozen=True)
class DUO(NoiseConditioned):
    """The NELBO of uniform noise (DUO, arXiv 2506.10892) of a network that gives logits of clean tokens.

    curriculum: training steps; up to the second the network reads softmax(w / temperature), w a one-hot vector in
    Gaussian noise, instead of w's argmax. The temperature falls from 0.1, from the first step on, to 0.01. gamma: the
    noise of such paths, log(variance / signal), at time 0 and 1. Rows then hold a vocabulary of floats per token.
    """

    curriculum: tuple[int, int] = (0, 0)
    gamma: tuple[float, float] = (-3.5, -1.75)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.curriculum[0] <= self.curriculum[1] or not self.gamma[0] < self.gamma[1]:
            raise ValueError("curriculum must name two steps, gamma two numbers, the lower first")
        if self.corruption != "uniform":
            raise ValueError("duo is for uniform noise; masked diffusion is objective mdlm")

    def held_out(self) -> DUO:
        return replace(self, curriculum=(0, 0))

    def temperature(self, step: int) -> float:
        first, last = self.curriculum
        return 10 ** -(1 + max(0, step - first) / max(1, last - first))

    def gammas(self, time: Tensor) -> Tensor:
        return self.gamma[0] + (self.gamma[1] - self.gamma[0]) * time

    def corrupt(self, rows: Rows, draws: Draws, mask_id: int | None, vocab_size: int = 0) -> Noised:
        if draws.step >= self.curriculum[1]:
            return super().corrupt(rows, draws, mask_id, vocab_size)
        gamma = self.gammas(clip_times(draws.strata(1)[:, 0], *self.clip).to(rows.ids.device))
        u = draws.uniforms(rows.ids.shape[1] * vocab_size).clamp(min=1e-7).to(gamma.device)
        clean = one_hot(rows.ids, vocab_size).float()
        noise = torch.special.ndtri(u).view(clean.shape) * torch.exp(gamma / 2)[:, None, None]
        signal = torch.sigmoid(-gamma).sqrt()[:, None, None]
        mixed = ((clean + noise) * signal / self.temperature(draws.step)).softmax(-1)
        alpha, slope = gaussian_alpha(gamma, vocab_size)
        rate = -slope * (self.gamma[1] - self.gamma[0]) / alpha
        inputs = torch.where(rows.supervised[..., None], mixed, clean)
        weights = rate[:, None].expand(rows.ids.shape)
        return self._noised(inputs, rows, weights, rows.supervised, -alpha.log().float())

    def log_score(self, out_BLV: Tensor, ids_BL: Tensor, sigma_BL: Tensor) -> Tensor:
        return uniform_score(out_BLV.log_softmax(-1), ids_BL, sigma_BL)
