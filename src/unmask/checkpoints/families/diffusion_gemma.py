"""DiffusionGemma (text): Gemma 4 experts, a causal reader of text and a denoiser of canvases with one set of weights.

Facts from transformers 5.23.0, models/diffusion_gemma. Images are not read: a vision tower's tensors are left out.
"""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import GATED, Family, layered, require
from unmask.errors import UnmaskError

SLIDING = "sliding_attention"
FULL = "full_attention"
ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
}

HEADS = {"head_dim": 256, "num_key_value_heads": 4}
# read layer by layer, or in another way than those of plain models
LAYERWISE = dict.fromkeys(("sliding_window", "layer_types", "rope_parameters", "final_logit_softcapping"))


def read(raw: dict[str, Any]) -> dict[str, Any]:
    text = raw.get("text_config")
    if not isinstance(text, dict):
        raise UnmaskError("model config: a diffusion_gemma model needs a text_config")
    require(raw, "DiffusionGemma, whose encoder and decoder share weights,", tie_word_embeddings=True)
    # the reference ties weights only, so its two halves would have biases of their own
    require(text, "DiffusionGemma", attention_bias=False, hidden_activation="gelu_pytorch_tanh")
    if text.get("use_bidirectional_attention") == "all":
        raise UnmaskError("model config: use_bidirectional_attention 'all' is not supported; text is read causally")
    return {
        **llama.read({**HEADS, "max_position_embeddings": 131072, **text, **LAYERWISE}),
        "rope_theta": 10000.0,  # each layer has its own
        "attention": _attention(text),
        "activation": "geglu_tanh",
        "tie_embeddings": True,
        "num_experts": text.get("num_experts"),
        "experts_per_token": text.get("top_k_experts"),
        "expert_size": text.get("moe_intermediate_size"),
        "logit_softcap": text.get("final_logit_softcapping", 30.0),
        "eos_token_id": _first(text.get("eos_token_id", 1)),
        "bos_token_id": text.get("bos_token_id", 2),
        "pad_token_id": text.get("pad_token_id", 0),
        "shift": True,  # of text; a canvas's columns score their own positions
        "corruption": "uniform",
        "layout": "canvas",
        "block_length": raw.get("canvas_length", 256),
    }


def _first(ids: Any) -> Any:
    return ids[0] if isinstance(ids, list) and ids else ids


def _attention(text: dict[str, Any]) -> list[dict[str, Any]]:
    """How each layer attends: its type says window and rotation, per_layer_config the heads that differ."""
    count = text.get("num_hidden_layers")
    if not isinstance(count, int):
        raise UnmaskError(f"model config: num_hidden_layers must be int, got {count!r:.40}")
    kinds = text.get("layer_types") or [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or not set(map(str, kinds)) <= set(ROPE):
        raise UnmaskError(f"model config: layer_types must hold {SLIDING} or {FULL} for each of {count} layers")
    kinds = [*kinds[:-1], FULL]  # as the reference forces it
    return [_layer(text, i, kind) for i, kind in enumerate(kinds)]


def _layer(text: dict[str, Any], number: int, kind: str) -> dict[str, Any]:
    table = text.get("per_layer_config")
    own: Any = {}
    if table is not None:
        own = table.get(str(number), {}) if isinstance(table, dict) else None
    elif kind == FULL:
        keys = text.get("num_global_key_value_heads")
        own = {"head_dim": text.get("global_head_dim", 512)} | ({} if keys is None else {"num_key_value_heads": keys})
    if not isinstance(own, dict) or not own.keys() <= HEADS.keys():
        raise UnmaskError(f"model config: per_layer_config of layer {number} can change head_dim and key heads only")
    own = {name: text.get(name, usual) for name, usual in HEADS.items()} | own
    ropes = text.get("rope_parameters") or ROPE
    rope = ropes.get(kind) if isinstance(ropes, dict) else ropes
    said = rope if isinstance(rope, dict) else {"rope_type": "none"}
    head = own["head_dim"]
    share = said.get("partial_rotary_factor", 1.0)
    known = said.get("rope_type") == "proportional" or (said.get("rope_type", "default") == "default" and share == 1)
    numbers = isinstance(head, int) and isinstance(share, int | float)
    if not known or not numbers or said.get("factor", 1.0) != 1.0:
        raise UnmaskError(f"model config: rope_parameters of {kind} {rope!r:.80} are not supported")
    return {
        "head_dim": head,
        "num_kv_heads": own["num_key_value_heads"],
        "rope_theta": said.get("rope_theta", ROPE[kind]["rope_theta"]),
        "rotated_pairs": int(share * head // 2),
        "window": text.get("sliding_window", 512) if kind == SLIDING else 0,
        "keys_are_values": kind == FULL,
    }


ROOT = "model.decoder."
WHOLE = {
    "embedding": ROOT + "embed_tokens",
    "norm": ROOT + "norm",
    "self_conditioning.norm": ROOT + "self_conditioning.pre_norm",
    **{f"self_conditioning.mlp.{part}": f"{ROOT}self_conditioning.{part}" for part in GATED},
    "blocks.{}.text_scalar": "model.encoder.language_model.layers.{}.layer_scalar",
}
LAYER = {
    **llama.LAYER,
    "mixer_norm": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "mlp_norm": "post_feedforward_layernorm_1",
    "norm3": "pre_feedforward_layernorm_2",
    "experts_norm": "post_feedforward_layernorm_2",
    "sum_norm": "post_feedforward_layernorm",
    "canvas_scalar": "layer_scalar",
    "router.weight": "router.proj.weight",
    "router.scale": "router.scale",
    "router.expert_scale": "router.per_expert_scale",
    "experts.gate_up": "experts.gate_up_proj",
    "experts.down": "experts.down_proj",
}


def generation(raw: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Decoding options of generation_config.json; ends of text are a list there or in config.json."""
    shared = ("max_denoising_steps", "t_min", "t_max", "confidence_threshold", "stability_threshold")
    out = {name: own[name] for name in shared if own.get(name) is not None}
    sampler = own.get("sampler_config")
    if isinstance(sampler, dict) and sampler.get("entropy_bound") is not None:
        out["entropy_bound"] = sampler["entropy_bound"]
    for ends in (own.get("eos_token_id"), raw["text_config"].get("eos_token_id")):
        if isinstance(ends, int | list):
            return {**out, "eos_token_ids": ends if isinstance(ends, list) else [ends]}
    return out


FAMILY = Family(
    name="DiffusionGemma",
    model_types=("diffusion_gemma",),
    architectures=("DiffusionGemmaForBlockDiffusion",),
    read=read,
    names=layered(WHOLE, ROOT + "layers.{}.", LAYER),
    kind="C",
    defaults={"rule": "entropy_bound", "max_denoising_steps": 48},
    generation=generation,
    unread=("model.encoder.vision_tower.", "model.encoder.embed_vision."),
)
