"""Transitions of the stochastic samplers: closed forms and plain Bayes over all tokens.

Recorded steps of the references are checked in tests/models/test_families.py.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.checks.ancestral import race
from unmask.canvas import Array
from unmask.decoding.methods.ancestral import (
    SamplerOptions,
    SeededDraws,
    analytic,
    corrupted,
    denoised,
    euler,
    first_hitting,
    inverse,
    nucleus,
    plan,
    posterior,
    psi_posterior,
    reached,
    score_of,
    staggered,
)
from unmask.noise import NoiseSchedule

VOCAB, MASK = 6, 5
LEVELS = st.tuples(st.floats(0.01, 0.95), st.floats(0.01, 0.95)).map(sorted).filter(lambda a: a[1] - a[0] > 1e-3)
seeds = st.integers(0, 2**31)


def close(ours: Array, theirs: Array, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=atol)


def distributions(seed: int, count: int, mask_id: int | None) -> Array:
    p = np.random.default_rng(seed).dirichlet(np.full(VOCAB, 0.7), count)
    if mask_id is not None:
        p[:, mask_id] = 0
    return p / p.sum(-1, keepdims=True)


def kernel(kept: float, mask_id: int | None) -> Array:
    """Chances [V, V] from a token (row) to a token (column) under noise that keeps with chance `kept`."""
    if mask_id is None:
        return kept * np.eye(VOCAB) + (1 - kept) / VOCAB
    out = kept * np.eye(VOCAB)
    out[:, mask_id] += 1 - kept
    return out


def by_bayes(x0_V: Array, x: int, alpha_s: float, alpha_t: float, mask_id: int | None) -> Array:
    """q(x_s | x_t = x) from the joint of x_s and x_t, written out."""
    joint = (x0_V @ kernel(alpha_s, mask_id)) * kernel(alpha_t / alpha_s, mask_id)[:, x]
    return joint / joint.sum()


# closed forms


@settings(max_examples=40, deadline=None)
@given(seeds, LEVELS, st.sampled_from([None, MASK]))
def test_posterior_is_bayes(seed: int, levels: list[float], mask_id: int | None) -> None:
    alpha_t, alpha_s = levels
    x0, x = distributions(seed, VOCAB, mask_id), np.arange(VOCAB)
    ours = posterior(x0, x, alpha_s, alpha_t, mask_id)
    close(ours.sum(-1), np.ones(VOCAB), 1e-12)
    for token in x:
        # a token that absorbing noise left is the clean one, whatever the network says
        clean = np.eye(VOCAB)[token] if mask_id is not None and token != mask_id else x0[token]
        close(ours[token], by_bayes(clean, token, alpha_s, alpha_t, mask_id), 1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, LEVELS, st.floats(0.1, 0.9), st.sampled_from([None, MASK]))
def test_two_steps_are_one(seed: int, levels: list[float], share: float, mask_id: int | None) -> None:
    """q(x_r | x_t) is the mean of q(x_r | x_s) over q(x_s | x_t), for a clean token that is known."""
    alpha_t, alpha_r = levels
    alpha_s = alpha_t + share * (alpha_r - alpha_t)
    clean, x = seed % (VOCAB - 1), np.arange(VOCAB)
    x0 = np.tile(np.eye(VOCAB)[clean], (VOCAB, 1))
    first, second = posterior(x0, x, alpha_s, alpha_t, mask_id), posterior(x0, x, alpha_r, alpha_s, mask_id)
    reachable = x if mask_id is None else np.array([clean, mask_id])
    close((first @ second)[reachable], posterior(x0, x, alpha_r, alpha_t, mask_id)[reachable], 1e-12)


@pytest.mark.parametrize("mask_id", [None, MASK])
def test_limits_of_the_posterior(mask_id: int | None) -> None:
    x0, x = distributions(1, VOCAB, mask_id), np.arange(VOCAB)
    close(posterior(x0, x, 0.3, 0.3, mask_id), np.eye(VOCAB), 1e-12)  # no time passes
    end = posterior(x0, x, 1.0, 0.0, mask_id)  # from pure noise to clean tokens
    rows = x if mask_id is None else np.array([mask_id])
    close(end[rows], x0[rows], 1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, LEVELS, st.floats(0, 1))
def test_psi_lies_between_a_step_and_a_fresh_start(seed: int, levels: list[float], kappa: float) -> None:
    alpha_t, alpha_s = levels
    x0, x = distributions(seed, VOCAB, None), np.arange(VOCAB)
    ours = psi_posterior(x0, x, alpha_s, alpha_t, kappa)
    step, clean = posterior(x0, x, alpha_s, alpha_t, None), posterior(x0, x, 1.0, alpha_t, None)
    close(ours.sum(-1), np.ones(VOCAB), 1e-12)
    close(ours, kappa * step + (1 - kappa) * clean @ kernel(alpha_s, None), 1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, LEVELS, st.sampled_from([None, MASK]))
def test_exact_scores_give_bayes(seed: int, levels: list[float], mask_id: int | None) -> None:
    """The ratios of the true marginal give the true step: rows sum to one, and all noise taken off gives x0."""
    alpha_t, alpha_s = levels
    x0 = distributions(seed, 1, mask_id)[0]
    sigma_t, sigma_s = -np.log(alpha_t), -np.log(alpha_s)
    marginal, earlier = x0 @ kernel(alpha_t, mask_id), x0 @ kernel(alpha_s, mask_id)
    x = np.arange(VOCAB)[marginal > 0]
    score = marginal / marginal[x][:, None]
    close(staggered(score, sigma_t - sigma_s, mask_id), earlier / marginal[x][:, None], 1e-9)
    close(reached(x, sigma_t - sigma_s, VOCAB, mask_id), kernel(alpha_t / alpha_s, mask_id)[:, x].T, 1e-12)
    step = analytic(score, x, sigma_t - sigma_s, mask_id)
    close(step.sum(-1), np.ones(len(x)), 1e-9)
    for row, token in zip(step, x, strict=True):
        close(row, by_bayes(x0, token, alpha_s, alpha_t, mask_id), 1e-9)
        close(denoised(score, x, sigma_t, mask_id)[x == token][0], by_bayes(x0, token, 1.0, alpha_t, mask_id), 1e-9)
    small = 1e-5  # where one step to first order is as good
    close(euler(score, x, small, mask_id), analytic(score, x, small, mask_id), 1e-6)


@settings(max_examples=40, deadline=None)
@given(seeds, LEVELS)
def test_steps_by_probabilities_and_by_scores_agree(seed: int, levels: list[float]) -> None:
    """MDLM's two samplers are one, up to the schedule they take chances from."""
    alpha_t, alpha_s = levels
    x0, x = distributions(seed, VOCAB, MASK), np.arange(VOCAB)
    score = score_of(x0, x, -np.log(alpha_t), MASK)
    close(analytic(score, x, np.log(alpha_s / alpha_t), MASK), posterior(x0, x, alpha_s, alpha_t, MASK), 1e-9)


def test_corruption_composes() -> None:
    x0 = distributions(3, 4, None)
    close(corrupted(corrupted(x0, 0.8), 0.5), corrupted(x0, 0.4), 1e-12)
    close(corrupted(x0, 0.0), np.full_like(x0, 1 / VOCAB), 1e-12)


@pytest.mark.parametrize("schedule", ["log_linear", "linear", "geometric", "cosine"])
def test_schedules(schedule: str) -> None:
    noise, t = NoiseSchedule.of_network(schedule), np.linspace(0.05, 0.95, 19)  # type: ignore[arg-type]
    close(noise.alpha(t), np.exp(-noise.sigma(t)), 1e-12)
    close(noise.rate(t), (noise.sigma(t + 1e-6) - noise.sigma(t - 1e-6)) / 2e-6, 1e-4)
    assert (np.diff(noise.sigma(t)) > 0).all()


def test_the_linear_schedule_is_told_to_the_network_up_to_where_the_other_ends() -> None:
    linear = NoiseSchedule.of_network("linear")
    assert linear.sigma(1.0) == pytest.approx(NoiseSchedule.of_network("log_linear").sigma(1.0))
    assert linear.alpha(1.0) == 0


# plans


def test_a_full_canvas_goes_down_to_eps() -> None:
    moves = plan(SamplerOptions(steps=4, eps=1e-2), blocks=False)
    assert [m.removal for m in moves] == ["none"] * 4 + ["greedy"]
    close(np.array([m.t for m in moves]), np.linspace(1, 1e-2, 5), 1e-12)
    assert all(a.s == b.t for a, b in pairwise(moves))
    assert len(plan(SamplerOptions(steps=4, noise_removal="none"), blocks=False)) == 4


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 100])
def test_a_blocks_last_move_writes_what_is_left(steps: int) -> None:
    moves = plan(SamplerOptions(steps=steps), blocks=True)
    assert len(moves) == steps
    assert moves[0].t == 1
    assert all(0 <= m.s < m.t for m in moves[:-1])
    assert moves[-1].s == 0


def test_the_dtype_of_times_is_that_of_chances() -> None:
    for dtype in ("float32", "float64"):
        for blocks in (False, True):
            move = plan(SamplerOptions(steps=3, dtype=dtype), blocks)[0]  # type: ignore[arg-type]
            for schedule in ("log_linear", "linear", "geometric", "cosine"):
                noise = NoiseSchedule.of_network(schedule)  # type: ignore[arg-type]
                assert noise.alpha(move.s).dtype == noise.sigma(move.s).dtype == dtype


def test_first_hitting_times_are_order_statistics() -> None:
    """The latest of n uniform times below t is under x with chance (x / t)^n."""
    u = (np.arange(2000) + 0.5) / 2000
    for masks in (1, 3):
        times = first_hitting(0.8, u, masks)
        for x in (0.2, 0.5, 0.7):
            assert (times < x).mean() == pytest.approx((x / 0.8) ** masks, abs=1e-3)


# choosing


def test_the_nucleus_drops_the_token_that_crosses_it() -> None:
    p = np.array([[0.1, 0.5, 0.15, 0.25]])
    close(nucleus(p, 0.8), np.array([[0, 0.5, 0, 0.25]]) / 0.75, 1e-12)  # 0.5, 0.75, then 0.9
    close(nucleus(p, 0.3), np.array([[0, 1.0, 0, 0]]), 1e-12)  # the best one stays
    close(nucleus(p, 0.95), np.array([[0, 0.5, 0.15, 0.25]]) / 0.9, 1e-12)
    assert nucleus(p, 1.0) is p


def test_races_and_inverses_draw_in_proportion() -> None:
    weights = np.array([0.5, 0.0, 3.0, 1.5])
    rng, count = np.random.default_rng(0), 40_000
    many = np.tile(weights, (count, 1))
    for drawn in (race(many, rng.random(many.shape)), inverse(many, rng.random(count))):
        share = np.bincount(drawn, minlength=4) / count
        assert np.abs(share - weights / weights.sum()).max() < 4 * np.sqrt(0.25 / count)
        assert share[1] == 0


def test_inverse_never_takes_what_has_no_chance() -> None:
    weights = np.array([[0.0, 1e-300, -1.0, 2.0, 0.0]])
    ends = np.array([2.0**-53, 1 - 2.0**-53])
    assert inverse(np.repeat(weights, 2, 0), ends).tolist() == [3, 3]
    assert inverse(weights, np.array([1e-320])).tolist() == [1]


def test_seeded_draws_are_addressed() -> None:
    weights, place = np.ones((4, 50)), np.array([3, 1, 4, 15])
    draws = SeededDraws(7)
    some = draws.tokens(weights, 2, place)
    assert (draws.tokens(weights[1:3], 2, place[1:3]) == some[1:3]).all()  # wherever a position stands
    assert (SeededDraws(8).tokens(weights, 2, place) != some).any()
    assert (draws.tokens(weights, 3, place) != some).any()
    leaving = draws.leaving(0.3, 1, np.arange(5000))
    assert leaving is not None
    assert abs(leaving.mean() - 0.3) < 0.03
    assert 0 < draws.hit(1) < 1
    assert {draws.pick(update, 3) for update in range(50)} == {0, 1, 2}
