"""SDAR and TraDo (dense): Qwen3, block-causal, no shift."""

from __future__ import annotations

from typing import Any

from unmask.models.families import llama
from unmask.models.family import Family

MASK = 151669  # where config.json does not say


def read(raw: dict[str, Any]) -> dict[str, Any]:
    own = {"qk_norm": True, "layout": "block_causal", "block_length": raw.get("block_size", 4)}
    return {**llama.read(raw), **own, "mask_token_id": raw.get("mask_token_id", MASK)}


FAMILY = Family(
    name="SDAR",
    model_types=("sdar",),
    architectures=("SDARForCausalLM",),
    read=read,
    names=llama.names,
    defaults={"rule": "threshold", "threshold": 0.9},
)
