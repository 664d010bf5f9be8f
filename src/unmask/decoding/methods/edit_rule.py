"""Editing what is written (LLaDA2.1, token to token), beside the rule that fills masks. Pure functions.

All grids are [B, L]. Every comparison with a threshold is strict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unmask.canvas import Array
from unmask.decoding.options import option


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What editing reads beside the rule that fills masks."""

    editing_threshold: float = option(0.9, ge=0, le=1)
    max_post_steps: int = option(16, ge=0)  # steps that only edit, of each block


class Progress(NamedTuple):
    """Which blocks are finished, and how many steps each had without a mask: [B]."""

    finished: Array
    post_steps: Array


def edits(
    ids: Array, token: Array, confidence: Array, editable: Array, threshold: float, zero_edits: bool = True
) -> Array:
    """Where a written token is replaced, bool: the network proposes another with a confidence above `threshold`.

    Args:
        editable: bool, written tokens that may change.
        zero_edits: Whether a threshold of 0 edits every token that differs (LLaDA2.1, SGLang) or none (diffusers).
    """
    if threshold <= 0 and not zero_edits:
        return np.zeros_like(editable)
    return editable & (token != ids) & (confidence > threshold)


def progress(changed: Array, had_masks: Array, post_steps: Array, max_post_steps: int) -> Progress:
    """After a step that changed [B, L]: a block is finished if it had no mask before and nothing changed, or
    if it had more than `max_post_steps` steps without one. had_masks: bool [B], before the step."""
    post_steps = post_steps + ~had_masks
    return Progress((~had_masks & ~changed.any(1)) | (post_steps > max_post_steps), post_steps)
