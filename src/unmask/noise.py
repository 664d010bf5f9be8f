"""The forward process: how a clean text becomes noise over time, for training and samplers alike. No torch here.

A schedule gives alpha(t), the chance that a token is still clean at time t in [0, 1]; alpha(0) = 1. Times may be
numbers, numpy arrays or torch tensors, and what comes back is of the same kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

ScheduleName = Literal[
    "linear", "cosine", "cosine_mdlm", "square", "square_root", "logarithmic", "log_uniform", "geometric"
]
NetworkSchedule = Literal["log_linear", "linear", "geometric", "cosine"]  # what config.json says
LEAST = -math.expm1(-1e-3)  # share of masks that log_uniform begins with
FLOOR = 1e-3  # share of clean tokens that the schedules of noise-conditioned networks end with
GREATEST_SIGMA = -math.log(FLOOR)


def _library(t: Any) -> Any:
    """numpy or torch: whose functions take t."""
    if isinstance(t, int | float | np.ndarray | np.generic):
        return np
    import torch

    return torch


@dataclass(frozen=True)
class NoiseSchedule:
    """How much is noise at a time.

    linear (MDLM's log-linear): alpha = 1 - t. cosine (dllm, DUO): 1 - cos(pi/2 (1 - t)). cosine_mdlm (MDLM, BD3-LM):
    cos(pi/2 t). Shares of masks of BD3-LM's others: square t^2, square_root t^0.5, logarithmic log2(1 + t).
    log_uniform: LEAST^(1 - t), MDLM's change of variables. geometric: exp(-sigma), sigma from low to high (SEDD, MDLM).
    The last two begin with some noise, so that their bounds leave that much of time out.

    floor: time is slowed by 1 - floor, so that a linear schedule ends with that share of clean tokens.
    """

    name: ScheduleName = "linear"
    low: float = 1e-4
    high: float = 20.0
    floor: float = 0.0

    @staticmethod
    def of_network(name: NetworkSchedule = "log_linear", low: float = 1e-3, high: float = 1.0) -> NoiseSchedule:
        """The schedule that a noise-conditioned network's config names; log_linear is linear down to FLOOR."""
        if name == "geometric":
            return NoiseSchedule(name, low, high)
        return NoiseSchedule("linear" if name == "log_linear" else name, floor=0.0 if name == "linear" else FLOOR)

    def alpha(self, t: Any) -> Any:
        """Chance to be kept until time t."""
        xp = _library(t)
        t = (1 - self.floor) * t
        if self.name == "geometric":
            return xp.exp(-self.sigma(t))
        if self.name == "cosine_mdlm":
            return xp.cos(math.pi / 2 * t)
        if self.name == "cosine":
            return 1 - xp.cos(math.pi / 2 * (1 - t))
        masks = {
            "linear": lambda: t,
            "square": lambda: t**2,
            "square_root": lambda: t**0.5,
            "logarithmic": lambda: xp.log1p(t) / math.log(2),
            "log_uniform": lambda: LEAST ** (1 - t),
        }
        return 1 - masks[self.name]()

    def sigma(self, t: Any) -> Any:
        """Total noise -log alpha(t); a linear schedule's is held below GREATEST_SIGMA, where it would be infinite."""
        xp = _library(t)
        if self.name == "geometric":
            return self.low ** (1 - t) * self.high**t
        if self.name == "linear":
            with np.errstate(divide="ignore"):
                sigma = -xp.log1p(-(1 - self.floor) * t)
            return sigma if self.floor else xp.clip(sigma, None, GREATEST_SIGMA)
        return -xp.log(self.alpha(t))

    def rate(self, t: Any) -> Any:
        """d sigma / dt."""
        slope = 1 - self.floor
        if self.name == "geometric":
            return self.sigma(t) * math.log(self.high / self.low)
        if self.name == "cosine":
            return math.pi / 2 * slope * _library(t).sin(math.pi / 2 * (1 - slope * t)) / self.alpha(t)
        if self.name == "linear":
            return slope / (1 - slope * t)
        return self.weight(t) * (1 - self.alpha(t)) / self.alpha(t)

    def weight(self, t: Any) -> Any:
        """-alpha'(t) / (1 - alpha(t)), the weight of masked cross-entropy in the continuous-time NELBO.

        MDLM, arXiv 2406.07524, eq. 10. Its mean over time does not depend on the schedule, its spread does.
        """
        xp = _library(t)
        slope = 1 - self.floor
        t = slope * t
        weights = {
            "linear": lambda: 1 / t,
            "cosine": lambda: math.pi / 2 * xp.tan(math.pi / 2 * (1 - t)),
            "cosine_mdlm": lambda: math.pi / 2 / xp.tan(math.pi / 4 * t),
            "square": lambda: 2 / t,
            "square_root": lambda: 0.5 / t,
            "logarithmic": lambda: 1 / ((1 + t) * xp.log1p(t)),
            "log_uniform": lambda: xp.full_like(t, -math.log(LEAST)),
            "geometric": lambda: self.sigma(t) * math.log(self.high / self.low) / xp.expm1(self.sigma(t)),
        }
        return slope * weights[self.name]()

    def chain_weight(self, t: Any, steps: int) -> Any:
        """steps (alpha(t - 1/steps) - alpha(t)) / (1 - alpha(t)): the weight in the NELBO of a chain of so many steps
        (D3PM, arXiv 2107.03006, with SUBS), in t's dtype; t lies on its grid. Torch only."""
        kept = self.alpha(t.double())
        before = self.alpha(t.double() - 1 / steps)
        return (steps * (before - kept) / (1 - kept)).float()


def on_grid(t: Any, steps: int) -> Any:
    """Times in [0, 1] rounded up to the next of 1/steps, 2/steps ... 1."""
    return ((t * steps).floor() + 1).clamp(max=steps) / steps


def clip_times(t: Any, low: float, high: float) -> Any:
    """Maps times in [0, 1] onto [low, high] (BD3-LM, arXiv 2503.09573, section 5.2)."""
    return low + (high - low) * t
