"""LLaDA2.0, 2.1 and 2.2 (Ling/Bailing-V2 experts): group-limited sigmoid router, block-causal, no shift."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family, Names
from unmask.models.config import ModelConfig

BLOCK = 32  # where config.json does not say


def read(raw: dict[str, Any]) -> dict[str, Any]:
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
        "router_scale": raw.get("routed_scaling_factor", 1.0),
        "expert_groups": raw.get("n_group", 1),
        "expert_groups_kept": raw.get("topk_group", 1),
        "layout": "block_causal",
        "block_length": raw.get("block_size", BLOCK),
        "mask_in_softmax": True,
        "delete_token_id": raw.get("delete_token_id"),  # of LLaDA2.2
        "insert_token_id": raw.get("split_token_id"),
    }


def names(config: ModelConfig) -> Names:
    layer = "model.layers.{i}."
    ours = "blocks.{i}."
    qkv = " + ".join(f"{ours}mixer.{part}_proj.weight" for part in "qkv")
    table = [
        ("embedding.weight", "model.word_embeddings.weight"),
        ("norm.weight", "model.norm.weight"),
        (ours + "norm1.weight", layer + "input_layernorm.weight"),
        (ours + "norm2.weight", layer + "post_attention_layernorm.weight"),
        (qkv, layer + "attention.query_key_value.weight"),
        (ours + "mixer.o_proj.weight", layer + "attention.dense.weight"),
    ]
    if config.qkv_bias:
        table.append((qkv.replace(".weight", ".bias"), layer + "attention.query_key_value.bias"))
    if config.out_bias:
        table.append((ours + "mixer.o_proj.bias", layer + "attention.dense.bias"))
    if config.qk_norm:
        table.append((ours + "mixer.q_norm.weight", layer + "attention.query_layernorm.weight"))
        table.append((ours + "mixer.k_norm.weight", layer + "attention.key_layernorm.weight"))
    if not config.tie_embeddings:
        table.append(("head.weight", "lm_head.weight"))
    for i in range(config.num_layers):
        table += _mlp(config, i)
    return table


def _mlp(config: ModelConfig, i: int) -> Names:
    """Names of one layer's MLP or experts."""
    theirs = f"model.layers.{i}.mlp."
    ours = f"blocks.{i}.mlp."
    kinds = [("", "")]
    table = []
    if config.num_experts and i >= config.first_dense_layers:
        kinds = [(f"experts.{e}.", f"experts.{e}.") for e in range(config.num_experts)]
        kinds += [("shared.", "shared_experts.")] if config.shared_expert_size else []
        table.append((ours + "router.weight", theirs + "gate.weight"))
        if config.router_bias:
            table.append((ours + "router.bias", theirs + "gate.expert_bias"))
    leaves = ("weight", "bias") if config.mlp_bias else ("weight",)
    for mine, other in kinds:
        for part in ("gate_proj", "up_proj", "down_proj"):
            table += [(f"{ours}{mine}{part}.{leaf}", f"{theirs}{other}{part}.{leaf}") for leaf in leaves]
    return table


FAMILY = Family(
    name="LLaDA2",
    model_types=("llada2_moe", "llada2_moe_veomni"),
    architectures=("LLaDA2MoeModelLM",),
    read=read,
    names=names,
    kind="B",
    defaults={
        "rule": "threshold",
        "threshold": 0.95,
        "schedule": "block",
        "convention": "llada2",
    },
    mask=156895,
    eos=156892,
)
