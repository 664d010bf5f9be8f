"""Llama and what is built like it (SmolLM2): plain autoregressive checkpoints, a base to adapt and a judge."""

from __future__ import annotations

from typing import Any

from unmask.errors import UnmaskError
from unmask.models.families import llama
from unmask.models.family import Family


def read(raw: dict[str, Any]) -> dict[str, Any]:
    for key in ("rope_scaling", "rope_parameters"):
        rope = raw.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
        if kind != "default":
            raise UnmaskError(f"model config: {key} of type {kind!r:.40} is not supported; use a model without it")
    if raw.get("hidden_act", "silu") != "silu":
        raise UnmaskError(f"model config: hidden_act {raw['hidden_act']!r:.40} is not supported; Llama has 'silu'")
    return {**llama.read(raw), "layout": "causal", "shift": True}


FAMILY = Family(
    name="Llama",
    model_types=(),  # diffusion models share the model_type "llama"; the architecture decides
    architectures=("LlamaForCausalLM",),
    read=read,
    names=llama.names,
    borrows_mask=True,
)
