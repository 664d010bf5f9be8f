"""Files of cases that need no model, or one forward at most: which case is checked by what.

A file has its cases under "cases", or in sections that each have some; where a case has a column for each of
several references, every column is checked on its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from conformance.checks import indel, rules, sampling_rules
from conformance.checks.checks import Check, not_checked, perform, unequal
from conformance.checks.outcome import Outcome
from conformance.checks.rules import Case, Tensors
from unmask.decoding.budget import ScheduleName, plan

CaseCheck = Callable[[Case, Tensors, int], str]


def schedule(name: ScheduleName, reference: str, case: Case, tensors: Tensors, mask_id: int) -> str:
    """Tokens per step of one reference against what ours has due; dllm leaves steps out that write nothing."""
    counts = plan(name, case["masked"], case["steps"])
    return unequal([n for n in counts if n or not reference.startswith("dllm")], case[reference])


CHECKS: dict[str, CaseCheck] = {
    "commit_rules.threshold": rules.commit_rule,
    "commit_rules.factor": rules.commit_rule,
    "commit_rules.quota": rules.commit_rule,
    "entropy_bound.transformers_accept_canvas": rules.accept_canvas,
    "entropy_bound.diffusers_entropy_bound": rules.accepted_index,
    "entropy_bound.stop_criterion": rules.stop_criterion,
    "entropy_bound.temperature": rules.warmed,
    "indel.sglang_joint_threshold_indel": indel.revision,
    "t2t.sglang_low_confidence": rules.low_confidence,
    "t2t.sglang_joint_threshold": rules.joint_threshold,
    "t2t.diffusers_block_refinement": rules.block_refinement,
    "schedules.llada": partial(schedule, "even", "llada"),
    "schedules.dllm_linear": partial(schedule, "linear", "dllm_linear"),
    "schedules.dllm_cosine": partial(schedule, "cosine", "dllm_cosine"),
    "schedules.dream": partial(schedule, "timesteps", "dream"),
    "sampling_rules.filters.dream": partial(sampling_rules.survivors, "dream"),
    "sampling_rules.filters.sdar": partial(sampling_rules.survivors, "sdar"),
    "sampling_rules.filters.llada2": partial(sampling_rules.survivors, "llada2"),
    "sampling_rules.filters.bd3lms": sampling_rules.nucleus_survivors,
    "sampling_rules.gumbel": sampling_rules.gumbel,
    "sampling_rules.dream_confidence": sampling_rules.dream_confidence,
}
INPUTS = {"schedules": ("masked", "steps"), "sampling_rules.filters": ("top_k", "top_p")}  # other columns: references


def outcomes(folder: str, stem: str, recorded: dict[str, Any], tensors: Tensors) -> list[Outcome]:
    """Checks every case of a file; what nothing here can check is said to be not checked."""
    out = []
    for name, cases in [*groups(stem, recorded), *warmed_logits(stem, tensors)]:
        check, mask_id = CHECKS.get(name), recorded.get("mask_id", -1)
        if check is None:
            out.append(not_checked(folder, "rule", name, f"nothing here to check its {len(cases)} cases with"))
            continue
        for i, case in enumerate(cases):
            out.append(perform(folder, Check("rule", f"{name}[{i}]", partial(check, case, tensors, mask_id))))
    return out


def groups(stem: str, recorded: dict[str, Any]) -> Iterator[tuple[str, list[Case]]]:
    """Cases that one check is for, by name."""
    found = {stem: recorded} | {f"{stem}.{key}": part for key, part in recorded.items() if isinstance(part, dict)}
    for name, part in found.items():
        cases = part.get("cases")
        if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
            continue
        if name in INPUTS:
            for reference in sorted({key for case in cases for key in case} - set(INPUTS[name])):
                yield f"{name}.{reference}", [case for case in cases if reference in case]
        elif stem == "commit_rules":
            for rule in sorted({str(case.get("rule")) for case in cases}):
                yield f"{name}.{rule}", [case for case in cases if str(case.get("rule")) == rule]
        else:
            yield name, cases


def warmed_logits(stem: str, tensors: Tensors) -> Iterator[tuple[str, list[Case]]]:
    """Cases that only tensors' names tell of: NAME.temperature_stepN.logits, NAME.logits with N steps left."""
    found = [(re.fullmatch(r"(.+)\.temperature_step(\d+)\.logits", name), name) for name in sorted(tensors)]
    cases = [{"logits": f"{m[1]}.logits", "tensor": name, "steps_left": int(m[2])} for m, name in found if m]
    if cases:
        yield f"{stem}.temperature", cases
