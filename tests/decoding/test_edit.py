"""Filling and editing in one step, against recorded steps of diffusers and SGLang."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unmask.canvas import Array
from unmask.decoding.edit import edits, penalised, progress
from unmask.decoding.rules import RuleOptions, token_edit
from unmask.decoding.sampling import Scores, propose
from unmask.decoding.schedules import Due

Read = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="module")
def t2t(conformance: Read) -> tuple[dict[str, Any], dict[str, Array]]:
    recorded, tensors = conformance("samplers/t2t")
    return recorded, {name: tensor.numpy() for name, tensor in tensors.items()}


def scored(logits: Array) -> Scores:
    """Greedy scores [B, L] of logits [B, L, V]."""
    flat = logits.reshape(-1, logits.shape[-1])
    zeros = np.zeros(len(flat))
    flat_scores = propose(flat, zeros, zeros.astype(int), zeros + 1, zeros, zeros, None)
    return Scores(*(values.reshape(logits.shape[:2]) for values in vars(flat_scores).values()))


def fill(scores: Scores, masked: Array, options: RuleOptions, due: int = 1) -> Array:
    return token_edit(scores, masked, Due(np.full(len(masked), due), np.ones(len(masked))), options)


def test_diffusers_block_refinement(t2t: tuple[dict[str, Any], dict[str, Array]]) -> None:
    recorded, tensors = t2t
    length = recorded["block_length"]
    for case in recorded["diffusers_block_refinement"]["cases"]:
        ids, logits = tensors[f"{case['tensor']}.block_ids"], tensors[f"{case['tensor']}.logits"]
        given = tensors[f"{case['tensor']}.prompt_mask"].astype(bool)
        steps, editing = case["num_inference_steps"], case["editing_threshold"]
        quota = [length // steps + (i < length % steps) for i in range(steps)]
        options = RuleOptions(
            "token_edit",
            threshold=case["threshold"],
            editing_threshold=editing or 0.0,
            zero_edits=False,
        )
        scores, masked = scored(logits), ids == recorded["mask_id"]
        filled = fill(scores, masked, options, due=quota[min(case["timestep"], steps - 1)])
        edited = edits(ids, scores.token, scores.confidence, ~masked & ~given, options)
        assert [np.flatnonzero(row).tolist() for row in filled] == [sorted(row) for row in case["transfer"]]
        assert [np.flatnonzero(row).tolist() for row in edited] == [sorted(row) for row in case["edited"]]
        assert np.where(filled | edited, scores.token, ids).tolist() == case["new_ids"]


def test_sglang_joint_threshold(t2t: tuple[dict[str, Any], dict[str, Array]]) -> None:
    recorded, tensors = t2t
    for case in recorded["sglang_joint_threshold"]["cases"]:
        ids, logits = tensors[f"{case['tensor']}.block_ids"], tensors[f"{case['tensor']}.logits"]
        given = tensors[f"{case['tensor']}.prompt_mask"].astype(bool)
        options = RuleOptions(
            "token_edit",
            threshold=case["threshold"],
            editing_threshold=case["edit_threshold"],
            max_post_steps=case["max_post_edit_steps"],
        )
        scores = scored(penalised(logits, ids, case["penalty_lambda"]))
        masked = (ids == recorded["mask_id"]) & ~given
        filled = fill(scores, masked, options)
        edited = edits(ids, scores.token, scores.confidence, (ids != recorded["mask_id"]) & ~given, options)
        before = np.full(len(ids), case["post_edit_steps_before"])
        finished, post_steps = progress(filled | edited, masked.any(1), before, options)
        # SGLang counts after the forward: a row that exceeds its budget by it is left as it is
        stays = post_steps > options.max_post_steps
        new = np.where((filled | edited) & ~stays[:, None], scores.token, ids)
        assert new.tolist() == case["new_ids"]
        assert post_steps.tolist() == case["post_edit_steps_after"]
        assert finished.tolist() == case["finished"]


def test_sglang_low_confidence(t2t: tuple[dict[str, Any], dict[str, Array]]) -> None:
    recorded, tensors = t2t
    for case in recorded["sglang_low_confidence"]["cases"]:
        ids, logits = tensors[f"{case['tensor']}.block_ids"], tensors[f"{case['tensor']}.logits"]
        masked = ids == recorded["mask_id"]
        scores = scored(logits)
        filled = fill(scores, masked, RuleOptions("threshold", threshold=case["threshold"]))
        assert np.where(filled, scores.token, ids).tolist() == case["new_ids"]
        assert (~masked.any(1)).tolist() == case["done_before_step"]
