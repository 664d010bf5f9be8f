from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.noise import NoiseSchedule, ScheduleName, clip_times
from unmask.objectives.draws import Draws

SCHEDULES: tuple[ScheduleName, ...] = ("linear", "cosine")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_falls_from_one_to_zero(schedule: ScheduleName) -> None:
    kept = NoiseSchedule(schedule).alpha(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert kept[0].item() == pytest.approx(1, abs=1e-12)
    assert kept[-1].item() == pytest.approx(0, abs=1e-12)
    assert (kept.diff() < 0).all()


@given(st.floats(1e-3, 1.0))
def test_schedules_have_their_closed_forms(t: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    assert NoiseSchedule("linear").alpha(time).item() == pytest.approx(1 - t, abs=1e-12)
    assert NoiseSchedule("cosine").alpha(time).item() == pytest.approx(1 - math.cos(math.pi / 2 * (1 - t)), abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nelbo_weight_is_the_hazard_of_the_schedule(schedule: ScheduleName) -> None:
    t = torch.linspace(0.001, 1, 200, dtype=torch.float64, requires_grad=True)
    kept = NoiseSchedule(schedule).alpha(t)
    (slope,) = torch.autograd.grad(kept.sum(), t)
    torch.testing.assert_close(NoiseSchedule(schedule).weight(t), -slope / (1 - kept), rtol=1e-9, atol=1e-9)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_clipped_times_are_affine_and_inside(t: float, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    clipped = clip_times(torch.tensor([0.0, t, 1.0], dtype=torch.float64), low, high)
    expected = torch.tensor([low, low + t * (high - low), high], dtype=torch.float64)
    torch.testing.assert_close(clipped, expected)


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6))
def test_every_stratum_is_drawn_from_once(seed: int, step: int, rows: int, per_row: int) -> None:
    times = Draws(seed, step, rows, 0, rows).strata(per_row)
    assert times.shape == (rows, per_row)
    cells = (times.double() * rows * per_row).floor().long().flatten()
    assert sorted(cells.tolist()) == list(range(rows * per_row))


def test_strata_are_permuted() -> None:
    """A row must not always get the same noise level: over steps each row sees all of [0, 1)."""
    times = torch.stack([Draws(0, step, 8, 0, 8).strata(1).squeeze(1) for step in range(400)])
    torch.testing.assert_close(times.mean(0), torch.full((8,), 0.5), atol=0.06, rtol=0)
    assert not torch.equal(times[0].argsort(), torch.arange(8))


@given(st.integers(0, 2**31), st.integers(0, 1000), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_any_number_of_ranks_sees_the_same_noise(seed: int, step: int, ranks: int, per_row: int) -> None:
    whole, share = Draws(seed, step, 8, 0, 8), 8 // ranks
    parts = [Draws(seed, step, 8, rank * share, share) for rank in range(ranks)]
    assert torch.equal(torch.cat([p.strata(per_row) for p in parts]), whole.strata(per_row))
    assert torch.equal(torch.cat([p.uniforms(5) for p in parts]), whole.uniforms(5))
    assert torch.equal(torch.cat([p.tokens(5, 13) for p in parts]), whole.tokens(5, 13))


def test_draws_repeat_and_differ_by_seed_step_and_purpose() -> None:
    def draw(seed: int, step: int) -> torch.Tensor:
        return Draws(seed, step, 4, 0, 4).uniforms(64)

    assert torch.equal(draw(1, 2), draw(1, 2))
    rows = torch.stack([draw(s, t).flatten() for s in range(4) for t in range(4)])
    rows = torch.cat([rows, Draws(0, 0, 4, 0, 4).strata(64).view(1, -1)])  # another purpose of the same step
    correlation = torch.corrcoef(rows).fill_diagonal_(0).abs()
    assert correlation.max().item() < 0.3  # independent rows of 256: standard deviation 0.06


def test_draws_have_their_ranges() -> None:
    draws = Draws(3, 4, 64, 0, 64)
    assert 0 <= draws.uniforms(64).min() <= draws.uniforms(64).max() < 1
    assert draws.tokens(64, 13).unique().tolist() == list(range(13))
