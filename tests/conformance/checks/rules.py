"""Commit rules against recorded steps of public samplers. Every check takes a case, its file's tensors and mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from conformance.checks.checks import difference, unequal
from unmask.canvas import Array
from unmask.decoding.budget import StepBudget, plan
from unmask.decoding.convention import Convention
from unmask.decoding.methods.edit import edits, progress
from unmask.decoding.methods.renoise import RenoiseOptions, accept, settled, temperature
from unmask.decoding.rules import RULES, RuleOptions
from unmask.decoding.sampling import Scores, propose

Case = dict[str, Any]
Tensors = dict[str, Tensor]


def greedy(logits_BLV: Array, masked: Array, banned: int | None = None) -> Scores:
    """Scores of the masked positions at temperature 0, on the grid."""
    flat = logits_BLV[masked]
    zeros = np.zeros(len(flat))
    scores = propose(flat, zeros, zeros.astype(np.int64), zeros + 1, zeros, zeros + 0.5, banned)
    row, position = masked.nonzero()
    return scores.grid(row, position, (masked.shape[0], masked.shape[1]))


def step_budget(masked: Array, count: int) -> StepBudget:
    """The same number of tokens due of every row."""
    return StepBudget(np.full(len(masked), count), np.ones(len(masked)))


def commit_rule(case: Case, tensors: Tensors, mask_id: int) -> str:
    """Fast-dLLM's threshold and factor, and LLaDA's quota: a `value` is the parameter or a number of tokens."""
    canvas, logits = (tensors[f"{case['tensor']}.{part}"].numpy() for part in ("x", "logits"))
    masked, name, value = canvas == mask_id, case["rule"], case["value"]
    scores = greedy(logits, masked, banned=mask_id)
    asked = step_budget(masked, value if name == "quota" else 1)
    chosen = RULES[name](scores, masked, asked, RuleOptions(name, **({} if name == "quota" else {name: value})))
    after = np.where(chosen, scores.token, canvas)
    return unequal(chosen[0].nonzero()[0].tolist(), case["committed_positions"]) or unequal(
        after[0].tolist(), case["x_after"]
    )


def entropies(logits_BLV: Array, warmth: float = 1.0) -> Array:
    """Of what tokens are sampled from at a temperature, nats [B, L]."""
    flat = logits_BLV.reshape(-1, logits_BLV.shape[-1])
    zeros = np.zeros(len(flat))
    scores = propose(flat, zeros + warmth, zeros.astype(np.int64), zeros + 1, zeros + 0.5, zeros, None)
    return scores.entropy.reshape(logits_BLV.shape[:2])


def accept_canvas(case: Case, tensors: Tensors, mask_id: int) -> str:
    """transformers' acceptance; what is not accepted keeps its token here (renoising is another call)."""
    part = case["tensor"]
    logits, bound = tensors[f"{part}.logits"].numpy(), case["entropy_bound"]
    chosen, everything = accept(entropies(logits), bound), np.ones(logits.shape[:2], bool)
    options = RuleOptions("entropy_bound", entropy_bound=bound)
    as_rule = RULES["entropy_bound"](greedy(logits, everything), everything, step_budget(everything, 1), options)
    if (as_rule != chosen).any():
        return "the rule for masks and that for noise disagree"
    proposed, current = (tensors[f"{part}.{name}_canvas"].numpy() for name in ("denoiser", "current"))
    return unequal(chosen.astype(int).tolist(), case["accepted_mask"]) or unequal(
        np.where(chosen, proposed, current).tolist(), case["accepted_canvas"]
    )


def accepted_index(case: Case, tensors: Tensors, mask_id: int) -> str:
    """diffusers' acceptance: logits over a temperature that falls from t_max to t_min."""
    steps = case["num_inference_steps"]
    warmth = temperature(
        steps - case["timestep"], RenoiseOptions(max_steps=steps, t_min=case["t_min"], t_max=case["t_max"])
    )
    chosen = accept(entropies(tensors[f"{case['tensor']}.logits"].numpy(), warmth), case["entropy_bound"])
    return unequal(chosen.astype(int).tolist(), case["accepted_index"])


def warmed(case: Case, tensors: Tensors, mask_id: int) -> str:
    """transformers' temperature with so many steps left, of its default schedule."""
    options = RenoiseOptions()
    ours = tensors[case["logits"]].double() / temperature(case["steps_left"], options)
    apart = difference(ours, tensors[case["tensor"]])
    return "" if apart < 1e-5 else f"logits differ by {apart:.1e}"


def stop_criterion(case: Case, tensors: Tensors, mask_id: int) -> str:
    """transformers' end of a canvas, called again and again with the same one."""
    best, logits = (tensors[f"{case['tensor']}.{part}"].numpy() for part in ("argmax", "logits"))
    thresholds = {name: case[name] for name in ("confidence_threshold", "stability_threshold")}
    options, calls = RenoiseOptions(**thresholds), range(len(case["calls"]))
    rows = zip(best, entropies(logits), strict=True)
    ours = [[settled(row, [row] * n, spread, options) for n in calls] for row, spread in rows]
    return unequal([list(call) for call in zip(*ours, strict=True)], case["calls"])


def low_confidence(case: Case, tensors: Tensors, mask_id: int) -> str:
    """sglang's LowConfidence, which fills masks of the prompt as well: all above the threshold, or the best."""
    canvas, logits = (tensors[f"{case['tensor']}.{part}"].numpy() for part in ("block_ids", "logits"))
    masked = canvas == mask_id
    options = RuleOptions("threshold", Convention(strict=True), threshold=case["threshold"])
    scores = greedy(logits, masked)
    chosen = RULES["threshold"](scores, masked, step_budget(masked, 1), options)
    return unequal((~masked.any(1)).tolist(), case["done_before_step"]) or unequal(
        np.where(chosen, scores.token, canvas).tolist(), case["new_ids"]
    )


def written(case: Case, tensors: Tensors, mask_id: int) -> tuple[Array, Array, Array]:
    """Ids, masks and tokens of the prompt of a recorded block, [B, L] each."""
    ids = tensors[f"{case['tensor']}.block_ids"].numpy()
    return ids, ids == mask_id, tensors[f"{case['tensor']}.prompt_mask"].numpy().astype(bool)


def block_refinement(case: Case, tensors: Tensors, mask_id: int) -> str:
    """diffusers' step: it fills masks of the prompt as well, and edits nothing at an editing_threshold of 0."""
    ids, masked, given = written(case, tensors, mask_id)
    steps, least = case["num_inference_steps"], min(case["timestep"], case["num_inference_steps"] - 1)
    editing = case["editing_threshold"] or 0.0
    options = RuleOptions("token_edit", threshold=case["threshold"])
    scores = greedy(tensors[f"{case['tensor']}.logits"].numpy(), np.ones_like(masked))
    budget = step_budget(masked, plan("block", ids.shape[1], steps)[least])
    filled = RULES["token_edit"](scores, masked, budget, options)
    edited = edits(ids, scores.token, scores.confidence, ~masked & ~given, editing, zero_edits=False)
    return (
        unequal([row.nonzero()[0].tolist() for row in filled], [sorted(row) for row in case["transfer"]])
        or unequal([row.nonzero()[0].tolist() for row in edited], [sorted(row) for row in case["edited"]])
        or unequal(np.where(filled | edited, scores.token, ids).tolist(), case["new_ids"])
    )


def joint_threshold(case: Case, tensors: Tensors, mask_id: int) -> str:
    """sglang's JointThreshold: it counts a step after its forward, so one beyond the budget changes nothing."""
    ids, masks, given = written(case, tensors, mask_id)
    options = RuleOptions("token_edit", threshold=case["threshold"])
    most = case["max_post_edit_steps"]
    logits = penalised(tensors[f"{case['tensor']}.logits"].numpy(), ids, case["penalty_lambda"])
    scores, masked = greedy(logits, np.ones_like(masks)), masks & ~given
    filled = RULES["token_edit"](scores, masked, step_budget(masked, 1), options)
    changed = filled | edits(ids, scores.token, scores.confidence, ~masks & ~given, case["edit_threshold"])
    before = np.full(len(ids), case["post_edit_steps_before"])
    finished, post_steps = progress(changed, np.asarray(masked.any(1)), before, most)
    changed &= post_steps[:, None] <= most
    return (
        unequal(np.where(changed, scores.token, ids).tolist(), case["new_ids"])
        or unequal(post_steps.tolist(), case["post_edit_steps_after"])
        or unequal(finished.tolist(), case["finished"])
    )


def penalised(logits: Array, ids: Array, penalty: float) -> Array:
    """Logits [B, L, V] with the token left of each position made less likely there (SGLang's penalty_lambda)."""
    out = logits.copy()
    row, position = np.indices(ids[:, 1:].shape)
    out[row, position + 1, ids[:, :-1]] -= penalty
    return out
