"""Objectives of networks that are told the noise: what is corrupted, what is scored, and what the sum estimates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.layout import PADDING
from unmask.models.transformer import Transformer
from unmask.noise import NoiseSchedule
from unmask.objectives.draws import Draws
from unmask.objectives.likelihood import Estimation, told_nelbo
from unmask.objectives.objective import Rows
from unmask.objectives.score import DUO, SEDD, NoiseConditioned, score_entropy, uniform_prior, uniform_score

Tiny = Callable[..., Transformer]
TOLD: dict[str, Any] = {"time_condition_size": 8, "time_conditioned": True}
UNIFORM: dict[str, Any] = {**TOLD, "corruption": "uniform", "mask_token_id": None, "vocab_size": 5}
SCORES: dict[str, Any] = {"output": "log_score", "score_scaled": True}


def awake(model: Transformer) -> Transformer:
    """With adaLN weights that are not zero, so that the noise level matters."""
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


def rows_with_a_prompt(count: int = 4, length: int = 9, vocab: int = 5) -> Rows:
    ids = torch.randint(vocab, (count, length), generator=torch.Generator().manual_seed(0))
    document = torch.zeros_like(ids)
    document[:, -1] = PADDING
    return Rows.of(ids, document, torch.arange(length).expand_as(ids) >= 3)


@pytest.mark.parametrize("objective", [DUO(), SEDD(), SEDD(corruption="uniform")], ids=["duo", "absorb", "uniform"])
def test_prompts_and_padding_are_left_alone_and_ranks_share_the_noise(objective: NoiseConditioned, tiny: Tiny) -> None:
    options = UNIFORM if objective.corruption == "uniform" else TOLD
    model = awake(tiny(**options, **(SCORES if isinstance(objective, SEDD) else {})))
    rows, mask = rows_with_a_prompt(), model.config.mask_token_id
    noised = objective.corrupt(rows, Draws(3, 1, 4, 0, 4), mask, 5)
    assert (noised.inputs == rows.ids)[~rows.supervised].all()
    assert (noised.inputs != rows.ids)[rows.supervised].any()
    assert ((noised.weights > 0) == rows.supervised).all()
    loss = objective.loss(model, noised)
    value = loss.item()
    loss.backward()  # type: ignore[no-untyped-call]
    assert value > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    parts = [
        objective.corrupt(rows.slice(s, s + 2), Draws(3, 1, 4, s, 2), mask, model.config.vocab_size) for s in (0, 2)
    ]
    assert torch.equal(torch.cat([p.inputs for p in parts]), noised.inputs)
    with torch.no_grad():
        total = sum(float(objective.loss(model, part)) for part in parts)
    assert total == pytest.approx(value, rel=1e-5)


def bound_by_quadrature(model: Transformer, x0: Tensor, points: int = 120) -> float:
    """DUO's bound of x_1, x_2 given x_0: over all canvases, by the midpoint rule in time."""
    noise, size = NoiseSchedule.of_network(), model.config.vocab_size
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    canvas = torch.cat([x0[:1].expand(len(pairs), 1), pairs], 1)
    total = 0.0
    for point in range(points):
        t = (point + 0.5) / points
        kept, sigma = float(noise.alpha(t)), torch.full(canvas.shape, float(noise.sigma(t)))
        logits = model(canvas, time_B=sigma[:, 0]).double()
        score = uniform_score(logits.log_softmax(-1), canvas, sigma.double())
        loss = score_entropy(score, canvas, x0.expand_as(canvas), sigma.double(), None)[:, 1:].sum(1)
        there = torch.where(pairs == x0[1:], kept + (1 - kept) / size, (1 - kept) / size).double().prod(1)
        total += float((there * loss).sum()) * float(noise.rate(t)) / points
    return total + 2 * float(uniform_prior(torch.tensor(float(noise.alpha(1.0))).double(), size))


@torch.inference_mode()
def test_the_bound_of_uniform_noise_agrees_with_enumeration(tiny: Tiny) -> None:
    """Law 1 for uniform noise: the likelihood's estimate, and the objective's, within their errors."""
    model = awake(tiny(std=0.15, **UNIFORM))
    window = torch.tensor([[0, 3, 1]])
    exact = bound_by_quadrature(model, window[0])
    how = Estimation(20000, 1, 4000, lambda share: None)
    mean, error = told_nelbo(model, window, how, torch.tensor([[False, True, True]]))
    assert float(error) < 0.01 * exact
    assert abs(float(mean) - exact) < 3 * float(error)
    count, objective = 12000, DUO(clip=(1e-6, 1.0))
    rows = Rows.of(window.expand(count, -1).contiguous(), supervised=torch.tensor([False, True, True]).expand(count, 3))
    noised = objective.corrupt(rows, Draws(0, 0, count, 0, count), None, 5)
    prior = 2 * float(uniform_prior(torch.tensor(1e-3, dtype=torch.float64), 5))
    assert float(objective.loss(model, noised)) / count + prior == pytest.approx(exact, rel=0.1)
    assert math.isfinite(exact)


def absorbing_bound(model: Transformer, x0: Tensor, scored: Tensor, points: int = 400) -> float:
    """SEDD's bound of the scored tokens given the others: over all masks, by the midpoint rule in time, and the
    divergence of the schedule's end."""
    noise, mask_id = NoiseSchedule.of_network(), model.config.mask_token_id
    assert mask_id is not None
    places = scored.nonzero()[:, 0]
    hidden = torch.cartesian_prod(*[torch.tensor([False, True])] * len(places)).view(-1, len(places))
    canvas = x0.repeat(len(hidden), 1)
    canvas[:, places] = torch.where(hidden, mask_id, x0[places])
    total = 0.0
    for point in range(points):
        t = (point + 0.5) / points
        masked, sigma = 1 - float(noise.alpha(t)), torch.full(canvas.shape, float(noise.sigma(t)))
        score = model(canvas, time_B=sigma[:, 0]).double()
        loss = score_entropy(score, canvas, x0.expand_as(canvas), sigma.double(), mask_id)[:, places].sum(1)
        chance = torch.where(hidden, masked, 1 - masked).double().prod(1)
        total += float((chance * loss).sum()) * float(noise.rate(t)) / points
    return total + len(places) * float(noise.alpha(1.0)) * math.log(model.config.vocab_size - 1)


@torch.inference_mode()
def test_the_bound_of_absorbing_score_networks_agrees_with_enumeration(tiny: Tiny) -> None:
    """Law 1 for score entropy, with tokens given on both sides."""
    model = awake(tiny(std=0.15, **TOLD, **SCORES))
    window, scored = torch.tensor([[0, 3, 1, 7]]), torch.tensor([[False, True, True, False]])
    exact = absorbing_bound(model, window[0], scored[0])
    mean, error = told_nelbo(model, window, Estimation(8000, 1, 4000, lambda share: None), scored)
    assert float(error) < 0.01 * exact
    assert abs(float(mean) - exact) < 3 * float(error)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="uniform noise"):
        DUO(corruption="absorbing")
    with pytest.raises(ValueError, match="log_linear"):
        SEDD(schedule="linear")
    with pytest.raises(ValueError, match="clip"):
        SEDD(clip=(0.0, 1.0))
    with pytest.raises(ValueError, match="mask_token_id"):
        SEDD().corrupt(rows_with_a_prompt(), Draws(0, 0, 4, 0, 4), None, 5)
