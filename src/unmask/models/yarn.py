"""Rotary frequencies stretched to longer texts than a network was trained on (YaRN, arXiv 2309.00071)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def stretched(frequency_r: Tensor, theta: float, factor: float, trained: float, fast: float, slow: float) -> Tensor:
    """Frequencies [r], float64: those that turn `fast` times or more in `trained` tokens stay, those that turn
    `slow` times or less are divided by `factor`, a ramp lies between."""
    size = 2 * len(frequency_r)

    def dimension(turns: float) -> float:
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(fast)), 0)
    high = min(math.ceil(dimension(slow)), size - 1)
    steep = high - low if high != low else 0.001
    ramp = ((torch.arange(len(frequency_r), dtype=frequency_r.dtype) - low) / steep).clamp(0, 1)
    return frequency_r * (1 - ramp) + frequency_r / factor * ramp
