"""SDAR and TraDo, dense and with experts: Qwen3, block-causal, no shift."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family, Names
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig


def read(raw: dict[str, Any]) -> dict[str, Any]:
    block = {"layout": "block_causal", "block_length": raw.get("block_size") or 4}
    return {**read_qwen3(raw), "mask_in_softmax": True, **block}


def read_qwen3(raw: dict[str, Any]) -> dict[str, Any]:
    """Of Qwen3, dense or with experts."""
    fields = {**llama.read(raw), "qk_norm": True}
    experts = raw.get("num_experts", raw.get("num_local_experts"))  # the newer spelling
    if experts is None:
        return fields
    if raw.get("decoder_sparse_step", 1) != 1 or raw.get("mlp_only_layers"):
        raise UnmaskError("model config: Qwen3 is read with experts in every layer (decoder_sparse_step 1)")
    return {
        **fields,
        "num_experts": experts,
        "experts_per_token": raw.get("num_experts_per_tok"),
        "expert_size": raw.get("moe_intermediate_size"),
        "router_normalise": raw.get("norm_topk_prob", False),
    }


def names(config: ModelConfig) -> Names:
    return llama.expert_names(config) if config.num_experts else llama.names(config)


def write(config: ModelConfig) -> dict[str, Any]:
    """config.json as `read` reads it; what SDAR has no key for is left out."""
    raw = {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": config.tie_embeddings,
        "block_size": config.block_length,
        "mask_token_id": config.mask_token_id,
        "eos_token_id": config.eos_token_id,
        "bos_token_id": config.bos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    if config.num_experts:
        raw |= {"architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe", "decoder_sparse_step": 1}
        raw |= {"num_experts": config.num_experts, "num_experts_per_tok": config.experts_per_token}
        raw |= {"moe_intermediate_size": config.expert_size, "norm_topk_prob": config.router_normalise}
    return raw


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
        "schedule": "block",
        "convention": "sdar",
    },
    mask=151669,
    eos=151643,
    turn=151645,  # <|im_end|>
)
