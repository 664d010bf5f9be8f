"""How many tokens are due at each step of a block: the schedules of the references.

A schedule is a share of the masks that are left, as a reverse process would reveal them between two times,
and how that share of n masks is rounded to whole tokens. The last step is due all that is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.canvas import Array

ScheduleName = Literal["even", "block", "linear", "cosine", "timesteps", "last"]


@dataclass(frozen=True)
class StepBudget:
    """What a step owes each of B requests: a number of tokens [B], and the share [B] of the masks left that a
    reverse process would reveal now."""

    count: Array
    share: Array


def share(schedule: ScheduleName, step: int, steps: int, eps: float = 1e-3) -> float:
    """Share of the masks left that `step` (from 0) of `steps` reveals; in float32 where the reference is.

    even, block, linear: 1 / steps left (LLaDA, arXiv 2502.09992; SDAR; dllm). cosine: masks remain as
    cos(pi/2 (1 - t)) (dllm). last: nothing before the last step (vLLM's confidence_threshold). timesteps: 1 - s / t for
    times from 1 to eps (Dream, arXiv 2508.15487).
    """
    if step >= steps - 1:
        return 1.0
    if schedule == "last":
        return 0.0
    if schedule in ("even", "block"):
        return 1 / (steps - step)
    if schedule == "timesteps":
        return float(np.float32(1) - _time(step + 1, steps, eps) / _time(step, steps, eps))
    s, t = (_noise(schedule, np.float32((steps - i) / steps)) for i in (step + 1, step))
    return 1.0 - float(s / t)


def step_budget(schedule: ScheduleName, masks: int, step: int, steps: int, eps: float = 1e-3) -> int:
    """Tokens due at `step` (from 0) of `steps` with `masks` left; all of them from the last step on.

    even rounds up, so the first steps carry the remainder; block is the same of a whole block, however many
    masks it has (SDAR, LLaDA2); linear and cosine round half to even; timesteps rounds down.
    """
    if step >= steps - 1:
        return masks
    if schedule in ("even", "block"):
        return -(-masks // (steps - step))
    part = share(schedule, step, steps, eps)
    if schedule == "timesteps":
        return int(np.float32(masks) * np.float32(part))
    return min(masks, round(masks * part))


def plan(schedule: ScheduleName, masks: int, steps: int, eps: float = 1e-3) -> list[int]:
    """Tokens due at every step where each commits exactly what is due; they sum to `masks`."""
    counts = []
    for step in range(steps):
        counts.append(step_budget(schedule, masks, step, steps, eps))
        masks -= counts[-1]
    return counts


def _time(step: int, steps: int, eps: float) -> np.float32:
    """Entry `step` of steps + 1 times from 1 down to eps, evenly spaced; each half is counted from its own end."""
    width = float(np.float32(np.float32(eps) - np.float32(1)) / np.float32(steps))
    if step < (steps + 1) // 2:
        return np.float32(1 + width * step)  # rounded once, like torch.linspace
    return np.float32(float(np.float32(eps)) - width * (steps - step))


def _noise(schedule: ScheduleName, time: np.float32) -> np.float32:
    """Chance to be masked at a time: 1 - alpha, each difference rounded to float32."""
    one = np.float32(1)
    kept = one - time if schedule == "linear" else one - np.float32(np.cos(np.pi / 2 * float(one - time)))
    return np.float32(one - kept)
