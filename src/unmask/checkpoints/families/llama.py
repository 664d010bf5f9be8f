"""Names and sizes that the Llama- and Qwen-shaped families share."""

from __future__ import annotations

import math
from typing import Any

from unmask.checkpoints.family import Names, require
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig


def names(config: ModelConfig, root: str = "model.", head: str = "lm_head") -> Names:
    """The Hugging Face Llama/Qwen names."""
    layer, ours = root + "layers.{i}.", "blocks.{i}."
    table = [
        ("embedding.weight", root + "embed_tokens.weight"),
        ("norm.weight", root + "norm.weight"),
        (ours + "norm1.weight", layer + "input_layernorm.weight"),
        (ours + "norm2.weight", layer + "post_attention_layernorm.weight"),
    ]
    if config.norm_bias:
        table += [(mine.replace("weight", "bias"), theirs.replace("weight", "bias")) for mine, theirs in table[1:]]
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
        table.append(("head.weight", f"{head}.weight"))
    return table


def expert_names(config: ModelConfig, shared: str = "shared_expert") -> Names:
    """As `names`, with experts in every layer's MLP (OLMoE, Qwen3-MoE)."""
    table = [pair for pair in names(config) if ".mlp." not in pair[0]]
    layer, ours = "model.layers.{i}.mlp.", "blocks.{i}.mlp."
    table.append((ours + "router.weight", layer + "gate.weight"))
    for part in ("gate_proj", "up_proj", "down_proj"):
        for e in range(config.num_experts):
            table.append((f"{ours}experts.{e}.{part}.weight", f"{layer}experts.{e}.{part}.weight"))
        if config.shared_expert_size:
            table.append((f"{ours}shared.{part}.weight", f"{layer}{shared}.{part}.weight"))
    return table


def read(raw: dict[str, Any]) -> dict[str, Any]:
    """ModelConfig fields from the keys that Llama, Qwen2 and Qwen3 configs have in common."""
    require(raw, "this family", hidden_act=("silu", "swish"), use_sliding_window=False)
    rope, eos = raw.get("rope_parameters") or {}, raw.get("eos_token_id")
    theta = raw.get("rope_theta")
    theta = rope.get("rope_theta") if theta is None and isinstance(rope, dict) else theta  # its newer place
    window, layers = raw.get("sliding_window"), raw.get("layer_types")
    if window is not None and "use_sliding_window" not in raw:
        raise UnmaskError(f"model config: sliding_window {window!r:.40} is not supported; every layer sees all tokens")
    if isinstance(layers, list) and any(kind != "full_attention" for kind in layers):
        raise UnmaskError(f"model config: layer_types {layers!r:.80} are not supported; every layer sees all tokens")
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
        "rope_yarn": yarn(raw),
        "qkv_bias": raw.get("attention_bias") or False,
        "out_bias": raw.get("attention_bias") or False,
        "mlp_bias": raw.get("mlp_bias") or False,
        "tie_embeddings": raw.get("tie_word_embeddings", False),
        "mask_token_id": raw.get("mask_token_id"),
        "eos_token_id": eos[0] if isinstance(eos, list) and eos else eos,
        "bos_token_id": raw.get("bos_token_id"),
        "pad_token_id": raw.get("pad_token_id"),
    }


def yarn(raw: dict[str, Any]) -> tuple[float, ...]:
    """ModelConfig.rope_yarn of rope_scaling or rope_parameters; empty without; other kinds raise UnmaskError."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = raw.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
        if kind == "yarn":
            return _yarn(rope, raw.get("max_position_embeddings"), key)
        if kind != "default":
            raise UnmaskError(f"model config: {key} of type {kind!r:.40} is not supported; use a model without it")
    return ()


def _yarn(rope: dict[str, Any], length: Any, key: str) -> tuple[float, ...]:
    names = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    standard = (None, length, 32.0, 1.0, 0.0, 0.0)
    values: list[Any] = [
        own if rope.get(name) is None else rope[name] for name, own in zip(names, standard, strict=True)
    ]
    values.append(rope.get("attention_factor") or 0.0)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < 1e9 for v in values):
        raise UnmaskError(f"model config: {key} {rope!r:.200} has an impossible value")
    factor, trained, fast, slow, scale, scale_all, given = (float(v) for v in values)

    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    both = temperature(scale) / temperature(scale_all) if scale and scale_all else temperature(1.0)
    return factor, trained, fast, slow, given or both
