"""Denoising a canvas of random tokens (DiffusionGemma): pure functions of scores and draws.

Every step proposes a token for each position. The surest are accepted, all others become noise again. What the
network thinks best is written once it stands still and is sure of it, or when the steps are used up.
Shapes: B requests, L positions of a canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.canvas import Array
from unmask.decoding.options import option
from unmask.decoding.rules import best_first, within_bound
from unmask.decoding.sampling import uniforms

NOISE_DRAW = 3  # purpose of the draws that random tokens come from


@dataclass(frozen=True)
class Parameters:
    """How a canvas of noise is denoised; the defaults are those of the reference."""

    t_min: float = option(0.4, ge=0, le=100)  # temperature that the schedule ends near
    t_max: float = option(0.8, gt=0, le=100)  # and that it begins with
    confidence_threshold: float = option(0.005, ge=0, lt=1e6)  # nats
    stability_threshold: int = option(1, ge=0)  # steps


@dataclass(frozen=True)
class RenoiseOptions(Parameters):
    """All that a canvas of noise is denoised by."""

    max_steps: int = 48
    entropy_bound: float = 0.1  # nats
    greedy: bool = False  # proposes the best token instead of a sampled one


def temperature(steps_left: int, options: RenoiseOptions) -> float:
    """Linear over the steps, from t_max down; `steps_left` counts this one."""
    return options.t_min + (options.t_max - options.t_min) * steps_left / options.max_steps


def accept(entropy_BL: Array, bound: float) -> Array:
    """Positions that keep their proposal, bool [B, L]: entropies ascending, while the sum of the ones before
    is within the bound (arXiv 2505.24857), so the surest always does."""
    everywhere = np.ones(entropy_BL.shape, bool)
    return best_first(-entropy_BL, everywhere, within_bound(entropy_BL, everywhere, bound))


def noise(seed: int, step: int, position_L: Array, vocab_size: int) -> Array:
    """Uniformly random tokens [L], addressed by (seed, step, position); step 0 is the canvas to begin with."""
    u = uniforms(np.array(seed), np.array(step), position_L, NOISE_DRAW)
    return np.minimum((u * vocab_size).astype(np.int64), vocab_size - 1)


def settled(best_L: Array, earlier: list[Array], entropy_L: Array, options: RenoiseOptions) -> bool:
    """Whether the canvas is done: the best tokens are those of the last `stability_threshold` steps (`earlier`,
    oldest first), and the mean entropy is below `confidence_threshold`."""
    last = earlier[len(earlier) - options.stability_threshold :] if options.stability_threshold else []
    stable = len(earlier) >= options.stability_threshold and all(np.array_equal(best_L, other) for other in last)
    return stable and float(entropy_L.mean()) < options.confidence_threshold
