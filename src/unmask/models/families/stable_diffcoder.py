"""Stable-DiffCoder: Llama, block-causal, no shift."""

from __future__ import annotations

from typing import Any

from unmask.models.families import llama
from unmask.models.family import Family

MASK, BLOCK = 5, 4  # where config.json does not say


def read(raw: dict[str, Any]) -> dict[str, Any]:
    own = {"layout": "block_causal", "block_length": raw.get("block_size", BLOCK)}
    return {**llama.read(raw), **own, "mask_token_id": raw.get("mask_token_id", MASK)}


FAMILY = Family(
    name="Stable-DiffCoder",
    model_types=(),  # its model_type is plain "llama"
    architectures=("StableDiffcoderForCausalLM",),
    read=read,
    names=llama.names,
    defaults={"rule": "threshold", "threshold": 0.9},
)
