"""The random numbers of a training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def uniforms(self, length: int, purpose: int = 2) -> Tensor:
        """Uniform draws in [0, 1), [rows, length]; those of another purpose are others."""
        return self._mine(torch.rand(self.total_rows, length, generator=self._generator(purpose)))

    def shared(self) -> float:
        """One uniform draw in [0, 1) that all rows and ranks of the step share."""
        return float(torch.rand((), generator=self._generator(4), dtype=torch.float64))

    def tokens(self, length: int, vocab_size: int) -> Tensor:
        """Uniform token ids [rows, length]."""
        return self._mine(torch.randint(vocab_size, (self.total_rows, length), generator=self._generator(3)))
