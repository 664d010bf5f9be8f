"""LLaDA-8B and LLaDA-1.5 (arXiv 2502.09992): OLMo's code with Llama blocks, bidirectional, no shift."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families.family import Family, Names, require
from unmask.models.config import ModelConfig


def read(raw: dict[str, Any]) -> dict[str, Any]:
    shape = {"block_type": "llama", "activation_type": ("silu", "swiglu"), "layer_norm_type": "rms", "rope": True}
    off = ("alibi", "attention_layer_norm", "input_emb_norm", "scale_logits", "bias_for_layer_norm")
    require(raw, "LLaDA", **shape, **dict.fromkeys(off, False), rope_scaling=(), rope_parameters=())
    bias = raw.get("include_bias", False)
    qkv_bias = raw.get("include_qkv_bias")
    return {
        "vocab_size": raw.get("embedding_size") or raw.get("vocab_size"),
        "hidden_size": raw.get("d_model"),
        "num_layers": raw.get("n_layers"),
        "num_heads": raw.get("n_heads"),
        "num_kv_heads": raw.get("n_kv_heads") or 0,
        "intermediate_size": raw.get("mlp_hidden_size"),
        "max_length": raw.get("max_sequence_length"),
        "norm_eps": raw.get("rms_norm_eps", 1e-5),
        "rope_theta": raw.get("rope_theta", 10000.0),
        "qkv_bias": bias if qkv_bias is None else qkv_bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "tie_embeddings": raw.get("weight_tying", False),
        "mask_in_softmax": True,
        "mask_token_id": raw.get("mask_token_id"),
        "eos_token_id": raw.get("eos_token_id"),
        "bos_token_id": raw.get("bos_token_id"),
        "pad_token_id": raw.get("pad_token_id"),
    }


def names(config: ModelConfig) -> Names:
    root = "model.transformer."
    layer = root + "blocks.{i}."
    ours = "blocks.{i}."
    table = [
        ("embedding.weight", root + "wte.weight"),
        ("norm.weight", root + "ln_f.weight"),
        (ours + "norm1.weight", layer + "attn_norm.weight"),
        (ours + "norm2.weight", layer + "ff_norm.weight"),
        (ours + "mixer.o_proj.weight", layer + "attn_out.weight"),
        (ours + "mlp.gate_proj.weight", layer + "ff_proj.weight"),
        (ours + "mlp.up_proj.weight", layer + "up_proj.weight"),
        (ours + "mlp.down_proj.weight", layer + "ff_out.weight"),  # the head has the same leaf name
    ]
    table += [(f"{ours}mixer.{p}_proj.weight", f"{layer}{p}_proj.weight") for p in "qkv"]
    if config.qkv_bias:
        table += [(f"{ours}mixer.{p}_proj.bias", f"{layer}{p}_proj.bias") for p in "qkv"]
    if config.out_bias:
        table.append((ours + "mixer.o_proj.bias", layer + "attn_out.bias"))
    if config.mlp_bias:
        pairs = (("gate_proj", "ff_proj"), ("up_proj", "up_proj"), ("down_proj", "ff_out"))
        table += [(f"{ours}mlp.{mine}.bias", f"{layer}{theirs}.bias") for mine, theirs in pairs]
    if not config.tie_embeddings:
        table.append(("head.weight", root + "ff_out.weight"))
    return table


FAMILY = Family(
    name="LLaDA",
    model_types=("llada",),
    architectures=("LLaDAModelLM",),
    read=read,
    names=names,
    defaults={"rule": "quota", "convention": "llada", "block_length": 32},
    mask=126336,  # <|mdm_mask|>
    eos=126081,
    turn=126348,  # <|eot_id|>
)
