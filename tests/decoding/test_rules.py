from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unmask.decoding.budget import StepBudget
from unmask.decoding.convention import Convention
from unmask.decoding.rules import RULES, RuleName, RuleOptions, best_first, remask
from unmask.decoding.sampling import Scores

Array = NDArray[Any]


def grid(confidence: list[list[float]]) -> Scores:
    """Scores with given confidences; margins are their squares and entropies fall with them."""
    c = np.array(confidence, np.float64)
    return Scores(np.zeros(c.shape, np.int64), c, -np.log(c), c**2, 1 - 0.999 * c)


def owed(*counts: int) -> StepBudget:
    """So many tokens due of each request; the share is for `random` alone."""
    return StepBudget(np.array(counts), np.full(len(counts), 0.25))


LITTLE = owed(1)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Scores, Array, StepBudget]:
    """Scores, masks and what is due of a few requests; confidences often tie."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    level = st.sampled_from([0.01, 0.2, 0.5, 0.9, 0.95, 1.0]) | st.floats(1e-6, 1.0)
    confidence = draw(st.lists(st.lists(level, min_size=length, max_size=length), min_size=rows, max_size=rows))
    masked = np.array(
        draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows))
    )
    counts = np.array(draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows)))
    flat = grid(confidence)
    laid = Scores(*(values[masked] for values in vars(flat).values())).grid(*masked.nonzero(), masked.shape)
    due = StepBudget(np.minimum(counts, masked.sum(1)), np.full(rows, draw(st.floats(0, 1))))
    return laid, masked, due


conventions = st.builds(Convention, strict=st.booleans(), due_is=st.sampled_from(["least", "most"]))
parameter_sets = st.builds(
    RuleOptions,
    convention=conventions,
    threshold=st.floats(0, 1.1),
    factor=st.floats(0, 8),
    entropy_bound=st.floats(0, 8),
    choice_temperature=st.sampled_from([0.0, 0.5]),
)


@pytest.mark.parametrize("name", RULES)
@given(situations(), parameter_sets)
def test_rules_write_masks_only_and_what_is_due(
    name: RuleName, situation: tuple[Scores, Array, StepBudget], parameters: RuleOptions
) -> None:
    scores, masked, due = situation
    chosen = RULES[name](scores, masked, due, parameters)
    counts = chosen.sum(1)
    assert chosen.dtype == np.bool_
    assert not (chosen & ~masked).any()
    if RULES[name].ranks:
        assert (counts == due.count).all()
    elif name != "random":
        assert (chosen.any(1) == masked.any(1)).all()  # every step makes progress
        least = parameters.convention.due_is == "least"
        assert (counts >= due.count if least else counts <= np.maximum(due.count, 1)).all()
    if name == "random" or parameters.convention.due_is == "least":
        everything = StepBudget(masked.sum(1), np.ones(len(masked)))
        assert (RULES[name](scores, masked, everything, parameters) == masked).all()
    # a request's commits do not depend on the others
    for row in range(len(masked)):
        one = np.array([row])
        alone = RULES[name](scores.rows(one), masked[one], StepBudget(due.count[one], due.share[one]), parameters)
        assert (alone[0] == chosen[row]).all()


@given(situations())
def test_rules_prefer_the_surest(situation: tuple[Scores, Array, StepBudget]) -> None:
    scores, masked, due = situation
    for name in ("quota", "threshold", "factor", "margin", "entropy_bound", "entropy"):
        chosen = RULES[name](scores, masked, due, RuleOptions(name))
        kept = np.where(chosen, scores.confidence, 2)
        left = np.where(masked & ~chosen, scores.confidence, -1)
        assert (kept.min(1) >= left.max(1)).all(), name


@given(situations(), st.floats(0, 1))
def test_what_is_due_at_most_bounds_what_is_sure(situation: tuple[Scores, Array, StepBudget], level: float) -> None:
    """Fast-dLLM's confidence_threshold: of the best that are due, those that reach the threshold, and the best."""
    scores, masked, due = situation
    options = RuleOptions("threshold", Convention(due_is="most"), threshold=level)
    best = best_first(scores.confidence, masked, np.ones(len(masked), int))
    sure = best_first(scores.confidence, masked, due.count) & (scores.confidence >= level)
    assert (RULES["threshold"](scores, masked, due, options) == (best | sure)).all()


def test_choice_temperature_draws_without_replacement_in_proportion() -> None:
    """Dream's alg_temp: the first of a draw by softmax(confidence / temperature); cold, the best."""
    n, temperature = 40_000, 0.5
    c = np.tile([0.9, 0.5, 0.2], (n, 1))
    uniform = np.random.default_rng(5).random(c.shape)
    scores, masked = Scores(np.zeros(c.shape, np.int64), c, -np.log(c), c, uniform), np.ones(c.shape, bool)
    options = RuleOptions("quota", choice_temperature=temperature)
    found = RULES["quota"](scores, masked, owed(*[1] * n), options).mean(0)
    p = np.exp(c[0] / temperature)
    np.testing.assert_allclose(found, p / p.sum(), atol=0.01)
    two = RULES["quota"](scores, masked, owed(*[2] * n), options)
    left = (p / p.sum())[:, None] * p / (p.sum() - p)[:, None]  # first i, then j
    expected = [left[1, 2] + left[2, 1], left[0, 2] + left[2, 0], left[0, 1] + left[1, 0]]
    np.testing.assert_allclose((~two).mean(0), expected, atol=0.01)
    cold = RuleOptions("quota", choice_temperature=1e-4)
    assert RULES["quota"](scores, masked, owed(*[1] * n), cold)[:, 0].all()


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
    chosen = RULES["factor"](scores, masked, LITTLE, RuleOptions("factor", factor=factor))
    assert chosen.sum().item() == scan(sorted(confidence, reverse=True), factor)


def test_ties_go_to_the_leftmost() -> None:
    masked = np.array([[False, True, True, True]])
    chosen = best_first(np.full((1, 4), 0.5), masked, np.array([2]))
    assert chosen.tolist() == [[False, True, True, False]]


def test_what_is_no_number_is_kept_last_but_kept() -> None:
    """A diverged network ends its text like any other."""
    masked = np.array([[False, True, True, True, False]])
    score = np.array([[9.0, np.nan, 0.5, -np.inf, 9.0]])
    assert best_first(score, masked, np.array([1]))[0].nonzero()[0].tolist() == [2]
    assert best_first(score, masked, np.array([3]))[0].nonzero()[0].tolist() == [1, 2, 3]
    nothing = grid([[np.nan] * 5])
    for name in RULES:
        everything = StepBudget(np.array([3]), np.ones(1))
        assert (RULES[name](nothing, masked, everything, RuleOptions(name)) == masked).all() or name == "random"


def test_threshold_keeps_what_equals_it() -> None:
    masked, scores = np.ones((1, 3), bool), grid([[0.9, 0.5, 0.95]])
    assert RULES["threshold"](scores, masked, LITTLE, RuleOptions(threshold=0.9)).tolist() == [[True, False, True]]
    strict = RuleOptions(threshold=0.9, convention=Convention(strict=True))
    assert RULES["threshold"](scores, masked, LITTLE, strict).tolist() == [[False, False, True]]


def test_sequential_writes_from_left_to_right() -> None:
    masked = np.array([[False, True, False, True, True]])
    scores = grid([[0.5, 0.1, 0.5, 0.2, 0.9]])
    chosen = RULES["sequential"](scores, masked, owed(2), RuleOptions("sequential"))
    assert chosen.tolist() == [[False, True, False, True, False]]


def test_random_commits_each_mask_with_the_chance_of_ancestral_sampling() -> None:
    masked = np.ones((1, 20_000), bool)
    uniform = np.random.default_rng(0).random((1, 20_000))
    blank = np.zeros_like(uniform)
    scores = Scores(blank.astype(np.int64), blank, blank, blank, uniform)
    share = RULES["random"](scores, masked, owed(0), RuleOptions("random")).mean()
    assert share.item() == pytest.approx(0.25, abs=0.012)


def test_remask_takes_back_the_least_sure() -> None:
    confidence = np.array([[0.9, 0.2, 0.5, 0.1], [0.3, 0.4, 0.5, 0.6]])
    eligible = np.array([[True, True, True, False], [True, True, False, False]])
    assert remask(confidence, eligible, np.array([2, 0])).tolist() == [
        [False, True, True, False],
        [False, False, False, False],
    ]
