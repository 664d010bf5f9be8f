"""Llama and what is built like it (SmolLM2): plain autoregressive checkpoints, a base to adapt and a judge."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family


def read(raw: dict[str, Any]) -> dict[str, Any]:
    return {**llama.read(raw), "layout": "causal", "shift": True}


FAMILY = Family(
    name="Llama",
    model_types=(),  # diffusion models share the model_type "llama"; the architecture decides
    architectures=("LlamaForCausalLM",),
    read=read,
    names=llama.names,
    kind="AR",
    borrows_mask=True,
)
