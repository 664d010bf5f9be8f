"""Insertions and deletions against recorded runs of SGLang's JointThresholdInDel, step by step on given logits."""

from __future__ import annotations

import numpy as np

from conformance.checks.checks import unequal
from conformance.checks.rules import Case, Tensors
from unmask.canvas import Array, moved
from unmask.decoding.methods.edit import Controls, Parameters, Revision
from unmask.decoding.rules import RuleOptions


def revision(case: Case, tensors: Tensors, mask_id: int) -> str:
    """The block after every step, from logits [steps, W, V]; a run ends where a step is the last."""
    logits, ids = tensors[f"{case['tensor']}.logits"], list(case["block_ids"])
    controls = Controls(case["delete_id"], case["split_id"])
    given = np.arange(len(ids)) < case["prompt_length"]
    rule = RuleOptions("token_edit", threshold=case["threshold"])
    budget = Parameters(editing_threshold=case["edit_threshold"], max_post_steps=case["max_post_edit_steps"])
    own = Revision([token == mask_id and not frozen for token, frozen in zip(ids, given, strict=True)])
    blocks = []
    for step in logits:
        p = step.softmax(-1).double().numpy()
        p[:, mask_id] = -1  # ours never proposes it

        def second(place: int, forbidden: set[int], p: Array = p) -> tuple[int, float]:
            rest = p[place].copy()
            rest[[mask_id, *forbidden]] = -1
            return int(rest.argmax()), float(rest.max())

        masked = (np.array(ids) == mask_id) & ~given
        change = own.step(np.array(ids), masked, given, p.argmax(1), p.max(1), second, controls, rule, budget)
        gone, pushed = (set(np.flatnonzero(x).tolist()) for x in (change.deleted, change.inserted))
        ids = moved(np.where(change.written, change.tokens, ids).tolist(), gone, pushed, len(ids), mask_id)
        blocks.append(ids)
        if own.finished:
            break
    return unequal(blocks, case["blocks_after_each_step"])
