"""DiffuLLaMA (arXiv 2410.17891): Llama 2 made bidirectional, with a head shifted by one, under Llama's own names."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family


def recognises(raw: dict[str, Any], hint: str) -> bool:
    """Its config.json is that of any Llama: where it came from, or the folder's name, tells."""
    return raw.get("model_type") == "llama" and "diffullama" in hint


def read(raw: dict[str, Any]) -> dict[str, Any]:
    return {**llama.read(raw), "shift": True}


FAMILY = Family(
    name="DiffuLLaMA",
    model_types=(),
    architectures=("DiffuLlamaForCausalLM",),
    read=read,
    names=llama.names,
    recognises=recognises,
    defaults={"rule": "random", "max_denoising_steps": 64, "temperature": 0.9, "top_p": 0.9},
    mask=811,  # a piece of Llama's vocabulary, used anew
    eos=2,
)
