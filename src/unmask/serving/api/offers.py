"""Which fields a model reads in each mode and under each rule: found by asking the checks that requests pass."""

from __future__ import annotations

from typing import Any, get_args

from unmask.decoding.request import MODES
from unmask.decoding.rules import RuleName
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.serving.api.errors import APIError
from unmask.serving.api.planner import Planner, can_fill
from unmask.serving.api.schema import CompletionRequest, Gap, InfillRequest

TRIED: dict[str, Any] = {  # a value of each field that is fine wherever the field is read at all
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 8,
    "seed": 1,
    "block_length": 4,
    "max_denoising_steps": 2,
    "threshold": 0.5,
    "editing_threshold": 0.5,
    "factor": 1.0,
    "entropy_bound": 0.1,
    "remask_budget": 1,
}


def offers(planner: Planner, name: str, lm: DiffusionLM) -> list[dict[str, Any]]:
    """For each mode and rule of a model, and for filling, the fields that a request may carry.

    `rule` is None where no rule is read; an entry with a rule holds for requests that name it. No forward is run.
    """

    def taken(fill: bool, **fields: Any) -> bool:
        try:
            if fill:
                planner.infill(InfillRequest(model=name, segments=[Gap(mask=1)], **fields))
            else:
                planner.completion(CompletionRequest(model=name, prompt=[0], max_tokens=2, **fields))
        except (APIError, UnmaskError):
            return False
        return True

    ways = [(False, {"mode": mode}) for mode in MODES[lm.config.layout]]
    out = []
    for fill, mode in [*ways, (True, {})] if can_fill(lm) else ways:
        rules: list[dict[str, Any]] = [{"rule": rule} for rule in get_args(RuleName)]
        for rule in [rule for rule in rules if taken(fill, **mode, **rule)] or [{}]:
            tried = {field: value for field, value in TRIED.items() if not (fill and field == "block_length")}
            fields = [field for field, value in tried.items() if taken(fill, **mode, **rule, **{field: value})]
            out.append({"fill": fill, "mode": mode.get("mode"), "rule": rule.get("rule"), "fields": fields})
    return out
