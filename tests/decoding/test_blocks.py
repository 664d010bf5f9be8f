"""Every recorded run of a block-causal decoder: canvases before every forward, ids, forwards."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from conformance.checks.blocks import decode
from unmask import DiffusionLM
from unmask.errors import UnmaskError

HERE = Path(__file__).parent.parent / "conformance"
FAMILIES = ("sdar", "llada2_moe", "stable_diffcoder", "fast_dllm_v2", "a2d_qwen3")
DEVIATIONS = {
    "low_confidence_static_steps3_block8",
    "entropy_bounded_0.35_upstream_bug",
    "entropy_bounded_3.0_upstream_bug",
    "entropy_bounded_7.0_upstream_bug",
    "prompt_len_equals_block_upstream_bug",
}


@functools.cache
def model(family: str) -> DiffusionLM:
    return DiffusionLM.from_pretrained(HERE / family)


def cases() -> list[Any]:
    out = []
    for family in FAMILIES:
        recorded = json.loads((HERE / family / "generate.json").read_text())["cases"]
        recorded = [c for c in recorded if family != "a2d_qwen3" or "bd3lm" in c["sampler"]]
        out += [pytest.param(family, case, id=f"{family}-{case['name']}") for case in recorded]
    return out


@pytest.mark.parametrize(("family", "case"), cases())
def test_recorded_runs(family: str, case: dict[str, Any]) -> None:
    ours, recorded, deviation = decode(model(family), case, {})
    assert ours.differs_from(recorded) == ""
    assert len(ours.canvases or []) == len(recorded.canvases or [])
    assert bool(deviation) == (case["name"] in DEVIATIONS)


def test_a_field_that_is_not_read_is_refused() -> None:
    case = json.loads((HERE / "sdar" / "generate.json").read_text())["cases"][0]
    with pytest.raises(UnmaskError, match="repetition_penalty"):
        decode(model("sdar"), {**case, "repetition_penalty": 1.1}, {})
