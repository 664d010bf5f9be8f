"""Names and sizes that the Llama- and Qwen-shaped families share."""

from __future__ import annotations

from typing import Any

from unmask.models.config import ModelConfig
from unmask.models.family import Names


def names(config: ModelConfig) -> Names:
    """The Hugging Face Llama/Qwen names."""
    layer, ours = "model.layers.{i}.", "blocks.{i}."
    table = [
        ("embedding.weight", "model.embed_tokens.weight"),
        ("norm.weight", "model.norm.weight"),
        (ours + "norm1.weight", layer + "input_layernorm.weight"),
        (ours + "norm2.weight", layer + "post_attention_layernorm.weight"),
    ]
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        table.append((f"{ours}mixer.{part}.weight", f"{layer}self_attn.{part}.weight"))
        if config.out_bias if part == "o_proj" else config.qkv_bias:
            table.append((f"{ours}mixer.{part}.bias", f"{layer}self_attn.{part}.bias"))
    for part in ("gate_proj", "up_proj", "down_proj"):
        table.append((f"{ours}mlp.{part}.weight", f"{layer}mlp.{part}.weight"))
        if config.mlp_bias:
            table.append((f"{ours}mlp.{part}.bias", f"{layer}mlp.{part}.bias"))
    if config.qk_norm:
        table += [(f"{ours}mixer.{p}_norm.weight", f"{layer}self_attn.{p}_norm.weight") for p in "qk"]
    if not config.tie_embeddings:
        table.append(("head.weight", "lm_head.weight"))
    return table


def read(raw: dict[str, Any]) -> dict[str, Any]:
    """ModelConfig fields from the keys that Llama, Qwen2 and Qwen3 configs have in common."""
    rope = raw.get("rope_parameters") or {}
    theta = raw.get("rope_theta", rope.get("rope_theta") if isinstance(rope, dict) else None)
    eos = raw.get("eos_token_id")
    return {
        "vocab_size": raw.get("vocab_size"),
        "hidden_size": raw.get("hidden_size"),
        "num_layers": raw.get("num_hidden_layers"),
        "num_heads": raw.get("num_attention_heads"),
        "num_kv_heads": raw.get("num_key_value_heads") or 0,
        "head_dim": raw.get("head_dim") or 0,
        "intermediate_size": raw.get("intermediate_size"),
        "max_length": raw.get("max_position_embeddings"),
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        "rope_theta": 10000.0 if theta is None else theta,
        "qkv_bias": raw.get("attention_bias") or False,
        "out_bias": raw.get("attention_bias") or False,
        "mlp_bias": raw.get("mlp_bias") or False,
        "tie_embeddings": raw.get("tie_word_embeddings", False),
        "mask_token_id": raw.get("mask_token_id"),
        "eos_token_id": eos[0] if isinstance(eos, list) and eos else eos,
        "bos_token_id": raw.get("bos_token_id"),
        "pad_token_id": raw.get("pad_token_id"),
    }
