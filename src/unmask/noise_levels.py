"""How much noise there is at a time, as samplers and networks that are told it count it. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LevelSchedule = Literal["log_linear", "linear", "geometric", "cosine"]


@dataclass(frozen=True)
class Noise:
    """A forward process: total noise sigma(t), and alpha(t) = exp(-sigma), the chance to be kept, t in [0, 1].

    log_linear: alpha = 1 - (1 - floor) t. linear: 1 - t, sigma capped at the other's greatest (BD3-LM). geometric:
    sigma from low to high (SEDD). cosine: 1 - cos(pi/2 (1 - (1 - floor) t)) (DUO).
    """

    schedule: LevelSchedule = "log_linear"
    low: float = 1e-3
    high: float = 1.0
    floor: float = 1e-3

    def sigma(self, t: Any) -> Any:
        if self.schedule == "geometric":
            return self.low ** (1 - t) * self.high**t
        if self.schedule == "linear":
            with np.errstate(divide="ignore"):
                return np.minimum(-np.log1p(-t), -math.log(self.floor))
        if self.schedule == "cosine":
            return -np.log(self.alpha(t))
        return -np.log1p(-(1 - self.floor) * t)

    def alpha(self, t: Any) -> Any:
        if self.schedule == "geometric":
            return np.exp(-self.sigma(t))
        if self.schedule == "cosine":
            return 1 - np.cos(math.pi / 2 * (1 - (1 - self.floor) * t))
        return 1 - t if self.schedule == "linear" else 1 - (1 - self.floor) * t

    def rate(self, t: Any) -> Any:
        """d sigma / dt."""
        if self.schedule == "geometric":
            return self.sigma(t) * math.log(self.high / self.low)
        slope = 1.0 if self.schedule == "linear" else 1 - self.floor
        if self.schedule == "cosine":
            return math.pi / 2 * slope * np.sin(math.pi / 2 * (1 - slope * t)) / self.alpha(t)
        return slope / (1 - slope * t)
