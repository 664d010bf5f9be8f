"""LLaDA-MoE: OLMoE's shape, softmax router, bidirectional, no shift."""

from __future__ import annotations

from typing import Any

from unmask.models.config import ModelConfig
from unmask.models.families import llama
from unmask.models.family import Family, Names

MASK = 156895  # where config.json does not say


def read(raw: dict[str, Any]) -> dict[str, Any]:
    fraction = raw.get("partial_rotary_factor")
    return {
        **llama.read(raw),
        "intermediate_size": raw.get("dense_intermediate_size"),
        "rope_fraction": 1.0 if fraction is None else fraction,
        "qk_norm": raw.get("qk_layernorm", True),
        "num_experts": raw.get("num_experts"),
        "experts_per_token": raw.get("num_experts_per_tok"),
        "expert_size": raw.get("expert_intermediate_size"),
        "shared_expert_size": raw.get("shared_expert_intermediate_size") or 0,
        "router_normalise": False,  # hard-coded in the reference, whatever norm_topk_prob says
        "mask_token_id": raw.get("mask_token_id", MASK),
    }


def names(config: ModelConfig) -> Names:
    table = [pair for pair in llama.names(config) if ".mlp." not in pair[0]]
    layer, ours = "model.layers.{i}.mlp.", "blocks.{i}.mlp."
    table.append((ours + "router.weight", layer + "gate.weight"))
    for part in ("gate_proj", "up_proj", "down_proj"):
        for e in range(config.num_experts):
            table.append((f"{ours}experts.{e}.{part}.weight", f"{layer}experts.{e}.{part}.weight"))
        if config.shared_expert_size:
            table.append((f"{ours}shared.{part}.weight", f"{layer}shared_expert.{part}.weight"))
    return table


FAMILY = Family(
    name="LLaDA-MoE",
    model_types=("lladamoe",),
    architectures=("LLaDAMoEModelLM",),
    read=read,
    names=names,
    defaults={"rule": "quota", "block_length": 32},
)
