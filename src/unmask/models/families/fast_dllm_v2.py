"""Fast-dLLM v2: Qwen2.5, block-causal, with a head shifted by one."""

from __future__ import annotations

from typing import Any

from unmask.models.families import llama
from unmask.models.family import Family

MASK = 151665  # where config.json does not say


def read(raw: dict[str, Any]) -> dict[str, Any]:
    own = {"qkv_bias": True, "shift": True, "layout": "block_causal", "block_length": raw.get("bd_size", 32)}
    return {**llama.read(raw), **own, "mask_token_id": raw.get("mask_token_id", MASK)}


FAMILY = Family(
    name="Fast-dLLM v2",
    model_types=("Fast_dLLM_Qwen",),
    architectures=("Fast_dLLM_QwenForCausalLM",),
    read=read,
    names=llama.names,
    defaults={"rule": "threshold", "threshold": 0.9},
)
