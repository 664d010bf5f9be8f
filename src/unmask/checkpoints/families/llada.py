"""LLaDA whose names are not Llama's: 8B and 1.5 (arXiv 2502.09992), OLMo's code, bidirectional; and LLaDA2."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import GATED, Family, ids, layered, require

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
LLADA = Family(
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


USUAL2 = {"partial_rotary_factor": 0.5, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4}  # where not said


def read2(raw: dict[str, Any]) -> dict[str, Any]:
    raw = {**USUAL2, **raw}
    bias = raw.get("use_bias", False)
    size = raw.get("moe_intermediate_size")
    shared = raw.get("num_shared_experts") or 0
    return {
        **llama.read(raw, partial=True),
        "qkv_bias": raw.get("use_qkv_bias", False),
        "out_bias": bias,
        "mlp_bias": bias,
        "qk_norm": raw.get("use_qk_norm", True),
        "num_experts": raw.get("num_experts"),
        "experts_per_token": raw.get("num_experts_per_tok"),
        "expert_size": size,
        "shared_expert_size": size * shared if isinstance(size, int) and isinstance(shared, int) else size,
        "first_dense_layers": raw.get("first_k_dense_replace", 0),
        "router": raw.get("score_function", "sigmoid"),
        "router_bias": raw.get("moe_router_enable_expert_bias", True),
        "router_normalise": raw.get("norm_topk_prob", True),
        "router_scale": raw["routed_scaling_factor"],
        "expert_groups": raw["n_group"],
        "expert_groups_kept": raw["topk_group"],
        **llama.blocks(raw.get("block_size", 32)),
        "delete_token_id": raw.get("delete_token_id"),  # of LLaDA2.2
        "insert_token_id": raw.get("split_token_id"),
    }


WHOLE2 = {"embedding": "model.word_embeddings", "norm": "model.norm", "head": "lm_head"}
LAYER2 = {
    **{name: theirs for name, theirs in llama.LAYER.items() if not name.startswith("mixer.")},
    **{f"mixer.{part}_proj": "attention.query_key_value" for part in "qkv"},
    "mixer.o_proj": "attention.dense",
    "mixer.q_norm": "attention.query_layernorm",
    "mixer.k_norm": "attention.key_layernorm",
    "mlp.router.bias": "mlp.gate.expert_bias",
    **{f"mlp.shared.{part}": f"mlp.shared_experts.{part}" for part in GATED},
}
LLADA2 = Family(
    name="LLaDA2",  # 2.0, 2.1, 2.2: Ling/Bailing-V2 experts, group-limited sigmoid router, block-causal, no shift
    model_types=("llada2_moe", "llada2_moe_veomni"),
    architectures=("LLaDA2MoeModelLM",),
    read=read2,
    names=layered(WHOLE2, "model.layers.{}.", LAYER2),
    kind="B",
    defaults={"rule": "threshold", "threshold": 0.95, "schedule": "block", "convention": "llada2"},
    mask=156895,
    eos=156892,
)
