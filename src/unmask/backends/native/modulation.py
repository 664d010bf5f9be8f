"""What a noise level does to a network (adaLN of DiT): shifts, scales and gates of every layer, computed once a level.

Shapes: C width of the time condition, D hidden size, R vectors: six a layer, and two behind the last norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from unmask.canvas import Array
from unmask.checkpoints.rows import Matrix

FEATURES = 256  # sinusoids of a noise level
KEPT = 64  # noise levels whose vectors are kept: a run comes by the same ones again for every block


def stored(weights: Mapping[str, Matrix], layers: int) -> dict[str, Array]:
    """What `Modulation` reads of a network's parameters."""
    blocks = [*(f"blocks.{i}.modulation" for i in range(layers)), "final_modulation"]
    out = {"modulation": np.concatenate([weights[f"{name}.weight"].values() for name in blocks])}
    out["modulation.bias"] = np.concatenate([weights[f"{name}.bias"].values() for name in blocks])
    for part in ("up", "down"):
        out[f"time.{part}"] = weights[f"time_embedding.{part}.weight"].values()
        out[f"time.{part}.bias"] = weights[f"time_embedding.{part}.bias"].values()
    return {name: values.astype(np.float32) for name, values in out.items()}


class Modulation:
    def __init__(self, weights: Mapping[str, Array]) -> None:
        """weights: with what `stored` made."""
        self.weights = weights
        self.known: dict[float, Array] = {}

    def rows(self, time_B: Array) -> tuple[Array, Array]:
        """The vectors of each noise level there is [N, R * D], and which of them are each request's [B]."""
        levels, which = np.unique(time_B, return_inverse=True)
        return np.stack([self._of(float(level)) for level in levels]), which.reshape(-1)

    def _of(self, time: float) -> Array:
        """By itself, so that a level's vectors are the same to the bit in any company."""
        if time not in self.known:
            while len(self.known) >= KEPT:
                del self.known[next(iter(self.known))]
            frequency = np.exp(-math.log(10000.0) * np.arange(FEATURES // 2, dtype=np.float32) / (FEATURES // 2))
            angle = np.float32(time) * frequency.astype(np.float32)
            condition = np.concatenate([np.cos(angle), np.sin(angle)])
            for part in ("up", "down"):
                condition = _silu(self.weights[f"time.{part}"] @ condition + self.weights[f"time.{part}.bias"])
            self.known[time] = self.weights["modulation"] @ condition + self.weights["modulation.bias"]
        return self.known[time]


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))
