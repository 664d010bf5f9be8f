from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.decoding.budget import ScheduleName, plan, share, step_budget

NAMES: tuple[ScheduleName, ...] = ("even", "linear", "cosine", "timesteps")


@pytest.mark.parametrize("steps", [*range(1, 70), 128, 512])
def test_shares_are_dreams_to_the_bit(steps: int) -> None:
    """Dream asks torch for its times; a share off by one bit can round to another number of tokens."""
    times = torch.linspace(1, 1e-3, steps + 1)
    theirs = [float(1 - times[i + 1] / times[i]) for i in range(steps - 1)] + [1.0]
    assert [share("timesteps", i, steps) for i in range(steps)] == theirs


@pytest.mark.parametrize("name", NAMES)
@given(masks=st.integers(0, 300), steps=st.integers(1, 80), eps=st.floats(1e-6, 0.9))
def test_a_plan_ends_with_no_mask(name: ScheduleName, masks: int, steps: int, eps: float) -> None:
    counts = plan(name, masks, steps, eps)
    assert len(counts) == steps
    assert sum(counts) == masks
    assert min(counts) >= 0
    assert step_budget(name, masks, steps - 1, steps, eps) == masks
    assert all(0 <= share(name, i, steps, eps) <= 1 for i in range(steps))


@given(masks=st.integers(0, 300), steps=st.integers(1, 80))
def test_even_steps_differ_by_one_and_carry_the_remainder_first(masks: int, steps: int) -> None:
    base, rest = divmod(masks, steps)
    assert plan("even", masks, steps) == [base + 1] * rest + [base] * (steps - rest)
