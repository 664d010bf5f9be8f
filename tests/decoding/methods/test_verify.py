"""Checking drafts: greedy ones against a loop, sampled ones against the base's own distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.canvas import Array
from unmask.decoding.methods.draft import accept, accept_sampled

ALMOST_ONE = 1 - 2.0**-53  # the largest draw
LEAST = 2.0**-53  # the smallest


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_greedy_drafts_hold_while_they_are_the_best(drafts: list[int], tokens: list[int]) -> None:
    best = tokens[: len(drafts) + 1]
    count = 0
    while count < len(drafts) and drafts[count] == best[count]:
        count += 1
    assert accept(np.array(drafts, np.int64) == best[: len(drafts)], np.array(best)) == (count, best[count])


@given(
    st.lists(st.floats(0, 1), max_size=5),
    st.floats(0, 1),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
)
def test_tolerated_drafts_hold_while_their_odds_reach_the_threshold(
    odds: list[float], threshold: float, tokens: list[int]
) -> None:
    count = next((i for i, value in enumerate(odds) if value < threshold), len(odds))
    best = np.array(tokens[: len(odds) + 1])
    assert accept(np.array(odds) >= threshold, best) == (count, best[count])


@st.composite
def distributions(draw: st.DrawFn, rows: int, size: int = 5) -> Array:
    """Rows that sum to one; many weights are zero."""
    weights = st.lists(st.sampled_from([0.0, 0.0, 0.1, 1.0, 2.0, 7.0]), min_size=size, max_size=size).filter(any)
    drawn = np.array(draw(st.lists(weights, min_size=rows, max_size=rows)))
    return drawn / drawn.sum(-1, keepdims=True)


@settings(max_examples=15)
@given(distributions(1), distributions(2))
def test_the_first_token_has_the_bases_distribution(q: Array, p: Array) -> None:
    """Exactly, whatever q is: every draft, and both uniforms over a fine grid."""
    steps = 200
    grid, found = (np.arange(steps) + 0.5) / steps, np.zeros(5)
    for draft in q[0].nonzero()[0]:
        drafts = np.array([draft])
        share = np.mean([accept_sampled(drafts, q, p, np.array([u]), np.array([u, u]))[0] for u in grid])
        assert share == pytest.approx(min(1.0, p[0, draft] / q[0, draft]), abs=1 / steps)
        found[draft] += q[0, draft] * share
        if share < 1:  # what takes its place does not depend on the first uniform
            refused = [accept_sampled(drafts, q, p, np.array([ALMOST_ONE]), np.array([u, 0.5])) for u in grid]
            assert all(kept == 0 for kept, _ in refused)
            instead = np.bincount([token for _, token in refused], minlength=5) / steps
            found += q[0, draft] * (1 - share) * instead
    np.testing.assert_allclose(found, p[0], atol=5 / steps)


def chi_square_limit(freedom: int) -> float:
    """What 999 of 1000 true samples stay below (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_two_drafts_leave_the_joint_distribution_alone() -> None:
    """Drafts and base both depend on the token before; what was not drafted is sampled afterwards."""
    generator = np.random.default_rng(0)
    size, samples = 4, 15_000
    p1, p2 = generator.dirichlet([1.0] * size), generator.dirichlet([1.0] * size, size)
    q1, q2 = generator.dirichlet([0.5] * size), generator.dirichlet([0.5] * size, size)
    q2[0, p2[0].argmax()] = 0.0  # the likeliest token is never drafted there
    q2[0] /= q2[0].sum()
    last = np.full(size, 1 / size)
    counts, u = np.zeros((size, size)), generator.random((samples, 9))
    for draws in u:
        one = int(np.searchsorted(q1.cumsum(), draws[0]))
        two = int(np.searchsorted(q2[one].cumsum(), draws[1]))
        q, p = np.stack([q1, q2[one]]), np.stack([p1, p2[one], last])
        kept, sure = accept_sampled(np.array([one, two]), q, p, draws[2:4], draws[4:7])
        made = [*[one, two][:kept], sure]
        if len(made) == 1:
            made.append(int(np.searchsorted(p2[sure].cumsum(), draws[7])))
        counts[made[0], made[1]] += 1
    expected = samples * p1[:, None] * p2
    assert ((counts - expected) ** 2 / expected).sum() < chi_square_limit(size * size - 1)


@given(distributions(3), distributions(4), st.data())
def test_no_draw_gives_a_token_that_the_base_never_writes(q: Array, p: Array, data: st.DataObject) -> None:
    edges = st.lists(st.sampled_from([LEAST, 0.5, ALMOST_ONE]), min_size=4, max_size=4)
    accept, token = (np.array(data.draw(edges)) for _ in range(2))
    drafts = np.array([data.draw(st.sampled_from(row.nonzero()[0].tolist())) for row in q])
    kept, sure = accept_sampled(drafts, q, p, accept[:3], token)
    assert (p[np.arange(kept), drafts[:kept]] > 0).all()
    assert p[kept, sure] > 0
    # the draws of one request decide it alone
    assert accept_sampled(drafts, q, p, accept[:3], token) == (kept, sure)


@given(distributions(3), st.data())
def test_drafts_from_the_bases_own_distribution_all_hold(p: Array, data: st.DataObject) -> None:
    drafts = np.array([data.draw(st.sampled_from(row.nonzero()[0].tolist())) for row in p[:2]])
    u = np.full(3, ALMOST_ONE)
    assert accept_sampled(drafts, p[:2], p, u[:2], u) == (2, int(p[2].nonzero()[0][-1]))


def test_no_drafts_leave_one_token_of_the_base() -> None:
    p = np.array([[0.2, 0.5, 0.3]])
    none = np.zeros(0, np.int64)
    assert accept(none.astype(bool), np.array([1])) == (0, 1)
    for u, token in ((0.1, 0), (0.3, 1), (0.9, 2)):
        assert accept_sampled(none, np.zeros((0, 3)), p, none.astype(float), np.array([u])) == (0, token)
