"""LLaDA-8B and LLaDA-1.5 (arXiv 2502.09992): OLMo's code with Llama blocks, bidirectional, no shift."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family, ids, layered, require

SIZES = {
    "hidden_size": "d_model",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "mlp_hidden_size",
    "max_length": "max_sequence_length",
}


def read(raw: dict[str, Any]) -> dict[str, Any]:
    shape = {"block_type": "llama", "activation_type": ("silu", "swiglu"), "layer_norm_type": "rms", "rope": True}
    off = ("alibi", "attention_layer_norm", "input_emb_norm", "scale_logits", "bias_for_layer_norm")
    require(raw, "LLaDA", **shape, **dict.fromkeys(off, False), rope_scaling=(), rope_parameters=())
    bias = raw.get("include_bias", False)
    qkv_bias = raw.get("include_qkv_bias")
    return {
        **{ours: raw.get(theirs) for ours, theirs in SIZES.items()},
        "vocab_size": raw.get("embedding_size") or raw.get("vocab_size"),
        "num_kv_heads": raw.get("n_kv_heads") or 0,
        "norm_eps": raw.get("rms_norm_eps", 1e-5),
        "rope_theta": raw.get("rope_theta", 10000.0),
        "qkv_bias": bias if qkv_bias is None else qkv_bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "tie_embeddings": raw.get("weight_tying", False),
        "mask_in_softmax": True,
        **ids(raw),
    }


ROOT = "model.transformer."
WHOLE = {"embedding": ROOT + "wte", "norm": ROOT + "ln_f", "head": ROOT + "ff_out"}
LAYER = {
    "norm1": "attn_norm",
    "norm2": "ff_norm",
    **{f"mixer.{part}_proj": f"{part}_proj" for part in "qkv"},
    "mixer.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",  # the head has the same leaf name
}
FAMILY = Family(
    name="LLaDA",
    model_types=("llada",),
    architectures=("LLaDAModelLM",),
    read=read,
    names=layered(WHOLE, ROOT + "blocks.{}.", LAYER),
    defaults=llama.LLADA,
    mask=126336,  # <|mdm_mask|>
    eos=126081,
    turn=126348,  # <|eot_id|>
)
