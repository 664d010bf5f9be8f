"""Names and sizes that the Llama- and Qwen-shaped families share."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import rope
from unmask.checkpoints.families.family import Names, require
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

NOTHING: tuple[Any, ...] = ()  # a key that is refused whatever it says
# what other networks of this build have, and ours does not: keys, and their values that change nothing
UNREAD: dict[str, Any] = {
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "scale_emb"), (1, 1.0)),
    **dict.fromkeys(("rotary_pct", "rope_ratio"), (1, 1.0)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"), NOTHING),
    **dict.fromkeys(("attention_multiplier", "scale_depth", "rotary_dim", "attention_chunk_size"), NOTHING),
    **dict.fromkeys(("use_logn_attn", "use_dynamic_ntk", "alibi", "use_parallel_residual", "parallel_attn"), False),
}


def names(config: ModelConfig, root: str = "model.", head: str = "lm_head") -> Names:
    """The Hugging Face Llama/Qwen names."""
    layer = root + "layers.{i}."
    ours = "blocks.{i}."
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
    layer = "model.layers.{i}.mlp."
    ours = "blocks.{i}.mlp."
    table.append((ours + "router.weight", layer + "gate.weight"))
    for part in ("gate_proj", "up_proj", "down_proj"):
        for e in range(config.num_experts):
            table.append((f"{ours}experts.{e}.{part}.weight", f"{layer}experts.{e}.{part}.weight"))
        if config.shared_expert_size:
            table.append((f"{ours}shared.{part}.weight", f"{layer}{shared}.{part}.weight"))
    return table


def read(raw: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    """ModelConfig fields from the keys that Llama, Qwen2 and Qwen3 configs have in common.

    partial: the family may rotate a part of each head only.
    """
    require(raw, "this family", hidden_act=("silu", "swish"), use_sliding_window=False, **UNREAD)
    eos = raw.get("eos_token_id")
    window = raw.get("sliding_window")
    layers = raw.get("layer_types")
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
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        **rope.read(raw, partial),
        "qkv_bias": raw.get("attention_bias") or False,
        "out_bias": raw.get("attention_bias") or False,
        "mlp_bias": raw.get("mlp_bias") or False,
        "tie_embeddings": raw.get("tie_word_embeddings", False),
        "mask_token_id": raw.get("mask_token_id"),
        "eos_token_id": eos[0] if isinstance(eos, list) and eos else eos,
        "bos_token_id": raw.get("bos_token_id"),
        "pad_token_id": raw.get("pad_token_id"),
    }
