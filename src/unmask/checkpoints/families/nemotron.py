"""Nemotron-Labs-Diffusion (arXiv 2607.05722): Ministral 3 with one head for AR and diffusion, no shift."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family, Names
from unmask.models.config import ModelConfig


def read(raw: dict[str, Any]) -> dict[str, Any]:
    fields = llama.read(raw)
    rope = raw.get("rope_parameters") or raw.get("rope_scaling")
    if isinstance(rope, dict) and rope.get("llama_4_scaling_beta"):
        # queries are scaled by their position, by 1 up to here; longer texts are not read
        trained = rope.get("original_max_position_embeddings")
        longest = fields["max_length"]
        if isinstance(trained, int) and isinstance(longest, int):
            fields["max_length"] = min(trained, longest)
    return fields


def names(config: ModelConfig) -> Names:
    return llama.names(config, "encoder.", "diffusion_head")


FAMILY = Family(
    name="Nemotron-Labs-Diffusion",
    model_types=("nemotron_labs_diffusion",),
    architectures=("NemotronLabsDiffusionModel",),
    read=read,
    names=names,
    kind="B",
    defaults={"rule": "threshold", "threshold": 0.9, "block_length": 32},
    mask=100,
    eos=11,
    limits="decoded over the whole canvas, not after a causal prefix as it was trained; its own AR and "
    "self-speculation modes are not there; texts up to the length before stretching (16,384)",
)
