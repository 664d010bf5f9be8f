"""Losses of score networks and of uniform noise against closed forms, chains of many steps and plain loops."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.decoding.methods.ancestral import posterior
from unmask.noise import NoiseSchedule, ScheduleName, on_grid
from unmask.objectives.masked import cart_weights
from unmask.objectives.score import score_entropy, uniform_prior, uniform_score

VOCAB, MASK = 5, 4
levels, seeds = st.floats(0.02, 4.0), st.integers(0, 2**31)


def table(seed: int, size: int = VOCAB) -> Tensor:
    """Log chances [V, V] of clean tokens for every token that may stand there."""
    return torch.from_numpy(np.log(np.random.default_rng(seed).dirichlet(np.full(size, 0.7), size)))


def everywhere(sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of what stands there and what should, [V, V] each, at one noise level."""
    x, x0 = torch.meshgrid(torch.arange(VOCAB), torch.arange(VOCAB), indexing="ij")
    return x, x0, torch.full(x.shape, sigma, dtype=torch.float64)


@given(seeds, levels)
def test_uniform_score_entropy_is_bregmans_divergence(seed: int, sigma: float) -> None:
    """Sum over y of s - r log s + r (log r - 1), by the ratios themselves; 0 where the score is right."""
    x, x0, level = everywhere(sigma)
    kept = math.exp(-sigma)
    chance = kept * torch.eye(VOCAB, dtype=torch.float64) + (1 - kept) / VOCAB
    ratio = chance[x0] / chance[x0].gather(-1, x[..., None])  # [x, x0, y]
    score = uniform_score(table(seed)[x], x, level).exp()
    terms = (score - ratio * score.log() + ratio * (ratio.log() - 1)) / VOCAB
    expected = terms.sum(-1) - terms.gather(-1, x[..., None]).squeeze(-1)
    torch.testing.assert_close(score_entropy(score.log(), x, x0, level, None), expected, rtol=1e-9, atol=1e-9)
    zero = score_entropy(ratio.log(), x, x0, level, None)
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-6 * float(ratio.max()))


@given(seeds, levels)
def test_absorbing_score_entropy_is_masked_cross_entropy(seed: int, sigma: float) -> None:
    """Of the score that a distribution of clean tokens implies: MDLM's weight times -log p(x0)."""
    log_p = table(seed, VOCAB - 1)[0]
    log_score = torch.cat([log_p - math.log(math.expm1(sigma)), torch.zeros(1, dtype=torch.float64)])
    x0, level = torch.arange(VOCAB - 1), torch.full((VOCAB - 1,), sigma, dtype=torch.float64)
    masked = torch.full_like(x0, MASK)
    ours = score_entropy(log_score.expand(VOCAB - 1, -1), masked, x0, level, MASK)
    torch.testing.assert_close(ours, -log_p / math.expm1(sigma), rtol=1e-6, atol=1e-9)
    assert (score_entropy(log_score.expand(VOCAB - 1, -1), x0, x0, level, MASK) == 0).all()


@pytest.mark.parametrize("schedule", ["log_linear", "cosine"])
def test_the_uniform_bound_is_that_of_a_chain_of_many_steps(schedule: str) -> None:
    """One token, a network that is a table: the sum of KL divergences of a chain's posteriors, by plain Bayes over
    all tokens, comes to the integral."""
    noise, log_p, x0, steps = NoiseSchedule.of_network(schedule), table(1), 2, 400  # type: ignore[arg-type]
    p, known, everything = log_p.exp().numpy(), np.eye(VOCAB)[np.full(VOCAB, x0)], np.arange(VOCAB)
    times = np.linspace(1e-3, 1, steps + 1)
    chain = 0.0
    for s, t in pairwise(times):
        a_s, a_t = noise.alpha(s), noise.alpha(t)
        q, ours = posterior(known, everything, a_s, a_t, None), posterior(p, everything, a_s, a_t, None)
        there = a_t * np.eye(VOCAB)[x0] + (1 - a_t) / VOCAB
        chain += float(there @ (q * np.log(q / ours)).sum(-1))
    middle = (times[1:] + times[:-1]) / 2
    x, target = torch.arange(VOCAB), torch.full((VOCAB,), x0)
    integral = 0.0
    for t in middle:
        level = torch.full((VOCAB,), float(noise.sigma(t)), dtype=torch.float64)
        loss = score_entropy(uniform_score(log_p, x, level), x, target, level, None).numpy()
        there = noise.alpha(t) * np.eye(VOCAB)[x0] + (1 - noise.alpha(t)) / VOCAB
        integral += float(there @ loss) * noise.rate(t) / steps * (1 - 1e-3)
    assert chain == pytest.approx(integral, rel=1e-3)


def test_the_prior_of_uniform_noise() -> None:
    kept = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    q = kept[:, None] * torch.eye(VOCAB, dtype=torch.float64)[0] + (1 - kept[:, None]) / VOCAB
    expected = torch.xlogy(q, q * VOCAB).sum(-1)
    torch.testing.assert_close(uniform_prior(kept, VOCAB), expected)


SCHEDULES: list[ScheduleName] = [
    "linear", "cosine", "cosine_mdlm", "square", "square_root", "logarithmic", "log_uniform", "geometric",
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_follow_from_the_schedule(schedule: ScheduleName) -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    slope = (NoiseSchedule(schedule).alpha(t + 1e-6) - NoiseSchedule(schedule).alpha(t - 1e-6)) / 2e-6
    torch.testing.assert_close(
        NoiseSchedule(schedule).weight(t), -slope / (1 - NoiseSchedule(schedule).alpha(t)), rtol=1e-5, atol=1e-5
    )
    fine = on_grid(t, 10**6).double()
    torch.testing.assert_close(
        NoiseSchedule(schedule).chain_weight(fine, 10**6).double(),
        NoiseSchedule(schedule).weight(fine),
        rtol=1e-3,
        atol=1e-3,
    )


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 50))
def test_times_on_a_grid(t: float, steps: int) -> None:
    number = float(on_grid(torch.tensor(t, dtype=torch.float64), steps)) * steps
    assert number == pytest.approx(round(number))
    assert 1 <= round(number) <= steps


@given(seeds, st.integers(1, 9))
def test_cart_counts_what_is_near(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    masked, document = rng.random((1, length)) < 0.5, np.sort(rng.integers(0, 2, (1, length)))
    expected = np.zeros((1, length))
    for i in range(length):
        for j in range(length):
            if masked[0, i] and not masked[0, j] and document[0, i] == document[0, j]:
                expected[0, i] += 0.5 * 0.3 * 0.7 ** (abs(i - j) - 1)
    ours = cart_weights(torch.from_numpy(masked), torch.from_numpy(document))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5)
