"""Objectives of networks that are told the noise: SEDD's score entropy, and DUO's bound under uniform noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unmask import noise
from unmask.layout import Layout
from unmask.noise_levels import LevelSchedule, Noise
from unmask.objectives.losses import score_entropy, uniform_score
from unmask.objectives.masked import Denoiser, Noised, Objective, Rows, training_mask

Corruption = Literal["absorbing", "uniform"]


@dataclass(frozen=True)
class Told(Objective):
    """One noise level a row; every supervised token has a loss, per unit of total noise, times d sigma / dt.

    schedule and noise_range are the network's own (ModelConfig.noise_schedule, noise_range). clip: interval that
    times are drawn from. All logits of a micro-batch are held at once.
    """

    corruption: Corruption = "uniform"
    schedule: LevelSchedule = "log_linear"
    noise_range: tuple[float, float] = (1e-3, 1.0)
    clip: tuple[float, float] = (1e-3, 1.0)

    def __post_init__(self) -> None:
        low, high = self.clip
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"clip {self.clip} must satisfy 0 < low <= high <= 1")
        if self.schedule == "linear":
            raise ValueError("schedule 'linear' has no end where networks are told the noise; use log_linear")

    def corrupt(self, rows: Rows, draws: noise.Draws, mask_id: int | None, vocab_size: int = 0) -> Noised:
        length, device = rows.ids.shape[1], rows.ids.device
        if self.corruption == "absorbing":
            if mask_id is None:
                raise ValueError("absorbing noise needs a model with a mask_token_id")
            replacement = torch.full_like(rows.ids, mask_id)
        else:
            replacement = draws.tokens(length, vocab_size).to(device)
        t = noise.clip_times(draws.strata(1), *self.clip).double().numpy()[:, 0]
        level = Noise(self.schedule, *self.noise_range)
        alpha, sigma, rate = (torch.from_numpy(np.asarray(f(t))) for f in (level.alpha, level.sigma, level.rate))
        u = draws.uniforms(length).to(device)
        noised = noise.uniform(rows.ids, alpha.to(device)[:, None], u, replacement)
        noised = torch.where(rows.supervised, noised, rows.ids)
        weights, normaliser = self._weigh(rate.to(device)[:, None].expand(noised.shape), rows.supervised, rows)
        return Noised(noised, rows.ids, weights, rows, normaliser, sigma.float().to(device))

    def loss(self, model: Denoiser, noised: Noised) -> Tensor:
        assert noised.time is not None
        rows, sigma = noised.rows, noised.time[:, None].expand(noised.inputs.shape)
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
class SEDD(Told):
    """Denoising score entropy (arXiv 2310.16834) of a network whose output is log scores (ModelConfig.output)."""

    corruption: Corruption = "absorbing"

    def log_score(self, out_BLV: Tensor, ids_BL: Tensor, sigma_BL: Tensor) -> Tensor:
        return out_BLV


@dataclass(frozen=True)
class DUO(Told):
    """The NELBO of uniform noise (DUO, arXiv 2506.10892) of a network that gives logits of clean tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corruption != "uniform":
            raise ValueError("duo is for uniform noise; masked diffusion is objective mdlm")

    def log_score(self, out_BLV: Tensor, ids_BL: Tensor, sigma_BL: Tensor) -> Tensor:
        return uniform_score(out_BLV.log_softmax(-1), ids_BL, sigma_BL)


TOLD: dict[str, type[Objective]] = {"sedd": SEDD, "duo": DUO}
