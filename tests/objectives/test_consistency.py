"""Distillation to few steps, against closed forms and enumeration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.noise import NoiseSchedule
from unmask.objectives.consistency import (
    DCD,
    SDTT,
    MaskedConsistency,
    divergence,
    drawn,
    gaussian_gap,
)
from unmask.objectives.draws import Draws
from unmask.objectives.objective import Noised, Rows
from unmask.objectives.score import DUO, gaussian_alpha

Tiny = Callable[..., Any]


def draws_of(count: int, step: int = 0) -> Draws:
    return Draws(seed=3, step=step, total_rows=count, first_row=0, rows=count)


def test_both_divergences_and_what_the_backward_one_makes_of_two_teachers() -> None:
    p, q = torch.tensor([0.75, 0.25, 0.0]), torch.tensor([0.25, 0.75, 0.0])
    log_p, log_q = (x.log().clamp(min=-1e9) for x in (p, q))
    assert float(divergence(log_p, log_q, "forward")) == pytest.approx(0.5 * math.log(3))
    assert float(divergence(log_p, log_p, "backward")) == 0
    skewed = torch.tensor([0.5, 0.5, 0.0]).log().clamp(min=-1e9)
    assert float(divergence(log_p, skewed, "backward")) == pytest.approx(-0.5 * math.log(4 * 0.75 * 0.25))
    teachers = torch.randn(2, 5, dtype=torch.float64).log_softmax(-1)
    arithmetic = teachers.exp().mean(0).log()
    geometric = teachers.mean(0).log_softmax(-1)
    for kind, best in (("forward", arithmetic), ("backward", geometric)):
        logits = best.clone().requires_grad_(True)
        loss = divergence(teachers, logits.log_softmax(-1).expand(2, 5), kind).mean()  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, logits)
        assert float(gradient.abs().max()) < 1e-12  # the least of both teachers' mean divergence is there


def test_inversion_draws_by_the_distribution() -> None:
    p = torch.tensor([0.2, 0.0, 0.5, 0.3])
    u = (torch.arange(1000) + 0.5) / 1000
    found = drawn(p.log().clamp(min=-1e9).expand(1000, 4), u)
    assert torch.bincount(found, minlength=4).tolist() == [200, 0, 500, 300]


@pytest.mark.parametrize("size", [3, 50])
def test_gaussian_paths_are_the_argmax_of_noised_one_hot_vectors(size: int) -> None:
    """The two numbers that stand for a whole vector of noise give the same chances of (kept at t, kept at s)."""
    torch.manual_seed(0)
    count = 200_000
    ratios = [math.exp(-gamma / 2) for gamma in (-1.75, -3.5)]
    noise = torch.randn(count, size)
    brute = [noise[:, 0] + ratio > noise[:, 1:].max(-1).values for ratio in ratios]
    gap = gaussian_gap(torch.rand(count), torch.rand(count), size)
    ours = [ratio > gap for ratio in ratios]
    for a, b in zip((*brute, brute[0] & brute[1]), (*ours, ours[0] & ours[1]), strict=True):
        assert float(a.float().mean()) == pytest.approx(float(b.float().mean()), abs=5e-3)
    alpha, _ = gaussian_alpha(torch.tensor([-1.75, -3.5]), size)
    kept = [float(a + (1 - a) / size) for a in alpha]
    assert kept == pytest.approx([float(a.float().mean()) for a in brute], abs=5e-3)


def test_gaussian_alpha_of_two_tokens_has_a_closed_form() -> None:
    gamma = torch.tensor([-4.0, 0.0, 4.0])
    normal = torch.distributions.Normal(0.0, 1.0)
    own = normal.cdf(torch.exp(-gamma / 2) / math.sqrt(2))  # z0 + ratio > z1
    torch.testing.assert_close(gaussian_alpha(gamma, 2)[0].float(), 2 * own - 1, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [2, 50, 4096])
def test_the_slope_of_gaussian_alpha_is_its_derivative(size: int) -> None:
    gamma = torch.linspace(-4, -1, 7, dtype=torch.float64)
    step = 1e-4
    rise = gaussian_alpha(gamma + step, size)[0] - gaussian_alpha(gamma - step, size)[0]
    torch.testing.assert_close(gaussian_alpha(gamma, size)[1], rise / (2 * step), rtol=1e-5, atol=1e-9)


@pytest.fixture
def masked(tiny: Tiny) -> tuple[Any, Rows]:
    model = tiny(1, 0.5, layout="bidirectional")
    ids = torch.randint(4, model.config.vocab_size - 1, (4, 12), generator=torch.Generator().manual_seed(2))
    supervised = torch.arange(12).expand(4, 12) >= 3
    return model, Rows.of(ids, supervised=supervised)


def log_chances(model: Any, ids: Tensor) -> Tensor:
    logits = model(ids).float()
    logits[..., model.config.mask_token_id] = -1e9
    return logits.log_softmax(-1)


@torch.no_grad()
def test_consistency_is_the_later_teacher_where_masked_and_the_text_where_told(masked: tuple[Any, Rows]) -> None:
    model, rows = masked
    mask = model.config.mask_token_id
    objective = MaskedConsistency(rounds=(4,))
    noised = objective.corrupt(rows, draws_of(4), mask)
    told = noised.later != noised.inputs
    assert told.any()
    assert (noised.later == mask).any()
    assert torch.equal(noised.later[told], rows.ids[told])
    assert bool((noised.later[~told] == noised.inputs[~told]).all())
    student, teacher = log_chances(model, noised.inputs), log_chances(model, noised.later)
    expected = 0.0
    for b, i in (noised.inputs == mask).nonzero().tolist():
        if told[b, i]:
            expected -= float(student[b, i, rows.ids[b, i]])
        else:
            expected += float((student[b, i].exp() * (student[b, i] - teacher[b, i])).sum())
    loss = objective.loss(model, objective.teach(model, noised))
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert noised.normaliser == int((noised.inputs == mask).sum())


@torch.no_grad()
def test_sdtt_scores_a_token_as_the_teacher_did_when_it_wrote_it(masked: tuple[Any, Rows]) -> None:
    """One teacher step written out by hand: what is written at the first half, and the rest after reading that."""
    model, rows = masked
    mask = model.config.mask_token_id
    objective = SDTT(rounds=(2,))
    noised = objective.corrupt(rows, draws_of(4), mask)
    first = log_chances(model, noised.inputs)
    ids = noised.inputs.clone()
    written = torch.zeros_like(ids, dtype=torch.bool)
    for b, i in (ids == mask).nonzero().tolist():
        t, s = float(noised.start[b]), float(noised.end[b])
        assert s == pytest.approx(max(t - 0.5, 0))
        if float(noised.u[b, i]) >= ((t + s) / 2) / t:  # masks stay with the ratio of the linear schedule's shares
            written[b, i] = True
            below = first[b, i].exp().double().cumsum(0) <= float(noised.u[b, 12 + i])
            ids[b, i] = int(below.sum())
    second = log_chances(model, ids)
    assert written.any()
    assert (ids == mask).any()
    assert not (ids[written] == mask).any()
    expected = sum(
        float((first[b, i].exp() * (first[b, i] - (first if written[b, i] else second)[b, i])).sum())
        for b, i in (noised.inputs == mask).nonzero().tolist()
    )
    loss = objective.loss(model, objective.teach(model, noised))
    assert float(loss) == pytest.approx(expected, rel=1e-3)
    assert expected > 0.01


def test_rounds_follow_the_step_and_the_last_one_stays() -> None:
    objective = SDTT(rounds=(8, 4), round_length=3)
    assert [objective.at(step).rounds for step in (0, 2, 3, 5, 6, 99)] == [(8,), (8,), (4,), (4,), (4,), (4,)]
    assert objective.at(0) == objective.at(2) != objective.at(3)


@pytest.fixture
def uniform(tiny: Tiny) -> tuple[Any, Rows]:
    shape = {"layout": "bidirectional", "corruption": "uniform", "mask_token_id": None}
    model = tiny(1, 0.5, **shape, time_condition_size=8, time_conditioned=True, noise_schedule="log_linear")
    ids = torch.randint(model.config.vocab_size, (64, 12), generator=torch.Generator().manual_seed(2))
    return model, Rows.of(ids)


@torch.no_grad()
def test_dcd_reads_two_states_of_one_path(uniform: tuple[Any, Rows]) -> None:
    model, rows = uniform
    size = model.config.vocab_size
    objective = DCD(rounds=(4,))
    noised = objective.corrupt(rows, draws_of(64), None, size)
    early, late = noised.later != rows.ids, noised.inputs != rows.ids
    assert early.any()
    assert not (early & ~late).any()  # what was random before is random later
    assert torch.equal(noised.later[early], noised.inputs[early])  # and the same token
    assert noised.time is not None
    assert bool((noised.end < noised.time).all())
    share = (1 - torch.exp(-noised.time)) * (1 - 1 / size)
    assert float(late.float().mean()) == pytest.approx(float(share.mean()), abs=0.05)
    student = model(noised.inputs, rows.position, None, None, noised.time).log_softmax(-1)
    teacher = model(noised.later, rows.position, None, None, noised.end).log_softmax(-1)
    expected = float((student.exp() * (student - teacher)).sum())
    assert float(objective.loss(model, objective.teach(model, noised))) == pytest.approx(expected, rel=1e-4)
    shape = {field.name for field in fields(Noised)}
    assert shape <= set(vars(objective.teach(model, noised)))


@torch.no_grad()
def test_the_curriculum_reads_mixtures_that_sharpen_into_their_argmax(uniform: tuple[Any, Rows]) -> None:
    model, rows = uniform
    size = model.config.vocab_size
    objective = DUO(curriculum=(10, 20))
    assert [round(objective.temperature(step), 6) for step in (0, 10, 15, 20)] == [0.1, 0.1, 0.031623, 0.01]
    soft = objective.corrupt(rows, draws_of(64), None, size)
    torch.testing.assert_close(soft.inputs.sum(-1), torch.ones(64, 12))
    sharp = objective.corrupt(rows, draws_of(64, step=19), None, size)
    assert sharp.inputs.amax(-1).mean() > soft.inputs.amax(-1).mean()
    random = (soft.inputs.argmax(-1) != rows.ids).float().mean(1)
    assert soft.time is not None
    expected = (1 - torch.exp(-soft.time)) * (1 - 1 / size)
    assert float(random.mean()) == pytest.approx(float(expected.mean()), abs=0.05)
    hard = replace(soft, inputs=soft.inputs.argmax(-1))
    mixed = replace(soft, inputs=torch.nn.functional.one_hot(hard.inputs, size).float())
    torch.testing.assert_close(objective.loss(model, mixed), objective.loss(model, hard))
    assert float(objective.loss(model, soft)) != pytest.approx(float(objective.loss(model, hard)), rel=1e-3)
    plain = DUO()
    for other, step in ((objective, 20), (objective.held_out(), 0)):
        a, b = (o.corrupt(rows, draws_of(64, step=step), None, size) for o in (other, plain))
        assert torch.equal(a.inputs, b.inputs)


def test_a_given_prompt_stays_and_is_not_scored(uniform: tuple[Any, Rows]) -> None:
    model, rows = uniform
    given = replace(rows, supervised=torch.arange(12).expand(64, 12) >= 5)
    noised = DCD(rounds=(1,)).corrupt(given, draws_of(64), None, model.config.vocab_size)
    assert torch.equal(noised.inputs[:, :5], rows.ids[:, :5])
    assert not noised.weights[:, :5].any()


def test_schedules_of_the_path_and_of_the_sampler_name_noise_alike() -> None:
    """The network is told sigma = -log alpha by both."""
    alpha, _ = gaussian_alpha(torch.tensor([-2.0]), 100)
    t = float((1 - alpha) / (1 - 1e-3))
    assert float(NoiseSchedule.of_network("log_linear").sigma(t)) == pytest.approx(float(-alpha.log()), rel=1e-6)


@pytest.mark.parametrize("bad", [{"rounds": ()}, {"rounds": (4, 0)}, {"round_length": 0}, {"complementary": True}])
def test_impossible_rounds_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SDTT(**bad)
    with pytest.raises(ValueError, match="gamma"):
        DCD(gamma=(1.0, 0.0))
