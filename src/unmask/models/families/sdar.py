"""SDAR and TraDo, dense and with experts: Qwen3, block-causal, no shift."""

from __future__ import annotations

from typing import Any

from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.families import llama
from unmask.models.family import Family, Names


def read(raw: dict[str, Any]) -> dict[str, Any]:
    block = {"layout": "block_causal", "block_length": raw.get("block_size") or 4}
    fields = {**llama.read(raw), "qk_norm": True, "mask_in_softmax": True, **block}
    if raw.get("num_experts") is None:
        return fields
    if raw.get("decoder_sparse_step", 1) != 1 or raw.get("mlp_only_layers"):
        raise UnmaskError("model config: SDAR-MoE is read with experts in every layer (decoder_sparse_step 1)")
    return {
        **fields,
        "num_experts": raw["num_experts"],
        "experts_per_token": raw.get("num_experts_per_tok"),
        "expert_size": raw.get("moe_intermediate_size"),
        "router_normalise": raw.get("norm_topk_prob", False),
    }


def names(config: ModelConfig) -> Names:
    return llama.expert_names(config) if config.num_experts else llama.names(config)


FAMILY = Family(
    name="SDAR",
    model_types=("sdar", "sdar_moe"),
    architectures=("SDARForCausalLM", "SDARMoeForCausalLM"),
    read=read,
    names=names,
    kind="B",
    defaults={
        "rule": "threshold",
        "threshold": 0.9,
        "strict": True,
        "schedule": "block",
        "confidence_dtype": "native",
        "whole_blocks": True,
    },
    mask=151669,
    eos=151643,
    turn=151645,  # <|im_end|>
)
