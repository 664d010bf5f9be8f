"""Editing what is written (LLaDA2.1, token to token), beside the rule that fills masks. Pure functions.

All grids are [B, L]. Every comparison with a threshold is strict.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unmask.canvas import Array
from unmask.decoding.rules import RuleOptions


class Progress(NamedTuple):
    """Which blocks are finished, and how many steps each had without a mask: [B]."""

    finished: Array
    post_steps: Array


def edits(ids: Array, token: Array, confidence: Array, editable: Array, options: RuleOptions) -> Array:
    """Where a written token is replaced, bool: the network proposes another, surer than `editing_threshold`.

    editable: bool, written tokens that may change. A threshold of 0 edits every token that differs (LLaDA2.1,
    SGLang) or, without `zero_edits`, none (diffusers).
    """
    if options.editing_threshold <= 0 and not options.zero_edits:
        return np.zeros_like(editable)
    return editable & (token != ids) & (confidence > options.editing_threshold)


def progress(changed: Array, had_masks: Array, post_steps: Array, options: RuleOptions) -> Progress:
    """After a step that changed [B, L]: a block is finished if it had no mask before and nothing changed, or
    if it had more than `max_post_steps` steps without one. had_masks: bool [B], before the step."""
    post_steps = post_steps + ~had_masks
    return Progress((~had_masks & ~changed.any(1)) | (post_steps > options.max_post_steps), post_steps)


def penalised(logits: Array, ids: Array, penalty: float) -> Array:
    """Logits [B, L, V] with the token left of each position made less likely there (SGLang's penalty_lambda)."""
    out = logits.copy()
    row, position = np.indices(ids[:, 1:].shape)
    out[row, position + 1, ids[:, :-1]] -= penalty
    return out
