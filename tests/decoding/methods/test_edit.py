"""Editing beside filling: against recorded steps of diffusers and SGLang, and where a block is finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conformance.checks.model_free import CHECKS
from unmask.canvas import Array
from unmask.decoding.methods.edit import edits, progress


@pytest.mark.parametrize("section", ["diffusers_block_refinement", "sglang_joint_threshold", "sglang_low_confidence"])
def test_recorded_steps(section: str, conformance: Callable[[str], tuple[dict[str, Any], dict[str, Any]]]) -> None:
    recorded, tensors = conformance("samplers/t2t")
    for case in recorded[section]["cases"]:
        assert CHECKS[f"t2t.{section}"](case, tensors, recorded["mask_id"]) == ""


def grid(*values: float) -> Array:
    return np.array([values])


def test_what_is_edited() -> None:
    """Another token, strictly surer than the threshold, where editing is allowed; 0 is all of them or none."""
    ids, token, sure = grid(1, 2, 3, 4), grid(1, 9, 9, 9), grid(0.9, 0.5, 0.6, 0.9)
    editable = np.array([[True, True, True, False]])
    for threshold, zero_edits, expected in ((0.5, True, [2]), (0.0, True, [1, 2]), (0.0, False, [])):
        assert edits(ids, token, sure, editable, threshold, zero_edits)[0].nonzero()[0].tolist() == expected


def test_a_block_is_finished_when_nothing_changes_or_its_steps_are_spent() -> None:
    nothing, something = np.zeros((1, 3), bool), np.ones((1, 3), bool)
    for changed, had_masks, before, finished, after in (
        (nothing, False, 0, True, 1),
        (something, False, 1, False, 2),
        (something, False, 2, True, 3),
        (something, True, 2, False, 2),
    ):
        made = progress(changed, np.array([had_masks]), np.array([before]), 2)
        assert (bool(made.finished[0]), int(made.post_steps[0])) == (finished, after)
