"""The forward process: how a clean canvas becomes noise, and when.

A schedule gives alpha(t), the chance that a token is still clean at time t in [0, 1]; alpha(0) = 1.
Everything here is a pure function of its arguments: random numbers come in as uniform draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal[
    "linear", "cosine", "cosine_mdlm", "square", "square_root", "logarithmic", "log_uniform", "geometric"
]
LEAST = -math.expm1(-1e-3)  # share of masks that log_uniform begins with
TOTAL = (1e-4, 20.0)  # total noise of geometric at times 0 and 1


def alpha(schedule: Schedule, t: Tensor) -> Tensor:
    """Chance to be kept at time t, 1 less the share of masks.

    linear (MDLM's log-linear): 1 - t. cosine (dllm, DUO): 1 - cos(pi/2 (1 - t)). cosine_mdlm (MDLM, BD3-LM):
    cos(pi/2 t). Shares of masks of BD3-LM's others: square t^2, square_root t^0.5, logarithmic log2(1 + t).
    log_uniform: LEAST^(1 - t), MDLM's change of variables. geometric: exp(-sigma), sigma from TOTAL[0] to TOTAL[1]
    (MDLM). The last two begin with some noise, so that their bounds leave that much of time out.
    """
    if schedule == "geometric":
        return torch.exp(-_total(t))
    if schedule == "cosine_mdlm":
        return torch.cos(math.pi / 2 * t)
    if schedule == "cosine":
        return 1 - torch.cos(math.pi / 2 * (1 - t))
    shares = {
        "linear": lambda: t,
        "square": lambda: t**2,
        "square_root": lambda: t**0.5,
        "logarithmic": lambda: torch.log1p(t) / math.log(2),
        "log_uniform": lambda: LEAST ** (1 - t),
    }
    return 1 - shares[schedule]()


def nelbo_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """-alpha'(t) / (1 - alpha(t)), the weight of masked cross-entropy in the continuous-time NELBO.

    MDLM, arXiv 2406.07524, eq. 10. Its mean over time does not depend on the schedule, its spread does.
    """
    weights = {
        "linear": lambda: 1 / t,
        "cosine": lambda: math.pi / 2 * torch.tan(math.pi / 2 * (1 - t)),
        "cosine_mdlm": lambda: math.pi / 2 / torch.tan(math.pi / 4 * t),
        "square": lambda: 2 / t,
        "square_root": lambda: 0.5 / t,
        "logarithmic": lambda: 1 / ((1 + t) * torch.log1p(t)),
        "log_uniform": lambda: torch.full_like(t, -math.log(LEAST)),
        "geometric": lambda: _total(t) * math.log(TOTAL[1] / TOTAL[0]) / torch.expm1(_total(t)),
    }
    return weights[schedule]()


def _total(t: Tensor) -> Tensor:
    return TOTAL[0] ** (1 - t) * TOTAL[1] ** t


def on_grid(t: Tensor, steps: int) -> Tensor:
    """Times in [0, 1] rounded up to the next of 1/steps, 2/steps ... 1."""
    return ((t * steps).floor() + 1).clamp(max=steps) / steps


def chain_weight(schedule: Schedule, t: Tensor, steps: int) -> Tensor:
    """steps (alpha(t - 1/steps) - alpha(t)) / (1 - alpha(t)): the weight in the NELBO of a chain of so many steps
    (D3PM, arXiv 2107.03006, with SUBS), t on its grid."""
    kept, before = alpha(schedule, t.double()), alpha(schedule, t.double() - 1 / steps)
    return (steps * (before - kept) / (1 - kept)).float()


def absorb(x0: Tensor, keep: Tensor, u: Tensor, mask_id: int) -> Tensor:
    """Absorbing corruption: a token becomes the mask where its draw u in [0, 1) is not below `keep`."""
    return torch.where(u < keep, x0, mask_id)


def uniform(x0: Tensor, keep: Tensor, u: Tensor, replacement: Tensor) -> Tensor:
    """Uniform corruption: a token becomes `replacement` (drawn uniformly) where u is not below `keep`."""
    return torch.where(u < keep, x0, replacement)


def clip_times(t: Tensor, low: float, high: float) -> Tensor:
    """Maps times in [0, 1] onto [low, high] (BD3-LM, arXiv 2503.09573, section 5.2)."""
    return low + (high - low) * t


@dataclass(frozen=True)
class Draws:
    """The random numbers of one training step, the same however the step is spread.

    They are drawn for the whole global batch from (seed, step) and each rank or micro-batch takes its
    rows, so one, two or eight ranks see one and the same noise, and a resumed run continues it.
    """

    seed: int
    step: int
    total_rows: int
    first_row: int
    rows: int

    def _generator(self, purpose: int) -> torch.Generator:
        # splitmix-style mixing keeps neighbouring seeds, steps and purposes apart
        mixed = (self.seed * 0x9E3779B97F4A7C15 + self.step * 0xBF58476D1CE4E5B9 + purpose * 0x94D049BB133111EB) % 2**63
        return torch.Generator().manual_seed(mixed)

    def _mine(self, drawn: Tensor) -> Tensor:
        return drawn[self.first_row : self.first_row + self.rows]

    def strata(self, per_row: int) -> Tensor:
        """Low-discrepancy times [rows, per_row]: one in each of total_rows * per_row equal strata of
        [0, 1), strata dealt to rows and blocks by a random permutation."""
        count = self.total_rows * per_row
        generator = self._generator(1)
        order = torch.randperm(count, generator=generator)
        jitter = torch.rand(count, generator=generator, dtype=torch.float64)
        return self._mine(((order + jitter) / count).view(self.total_rows, per_row)).float()

    def uniforms(self, length: int) -> Tensor:
        """Uniform draws in [0, 1), [rows, length]."""
        return self._mine(torch.rand(self.total_rows, length, generator=self._generator(2)))

    def shared(self) -> float:
        """One uniform draw in [0, 1) that all rows and ranks of the step share."""
        return float(torch.rand((), generator=self._generator(4), dtype=torch.float64))

    def tokens(self, length: int, vocab_size: int) -> Tensor:
        """Uniform token ids [rows, length]."""
        return self._mine(torch.randint(vocab_size, (self.total_rows, length), generator=self._generator(3)))
