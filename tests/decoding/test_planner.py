"""The planner against trying all choices, and what it learns against closed forms."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.decoding.methods.behind_text import SelfChecking
from unmask.decoding.planner import BELIEF, LATER, MARGIN, SHARE, TRIED, Costs, Odds, Planner, block_length, spend


@dataclass
class Asker:
    """What the planner sees of a request."""

    chances: list[float]
    slots: list[tuple[float, int]] = field(default_factory=list)
    unread: int = 1
    sizes: list[int] = field(default_factory=list)
    least: float = 0.0

    @property
    def drafts(self) -> list[int]:
        return list(range(len(self.chances) - 1))

    def leave(self, count: int) -> None:
        self.chances = self.chances[: count + 1]
        self.sizes = [0] * (count + 1)

    def possible_slots(self, least: float) -> list[tuple[float, int]]:
        return [slot for slot in self.slots if slot[0] > least]


falling = st.lists(st.floats(0.02, 1), max_size=4).map(lambda values: [1.0, *np.cumprod(values).tolist()])
prices = st.lists(st.floats(0, 1), min_size=24, max_size=24).map(
    lambda steps: {n: 1 + sum(steps[:n]) for n in range(1, 25)}
)


@given(st.lists(falling, min_size=1, max_size=3), prices, st.integers(0, 2), st.integers(1, 5))
def test_no_other_choice_of_drafts_brings_more_for_its_time(
    chances: list[list[float]], measured: dict[int, float], others: int, unread: int
) -> None:
    costs = Costs(measured)
    askers = [Asker(list(own), unread=unread) for own in chances]
    base = others + unread * len(askers)
    requests = others + len(askers)

    def rate(counts: tuple[int, ...]) -> float:
        tokens = requests + sum(sum(own[1 : n + 1]) for own, n in zip(chances, counts, strict=True))
        more = float(costs.of(base + sum(counts))[0] - costs.of(base)[0])
        return tokens / (float(costs.of(requests)[0]) + more)

    spend(askers, costs, others)  # type: ignore[arg-type]
    chosen = tuple(len(asker.drafts) for asker in askers)
    best = max(rate(counts) for counts in itertools.product(*(range(len(own)) for own in chances)))
    plain = rate((0,) * len(askers))
    assert rate(chosen) == pytest.approx(best if best >= MARGIN * plain else plain)


@given(st.lists(st.floats(0.02, 0.9), min_size=1, max_size=5), prices)
def test_slots_pay_for_their_own_column_and_for_their_drafts(values: list[float], measured: dict[int, float]) -> None:
    costs = Costs(measured)
    asker = Asker([1.0], [(value, 0) for value in values])
    spend([asker], costs, 0)  # type: ignore[list-item]
    later = float(costs.of(1 + LATER)[0] - costs.of(1)[0]) / LATER
    ranked = sorted(values, reverse=True)
    rates = [(1 + sum(ranked[:n])) / (float(costs.of(1 + n)[0]) + later * n) for n in range(len(values) + 1)]
    best = max(rates) if max(rates) >= MARGIN * rates[0] else rates[0]
    assert rates[asker.sizes[0]] == pytest.approx(best)
    assert asker.least == pytest.approx(best * later)


def test_free_columns_are_all_fed_and_dear_ones_never() -> None:
    for price, fed in ((0.0, [2, 1]), (5.0, [0, 0])):
        askers = [Asker([1.0, 0.5, 0.3]), Asker([1.0, 0.9])]
        spend(askers, Costs({1: 1.0, 9: 1.0 + 8 * price}), 0)  # type: ignore[arg-type]
        assert [len(asker.drafts) for asker in askers] == fed


def test_costs_between_and_beyond_what_was_measured() -> None:
    costs = Costs({1: 1.0, 3: 2.0, 2: 0.5, 9: 5.0})  # a time that cannot be is noise
    np.testing.assert_allclose(costs.of(1, 4), [1.0, 1.0, 2.0, 2.5])
    np.testing.assert_allclose(costs.of(9, 3), [5.0, 5.5, 6.0])


def test_costs_are_a_line_through_the_passes_seen() -> None:
    costs = Costs()
    np.testing.assert_allclose(costs.of(1, 2), [1.0, 1.0 + SHARE])
    for columns in (1, 4, 2, 7, 3):
        costs.observe(columns, 0.01 + 0.002 * columns)
    np.testing.assert_allclose(costs.of(1, 6), 0.01 + 0.002 * np.arange(1, 7))
    costs.observe(3, 9.0)  # others had the cores
    assert float(costs.of(3)[0]) < 0.032


def test_odds_are_counts_behind_a_belief() -> None:
    wider = Odds()
    first = Odds(wider)
    assert first.of("a", 0.3) == pytest.approx(0.3)
    for held in (True, True, False):
        first.note("a", held)
    shared = (0.3 * BELIEF + 2) / (BELIEF + 3)
    assert wider.of("a", 0.3) == Odds(wider).of("a", 0.3) == pytest.approx(shared)
    assert first.of("a", 0.3) == pytest.approx((shared * BELIEF + 2) / (BELIEF + 3))
    assert first.of("b", 0.3) == pytest.approx(0.3)


# --- blocks behind text ----------------------------------------------------------------------------------------


def expected(survival: list[float], columns: int) -> float:
    """Tokens of a block's step and of the one that checks it, over every number of drafts that could hold."""
    drafts = columns - 1
    holds = [*survival[: drafts + 1], 0.0]
    return 2 + sum(n * (holds[n] - holds[n + 1]) for n in range(drafts + 1))


@given(falling.filter(lambda chances: len(chances) > 1), prices, st.floats(0, 2), st.integers(0, 2))
def test_a_block_is_as_long_as_writes_most_for_its_time(
    survival: list[float], price: dict[int, float], rest: float, others: int
) -> None:
    costs = Costs(price)
    time = {n: float(costs.of(n)[0]) for n in range(1, 24)}
    rates = {
        k: expected(survival, k) / (time[others + 1 + k] + time[others + k] + 2 * rest)
        for k in range(2, len(survival) + 1)
    }
    chosen = block_length(np.array(survival), 0, 1.0, costs, rest, others)
    if chosen:
        assert rates[chosen] == pytest.approx(max(rates.values()))
        assert rates[chosen] >= MARGIN / (time[others + 1] + rest) - 1e-9
    else:
        assert max(rates.values()) <= MARGIN / (time[others + 1] + rest) + 1e-9


def test_dear_columns_leave_a_block_out_and_cheap_ones_make_it_long() -> None:
    survival = 0.9 ** np.arange(16)
    assert block_length(survival, 0, 1.0, Costs({1: 1.0, 40: 40.0}), 0.0, 0) == 0
    assert block_length(survival, 0, 1.0, Costs({1: 1.0, 80: 1.1}), 0.0, 0) == 16
    middling = block_length(survival, 0, 1.0, Costs({1: 1.0, 40: 4.0}), 0.0, 0)
    assert 2 < middling < 16
    assert block_length(survival, 0, 1.0, Costs({1: 1.0, 40: 4.0}), 2.0, 0) > middling  # what else a step takes


def test_every_request_begins_with_a_block_so_that_a_bad_belief_can_mend() -> None:
    planner = Planner()
    planner.costs = Costs({1: 1.0, 80: 20.0})
    hopeless = SimpleNamespace(survival=lambda: 0.1 ** np.arange(8), drafts=[], forced=0, block=8)
    for forwards, length in ((0, TRIED), (1, 0)):
        hopeless.row = SimpleNamespace(forwards=forwards)
        planner.plan_blocks([cast(SelfChecking, hopeless)], 0, lambda: None)
        assert hopeless.length == length


def test_behind_drafts_a_block_must_be_worth_its_columns() -> None:
    survival = 0.95 ** np.arange(16)
    costs = Costs({1: 1.0, 80: 3.0})
    assert block_length(survival, 10, 0.9, costs, 0.0, 0) > 0
    assert block_length(survival, 10, 0.1, costs, 0.0, 0) == 0
