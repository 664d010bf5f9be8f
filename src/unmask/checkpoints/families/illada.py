"""iLLaDA (arXiv 2606.25331): LLaDA's successor under Llama's names, grouped heads, bidirectional, no shift."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family


def read(raw: dict[str, Any]) -> dict[str, Any]:
    fields = {**llama.read(raw), "mask_in_softmax": True}
    if raw.get("layer_norm_eps") is not None:  # then it has LayerNorm with a bias instead
        fields |= {"norm": "layer", "norm_bias": True, "norm_eps": raw["layer_norm_eps"]}
    return fields


FAMILY = Family(
    name="iLLaDA",
    model_types=("illada",),
    architectures=("ILLaDAForCausalLM",),
    read=read,
    names=llama.names,
    defaults={"rule": "quota", "convention": "llada", "block_length": 32},
    mask=5,  # <[MASK]>
    eos=2,
)
