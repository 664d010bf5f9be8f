"""Figures and intervals against closed forms and hand cases."""

from __future__ import annotations

import math
import random

import pytest

from unmask.errors import UnmaskError
from unmask.evaluation.figures import Figure, aup, aup_of_items, mean, ratio, share


def test_wilsons_interval() -> None:
    """Values of scipy.stats.binomtest(k, n).proportion_ci(method="wilson")."""
    assert share(95, 100) == pytest.approx((95.0, 88.8242, 97.8466), abs=1e-3)
    assert share(0, 10).low == 0.0
    assert share(10, 10).high == pytest.approx(100.0)


def test_a_mean_has_the_interval_of_its_standard_error() -> None:
    values = [1.0, 2.0, 4.0]
    half = 1.96 * math.sqrt(7 / 3 / 3)  # variance 7 / 3
    assert mean(values) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half))
    assert math.isnan(mean([1.0]).low)
    assert ratio([3.0], [2.0], error=0.5) == pytest.approx((1.5, 1.5 - 0.49, 1.5 + 0.49))


def test_a_ratios_interval_covers_what_it_should() -> None:
    """Of 400 draws of 50 items whose amounts are about twice their sizes, some 95% cover 2."""
    rng = random.Random(0)
    covered = 0
    for _ in range(400):
        sizes = [rng.uniform(1, 5) for _ in range(50)]
        figure = ratio([2 * size + rng.gauss(0, 1) for size in sizes], sizes)
        covered += figure.low < 2 < figure.high
    assert 0.91 < covered / 400 < 0.98


def test_figures_go_into_records_and_back() -> None:
    figure = Figure(1.0, 0.5, 2.0)
    assert Figure.of(figure.named("x"), "x") == figure
    assert figure.shown(1) == "1.0 (0.5 to 2.0)"
    assert figure.map(math.exp).low == pytest.approx(math.exp(0.5))


def test_area_under_the_accuracy_parallelism_curve() -> None:
    """By hand: the slowest point's whole area, then trapezoids of accuracies weighed by exp(-3 (1 - y / best))."""
    assert aup([(1.0, 80.0)]) == 80.0
    assert aup([(1.0, 80.0), (3.0, 80.0)]) == 240.0
    weighed = 76 * math.exp(-3 * (1 - 76 / 80))
    assert aup([(3.0, 76.0), (1.0, 80.0)]) == pytest.approx(80 + 2 * (80 + weighed) / 2)
    assert aup([(1.0, 80.0), (3.0, 74.0)]) == 80.0  # more than 5 below the slowest
    assert aup([(1.0, 80.0), (2.0, 80.0)], best=90.0) == pytest.approx(80 + 80 * math.exp(-3 * (1 - 80 / 90)))
    with pytest.raises(UnmaskError, match="points"):
        aup([])


def test_area_of_items_is_that_of_their_means() -> None:
    slow = [(True, 4, 4), (True, 4, 4), (False, 2, 2), (True, 2, 2)]
    fast = [(True, 4, 2), (True, 4, 2), (False, 2, 1), (True, 2, 1)]
    figure = aup_of_items([slow, fast])
    assert figure.value == pytest.approx(aup([(1.0, 75.0), (2.0, 75.0)]))
    assert figure.low < figure.value < figure.high
