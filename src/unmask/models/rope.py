"""Rotary positions for longer texts than a network was first trained on: by what each pair's frequency is divided."""

from __future__ import annotations

import math

Factors = tuple[float, ...]


def frequencies(theta: float, size: int) -> list[float]:
    """Radians a position for each of size / 2 pairs of features (RoPE, arXiv 2104.09864)."""
    return [theta ** (-pair / max(size, 1)) for pair in range(0, size, 2)]


def yarn(
    theta: float, size: int, *, factor: float, trained: float, fast: float, slow: float, truncate: bool = True
) -> Factors:
    """YaRN (arXiv 2309.00071): pairs that turn `fast` times or more in `trained` tokens stay, those that turn `slow`
    times or less are divided by `factor`, a ramp lies between. truncate: the ramp's ends are whole pairs."""

    def pair(turns: float) -> float:
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair(fast)) if truncate else pair(fast), 0)
    high = min(math.ceil(pair(slow)) if truncate else pair(slow), size - 1)
    steep = high - low if high != low else 0.001
    ramp = [min(max((i - low) / steep, 0.0), 1.0) for i in range(size // 2)]
    return tuple(1 / (1 - share + share / factor) for share in ramp)


def llama3(theta: float, size: int, *, factor: float, trained: float, low: float, high: float) -> Factors:
    """Llama 3.1: pairs that turn `high` times or more in `trained` tokens stay, those that turn less than `low` times
    are divided by `factor`, and shares of both lie between."""
    out = []
    for frequency in frequencies(theta, size):
        turns = trained * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        out.append(1 / (kept + (1 - kept) / factor))
    return tuple(out)


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """What YaRN multiplies cos and sin by."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
