"""Stable-DiffCoder: Llama, block-causal, no shift."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family


def read(raw: dict[str, Any]) -> dict[str, Any]:
    own = {"mask_in_softmax": True, "layout": "block_causal", "block_length": raw.get("block_size") or 4}
    return {**llama.read(raw), **own}


FAMILY = Family(
    name="Stable-DiffCoder",
    model_types=(),  # its model_type is plain "llama"
    architectures=("StableDiffcoderForCausalLM",),
    read=read,
    names=llama.names,
    kind="B",
    defaults={"rule": "threshold", "threshold": 0.95},
    mask=5,
)
