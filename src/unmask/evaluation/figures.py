"""Figures and their 95% intervals: shares, ratios of sums, and the area under the accuracy-parallelism curve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from unmask.errors import UnmaskError

Z = 1.96  # of 95%


class Figure(NamedTuple):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(record: Mapping[str, Any], name: str) -> Figure:
        """Back from the fields that `named` made."""
        return Figure(record[name], record[f"{name}_low"], record[f"{name}_high"])

    def map(self, function: Callable[[float], float]) -> Figure:
        """Of a rising function of the value."""
        return Figure(*map(function, self))

    def named(self, name: str) -> dict[str, float]:
        """As fields of a record: `name`, `name_low`, `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def shown(self, digits: int = 2) -> str:
        if math.isnan(self.low):
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def share(right: int, count: int) -> Figure:
    """A share in percent and Wilson's interval."""
    part = right / count
    middle = (part + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z * math.sqrt(part * (1 - part) / count + Z * Z / (4 * count * count)) / (1 + Z * Z / count)
    return Figure(100 * part, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half))


def ratio(amounts: Sequence[float], sizes: Sequence[float], error: float = math.nan) -> Figure:
    """Sum of amounts over sum of sizes, one of each an item, and its interval over items drawn like these.

    error: of the amount of a single item, whose interval it gives; without it one item has none (nan).
    """
    total = sum(sizes)
    value = sum(amounts) / total if total else 0.0
    count = len(amounts)
    if count > 1 and total:
        spread = sum((a - value * s) ** 2 for a, s in zip(amounts, sizes, strict=True)) * count / (count - 1)
        half = Z * math.sqrt(spread) / total
    else:
        half = Z * error / total if total else math.nan
    return Figure(value, value - half, value + half)


def mean(values: Sequence[float]) -> Figure:
    return ratio(values, [1.0] * len(values))


def median(rounds: Sequence[float]) -> Figure:
    """Of timed rounds, with the least and the greatest: for five rounds they hold the median with 94% confidence."""
    return Figure(statistics.median(rounds), min(rounds), max(rounds))


def aup(points: Sequence[tuple[float, float]], best: float | None = None) -> float:
    """Accuracy under parallelism (d3LLM, arXiv 2601.07568): tokens a forward times percent right.

    points: (tokens a forward, accuracy in percent), in any order; those more than 5 below the slowest are left out.
    best: the best accuracy of all methods compared, the points' own by default; accuracy y counts as
    y exp(-3 (1 - y / best)). The slowest point's own area is its accuracy times its tokens a forward.
    """
    if not points or min(parallelism for parallelism, _ in points) <= 0:
        raise UnmaskError("the accuracy-parallelism curve needs points with tokens a forward above 0")
    ranked = sorted(points)
    floor = ranked[0][1] - 5
    kept = [(parallelism, accuracy) for parallelism, accuracy in ranked if accuracy >= floor]
    top = max(accuracy for _, accuracy in ranked) if best is None else best

    def weighed(accuracy: float) -> float:
        return accuracy * min(1.0, math.exp(-3 * (1 - accuracy / top))) if top else 0.0

    area = kept[0][0] * kept[0][1]
    for (before, low), (behind, high) in pairwise(kept):
        area += (behind - before) * (weighed(low) + weighed(high)) / 2
    return area


def aup_of_items(runs: Sequence[Sequence[tuple[bool, int, int]]], draws: int = 500) -> Figure:
    """The same of runs over the same items, each item (right, tokens, steps); the interval by drawing items anew."""
    table = np.array(runs, dtype=np.float64)  # [runs, items, 3]
    count = table.shape[1]
    picks = np.random.default_rng(0).integers(count, size=(draws, count))

    def area(items: np.ndarray) -> float:
        right, tokens, steps = items.sum(1).T
        return aup([(max(t, 1.0) / max(s, 1.0), 100 * r / count) for r, t, s in zip(right, tokens, steps, strict=True)])

    drawn = [area(table[:, pick]) for pick in picks] if count > 1 else [math.nan]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(area(table), float(low), float(high))
