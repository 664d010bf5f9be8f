"""Recorded single steps of samplers: the chances that MDLM, DUO and SEDD draw their next canvas from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from conformance.checks.checks import Check, Recorded, difference
from unmask.canvas import Array
from unmask.decoding.methods.ancestral import analytic, denoised, euler, posterior, score_of
from unmask.lm import DiffusionLM
from unmask.noise import NoiseSchedule

STEPS = "ddpm|ddpm_cache|analytic|euler|denoiser"


def steps(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """`step.NAME.categorical_probs` from time `step.t` [B, 1] to `step.dt` before it; denoiser: to a clean text."""
    for prefix in recorded.groups(rf"step\.({STEPS})", "categorical_probs"):
        name, theirs = f"{prefix}.categorical_probs", recorded[f"{prefix}.categorical_probs"]
        given = (recorded["input_ids"], recorded["step.t"], recorded["step.dt"])
        yield Check("forward", name, partial(_step, lm, prefix.removeprefix("step."), *given, theirs))


@np.errstate(invalid="ignore", over="ignore", divide="ignore")  # of times that are none
def _step(lm: DiffusionLM, name: str, ids_BL: Tensor, t_B1: Tensor, dt: Tensor, theirs_BLV: Tensor) -> float:
    """Greatest difference of the chances, of masked positions alone where they are the only ones to change."""
    config = lm.config
    noise = NoiseSchedule.of_network(config.noise_schedule, *config.noise_range)
    mask_id = config.mask_token_id if config.corruption == "absorbing" else None
    told = torch.from_numpy(noise.sigma(t_B1[:, 0].numpy())) if config.time_conditioned else None
    estimate_BLV = _estimate(lm, ids_BL, told)
    found = []
    for ids, t, estimate, theirs in zip(ids_BL.numpy(), t_B1[:, 0].numpy(), estimate_BLV, theirs_BLV, strict=True):
        s, sigma = t - dt.numpy(), noise.sigma(t)
        if name in ("ddpm", "ddpm_cache"):
            chances = NoiseSchedule.of_network("linear") if name == "ddpm_cache" else noise
            rows = ids == mask_id
            ours = posterior(estimate, ids, chances.alpha(s), chances.alpha(t), mask_id)[rows]
            theirs = theirs[torch.from_numpy(rows)]
            theirs = theirs / theirs.sum(-1, keepdim=True)  # they leave a factor out
        else:
            scored = config.output == "log_score" or mask_id is None
            score = estimate if scored or mask_id is None else score_of(estimate, ids, sigma, mask_id)
            if name == "euler":
                ours = euler(score, ids, noise.rate(t) * (t - s), mask_id)
            elif name == "analytic":
                ours = analytic(score, ids, sigma - noise.sigma(s), mask_id)
            else:
                ours = denoised(score, ids, sigma, mask_id)
        # the last step of SEDD leaves the mask's column out
        found.append(difference(torch.from_numpy(ours[:, : theirs.shape[-1]]), theirs))
    return float(np.max(found))  # not a number, if one of them is


def _estimate(lm: DiffusionLM, ids_BL: Tensor, time_B: Tensor | None) -> Array:
    """What the network says, [B, L, V]: distributions of clean tokens, or the score."""
    out = lm.model(ids_BL, time_B=time_B).double()
    if lm.config.output == "log_score":
        return out.exp().numpy()
    if lm.config.mask_token_id is not None:
        out[..., lm.config.mask_token_id] = -torch.inf
    return out.softmax(-1).numpy()


def posteriors(lm: DiffusionLM, recorded: Recorded) -> Iterator[Check]:
    """`posterior.probs` of distributions `p_x0`, and `posterior_onehot.probs` of tokens `x0`, under uniform noise."""
    if "posterior.probs" not in recorded:
        return
    x_t, x0 = recorded["posterior.x_t"].numpy(), recorded["posterior.p_x0"].numpy()
    alphas = [recorded[f"posterior.alpha_{time}"].numpy()[:, 0] for time in "st"]

    def compare(x0_BLV: Array, theirs_BLV: Tensor) -> float:
        rows = [posterior(x0, x, s, t, None) for x0, x, s, t in zip(x0_BLV, x_t, *alphas, strict=True)]
        return difference(torch.from_numpy(np.stack(rows)), theirs_BLV)

    yield Check("forward", "posterior.probs", partial(compare, x0, recorded["posterior.probs"]))
    if "posterior_onehot.probs" in recorded:
        known = np.eye(x0.shape[-1])[recorded["posterior_onehot.x0"].numpy()]
        yield Check("forward", "posterior_onehot.probs", partial(compare, known, recorded["posterior_onehot.probs"]))


GROUPS = (steps, posteriors)
