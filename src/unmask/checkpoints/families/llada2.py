"""LLaDA2.0, 2.1 and 2.2 (Ling/Bailing-V2 experts): group-limited sigmoid router, block-causal, no shift."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import GATED, Family, layered


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
        **llama.blocks(raw.get("block_size", 32)),
        "delete_token_id": raw.get("delete_token_id"),  # of LLaDA2.2
        "insert_token_id": raw.get("split_token_id"),
    }


WHOLE = {"embedding": "model.word_embeddings", "norm": "model.norm", "head": "lm_head"}
LAYER = {
    **{name: theirs for name, theirs in llama.LAYER.items() if not name.startswith("mixer.")},
    **{f"mixer.{part}_proj": "attention.query_key_value" for part in "qkv"},
    "mixer.o_proj": "attention.dense",
    "mixer.q_norm": "attention.query_layernorm",
    "mixer.k_norm": "attention.key_layernorm",
    "mlp.router.bias": "mlp.gate.expert_bias",
    **{f"mlp.shared.{part}": f"mlp.shared_experts.{part}" for part in GATED},
}
FAMILY = Family(
    name="LLaDA2",
    model_types=("llada2_moe", "llada2_moe_veomni"),
    architectures=("LLaDA2MoeModelLM",),
    read=read,
    names=layered(WHOLE, "model.layers.{}.", LAYER),
    kind="B",
    defaults={"rule": "threshold", "threshold": 0.95, "schedule": "block", "convention": "llada2"},
    mask=156895,
    eos=156892,
)
