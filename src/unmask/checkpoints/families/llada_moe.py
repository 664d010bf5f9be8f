"""LLaDA-MoE: OLMoE's shape, softmax router, bidirectional, no shift."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family, require


def read(raw: dict[str, Any]) -> dict[str, Any]:
    require(raw, "LLaDA-MoE", moe_router_score_function="softmax", clip_qkv=())
    return {
        **llama.read(raw, partial=True),
        "intermediate_size": raw.get("dense_intermediate_size"),
        "qk_norm": raw.get("qk_layernorm", True),
        "num_experts": raw.get("num_experts") or None,  # none is refused: a dense LLaDA has other names
        "experts_per_token": raw.get("num_experts_per_tok"),
        "expert_size": raw.get("expert_intermediate_size"),
        "shared_expert_size": raw.get("shared_expert_intermediate_size") or 0,
        "router_normalise": False,  # hard-coded in the reference, whatever norm_topk_prob says
        "mask_in_softmax": True,
    }


FAMILY = Family(
    name="LLaDA-MoE",
    model_types=("lladamoe",),
    architectures=("LLaDAMoEModelLM",),
    read=read,
    names=llama.expert_names,
    defaults={"rule": "quota", "convention": "llada", "block_length": 32},
    mask=156895,
    eos=156892,
)
