"""Blocks against recorded runs of public reference decoders: canvases before every forward, ids, forwards.

Full canvases are in test_full_canvas.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask import DiffusionLM
from unmask.decoding.loop import Decoder
from unmask.decoding.request import Request
from unmask.decoding.rules import RuleOptions
from unmask.layout import Layout

FIXTURES = Path(__file__).parent.parent / "conformance"
SDAR = [
    "low_confidence_static_tail_prompt",
    "low_confidence_static_aligned_prompt",
    "low_confidence_static_short_prompt",
    "low_confidence_dynamic_0.85",
    "low_confidence_dynamic_0.3",
    "low_confidence_dynamic_0.5",
    "low_confidence_dynamic_0.6_block8",
    "low_confidence_dynamic_0.5_stop",
    "sequential",
    "sequential_steps2",
]
STABLE_DIFFCODER = ["threshold0.95", "threshold0.5", "quota", "quota_2_steps", "aligned_threshold0.5"]


def case(family: str, name: str) -> tuple[DiffusionLM, dict[str, Any]]:
    cases = json.loads((FIXTURES / family / "generate.json").read_text())["cases"]
    return DiffusionLM.from_pretrained(FIXTURES / family), next(c for c in cases if c["name"] == name)


@torch.inference_mode()
def canvases(decoder: Decoder) -> list[list[int]]:
    """The canvas before every forward and, last, the finished one."""
    seen = [decoder.canvas.ids[0].tolist()]
    seen += [decoder.canvas.ids[0].tolist() for _ in decoder.run()]
    return seen


def rule_of(recorded: dict[str, Any]) -> RuleOptions:
    if recorded.get("threshold") is not None:
        return RuleOptions("threshold", threshold=recorded["threshold"])
    strategy = recorded.get("remasking_strategy", "")
    if "dynamic" in strategy:
        return RuleOptions("threshold", threshold=recorded["confidence_threshold"])
    return RuleOptions("sequential" if strategy == "sequential" else "quota")


def block_decoder(lm: DiffusionLM, recorded: dict[str, Any], steps: int) -> Decoder:
    """Absolute blocks, the canvas rounded up to whole ones as the references do."""
    prompt, block = recorded["prompt_ids"][0], recorded["block_length"]
    length = -(-(len(prompt) + recorded["gen_length"]) // block) * block
    ids = prompt + [recorded["mask_id"]] * (length - len(prompt))
    given = [True] * len(prompt) + [False] * (length - len(prompt))
    request = Request(ids, given, rule=rule_of(recorded), block_length=block, max_denoising_steps=steps)
    eos = frozenset(recorded.get("stopping_criteria_idx") or [])
    return Decoder(lm.backend, Layout("block_causal", block), [request], eos)


@pytest.mark.parametrize("name", SDAR)
def test_sdar(name: str) -> None:
    lm, recorded = case("sdar", name)
    decoder = block_decoder(lm, recorded, recorded["denoising_steps"])
    *before, final = canvases(decoder)
    denoised = [f for f in recorded["forwards"] if not f["store_kv"]]
    if recorded["stopping_criteria_idx"]:  # we stop once all before the end is written, they at the block's end
        denoised = denoised[: len(before)]
    for canvas, forward in zip(before, denoised, strict=True):
        start = forward["start"]
        assert canvas[start : start + len(forward["input_ids"])] == forward["input_ids"]
    if not recorded["stopping_criteria_idx"]:
        assert final == recorded["final_ids"][0]
        # their extra forward per finished block only stores keys and values; ours rides on the next step
        assert decoder.steps == [recorded["denoise_passes"]]


@pytest.mark.parametrize("name", STABLE_DIFFCODER)
def test_stable_diffcoder(name: str) -> None:
    lm, recorded = case("stable_diffcoder", name)
    blocks = recorded["gen_length"] // recorded["block_length"]
    decoder = block_decoder(lm, recorded, recorded["steps"] // blocks)
    final = canvases(decoder)[-1]
    expected = recorded["final_ids"][0]
    assert final[: len(expected)] == expected
