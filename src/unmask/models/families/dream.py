"""Dream, Dream-Coder and DiffuCoder: Qwen2 made bidirectional, with a head shifted by one."""

from __future__ import annotations

from typing import Any

from unmask.models.families import llama
from unmask.models.family import Family

MASK = 151666  # where config.json does not say


def read(raw: dict[str, Any]) -> dict[str, Any]:
    return {**llama.read(raw), "qkv_bias": True, "shift": True, "mask_token_id": raw.get("mask_token_id", MASK)}


FAMILY = Family(
    name="Dream",
    model_types=("Dream",),
    architectures=("DreamModel",),
    read=read,
    names=llama.names,
    defaults={"rule": "margin", "temperature": 0.2, "top_p": 0.95},
)
