"""LLaDA's likelihood estimate for recorded masks against ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from conformance.checks.checks import Check, perform
from conformance.checks.objectives import relative
from conformance.checks.outcome import Outcome
from unmask.lm import DiffusionLM
from unmask.objectives.likelihood import one_draw


def outcomes(folder: str, lm: DiffusionLM, recorded: dict[str, Any], tensors: dict[str, Tensor]) -> list[Outcome]:
    """The mean over a case's masked rows, with and without guidance; ours never gives the mask a chance (SUBS),
    theirs a negligible one."""
    out = []
    for case in recorded.get("cases", []):
        name = f"likelihood.{case.get('perturbed_tensor', '').removesuffix('.perturbed')}"
        compute = partial(_difference, lm, recorded, case, tensors)
        out.append(perform(folder, Check("objective", name, compute)))
    return out


def _difference(lm: DiffusionLM, recorded: dict[str, Any], case: dict[str, Any], tensors: dict[str, Tensor]) -> float:
    canvas = tensors[case["perturbed_tensor"]]
    prompt, answer = recorded["prompt_ids"], recorded["answer_ids"]
    x0 = torch.tensor(prompt + answer).expand_as(canvas)
    given = torch.arange(canvas.shape[1]) < len(prompt)
    draws = one_draw(lm.model, x0, canvas == recorded["mask_id"], given.expand_as(canvas), case["cfg_scale"])
    return relative(-draws.mean(), torch.tensor(case["log_likelihood"]))
