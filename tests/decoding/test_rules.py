from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unmask.decoding.rules import RULE_NAMES, RULES, RuleName, RuleOptions, best_first, due, remask
from unmask.decoding.sampling import Scores

Array = NDArray[Any]


def grid(confidence: list[list[float]]) -> Scores:
    """Scores with given confidences; margins are their squares and entropies fall with them."""
    c = np.array(confidence, np.float64)
    return Scores(np.zeros(c.shape, np.int64), c, -np.log(c), c**2, 1 - c)


ONE_STEP_OF_MANY = np.array([1000])  # nothing but the least is due


@st.composite
def situations(draw: st.DrawFn) -> tuple[Scores, Array, Array]:
    """Scores, masks and steps left of a few requests; confidences often tie."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    level = st.sampled_from([0.01, 0.2, 0.5, 0.9, 0.95, 1.0]) | st.floats(1e-6, 1.0)
    confidence = draw(st.lists(st.lists(level, min_size=length, max_size=length), min_size=rows, max_size=rows))
    masked = np.array(
        draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows))
    )
    steps_left = np.array(draw(st.lists(st.integers(1, 12), min_size=rows, max_size=rows)))
    flat = grid(confidence)
    laid = Scores(*(values[masked] for values in vars(flat).values())).grid(*masked.nonzero(), masked.shape)
    return laid, masked, steps_left


parameter_sets = st.builds(
    RuleOptions,
    threshold=st.floats(0, 1.1),
    factor=st.floats(0, 8),
    entropy_bound=st.floats(0, 8),
)


@pytest.mark.parametrize("name", RULE_NAMES)
@given(situations(), parameter_sets)
def test_rules_write_masks_only_and_meet_their_budget(
    name: RuleName, situation: tuple[Scores, Array, Array], parameters: RuleOptions
) -> None:
    scores, masked, steps_left = situation
    chosen = RULES[name](scores, masked, steps_left, parameters)
    assert chosen.dtype == np.bool_
    assert not (chosen & ~masked).any()
    if name != "random":
        assert (chosen.sum(1) >= due(masked, steps_left)).all()
        assert (chosen.any(1) == masked.any(1)).all()  # every step makes progress
    last = RULES[name](scores, masked, np.ones_like(steps_left), parameters)
    assert (last == masked).all()
    # a request's commits do not depend on the others
    for row in range(len(masked)):
        alone = RULES[name](scores.rows(np.array([row])), masked[row : row + 1], steps_left[row : row + 1], parameters)
        assert (alone[0] == chosen[row]).all()


@given(situations())
def test_rules_prefer_the_surest(situation: tuple[Scores, Array, Array]) -> None:
    scores, masked, steps_left = situation
    for name in ("quota", "threshold", "factor", "margin", "entropy_bound"):
        chosen = RULES[name](scores, masked, steps_left, RuleOptions(name))
        kept = np.where(chosen, scores.confidence, 2)
        left = np.where(masked & ~chosen, scores.confidence, -1)
        assert (kept.min(1) >= left.max(1)).all(), name


def scan(confidence: list[float], factor: float) -> int:
    """Fast-dLLM's get_transfer_index_dynamic: how many of the sorted confidences it commits."""
    thresholds = [-1.0] + [1 - factor / (n + 1) for n in range(2, len(confidence) + 1)]
    stop = 0
    for stop, (c, least) in enumerate(zip(confidence, thresholds, strict=True)):  # noqa: B007
        if c < least:
            break
    return stop + 1 if stop in (0, len(thresholds) - 1) else stop


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.floats(0, 4), st.integers(0, 3))
def test_factor_counts_as_the_reference_scans(confidence: list[float], factor: float, committed: int) -> None:
    """Its last rank in particular, where it keeps one more than passes."""
    masked = np.array([[True] * len(confidence) + [False] * committed])
    scores = grid([confidence + [0.99] * committed])
    chosen = RULES["factor"](scores, masked, ONE_STEP_OF_MANY, RuleOptions("factor", factor=factor))
    assert chosen.sum().item() == scan(sorted(confidence, reverse=True), factor)


def test_ties_go_to_the_leftmost() -> None:
    masked = np.array([[False, True, True, True]])
    chosen = best_first(np.full((1, 4), 0.5), masked, np.array([2]))
    assert chosen.tolist() == [[False, True, True, False]]


def test_threshold_keeps_what_equals_it() -> None:
    masked = np.ones((1, 3), bool)
    chosen = RULES["threshold"](grid([[0.9, 0.5, 0.95]]), masked, ONE_STEP_OF_MANY, RuleOptions(threshold=0.9))
    assert chosen.tolist() == [[True, False, True]]


def test_sequential_writes_from_left_to_right() -> None:
    masked = np.array([[False, True, False, True, True]])
    scores = grid([[0.5, 0.1, 0.5, 0.2, 0.9]])
    chosen = RULES["sequential"](scores, masked, np.array([2]), RuleOptions("sequential"))
    assert chosen.tolist() == [[False, True, False, True, False]]


def test_random_commits_each_mask_with_the_chance_of_ancestral_sampling() -> None:
    masked = np.ones((1, 20_000), bool)
    uniform = np.random.default_rng(0).random((1, 20_000))
    blank = np.zeros_like(uniform)
    scores = Scores(blank.astype(np.int64), blank, blank, blank, uniform)
    share = RULES["random"](scores, masked, np.array([4]), RuleOptions("random")).mean()
    assert share.item() == pytest.approx(0.25, abs=0.012)


def test_remask_takes_back_the_least_sure() -> None:
    confidence = np.array([[0.9, 0.2, 0.5, 0.1], [0.3, 0.4, 0.5, 0.6]])
    eligible = np.array([[True, True, True, False], [True, True, False, False]])
    assert remask(confidence, eligible, np.array([2, 0])).tolist() == [
        [False, True, True, False],
        [False, False, False, False],
    ]
