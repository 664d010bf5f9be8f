"""Checking drafts, against a loop."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unmask.decoding.methods.draft import accept


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


def test_no_drafts_leave_one_token_of_the_base() -> None:
    assert accept(np.zeros(0, bool), np.array([1])) == (0, 1)
