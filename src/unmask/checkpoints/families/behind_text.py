"""Families that write a block of masks behind causal text: one head for that and for mode ar."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families.family import Family, require
from unmask.checkpoints.families.llama import NAMES, QWEN2_BIAS, named, read

# of Nemotron's generation_config.json in vLLM: policies by their names there, and options of one name
POLICIES = {"confidence_threshold": "threshold", "low_confidence": "quota", "leftmost": "sequential"}
OPTIONS = {"diffusion_confidence_threshold": "threshold", "max_denoising_steps": "max_denoising_steps"}


def _behind(length: Any, in_place: bool, layout: str = "causal_blocks") -> dict[str, Any]:
    return {"layout": layout, "block_length": length, "shift": True, "in_place": in_place}


def _nemotron(raw: dict[str, Any]) -> dict[str, Any]:
    """Queries are scaled by their position, as in Llama 4, where the config says so."""
    require(
        raw, "Nemotron-Labs-Diffusion", dlm_type="llada", dlm_paradigm=("bidirectional", "block_diff", "sbd_block_diff")
    )
    stretch = raw.get("rope_parameters") or raw.get("rope_scaling")
    said = stretch if isinstance(stretch, dict) else {}
    beta = said.get("llama_4_scaling_beta") or 0.0
    length = said.get("original_max_position_embeddings") or raw.get("max_position_embeddings")
    scale = {"query_beta": beta, "query_length": length} if beta else {}
    return {**read(raw), **_behind(raw.get("block_size") or 32, in_place=True), **scale}


def _nemotron_decoding(raw: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    own = {ours: generation[theirs] for theirs, ours in OPTIONS.items() if generation.get(theirs) is not None}
    policy = generation.get("diffusion_selection_policy")
    if policy in POLICIES:
        own |= {"rule": POLICIES[policy], "schedule": "last" if policy == "confidence_threshold" else "even"}
    return own


def _sdlm(raw: dict[str, Any]) -> dict[str, Any]:
    require(raw, "SDLM", causal_attn=False)
    fields = read({**raw, "mask_token_id": raw.get("text_mask_token_id")})
    return {**fields, **QWEN2_BIAS, **_behind(raw.get("block_size") or 4, in_place=False), "mask_in_softmax": True}


def _wedlm(raw: dict[str, Any]) -> dict[str, Any]:
    """Of Qwen2.5 or Qwen3, as the config says. The window is no part of it."""
    bias = raw.get("attention_bias")
    return {
        **read(raw),
        "qkv_bias": True if bias is None else bias,
        "out_bias": False,
        "qk_norm": raw.get("qk_norm") or False,
        "mask_in_softmax": True,
        **_behind(16, in_place=True, layout="causal_window"),
    }


def _idlm(raw: dict[str, Any]) -> dict[str, Any]:
    """Of Qwen3, read causally, masks too; it is trained on one token fewer than it writes in a stride."""
    require(raw, "I-DLM", num_experts=0)
    trained = raw.get("block_size") or 3
    length = trained + 1 if isinstance(trained, int) else trained  # anything else is refused as no length
    behind = _behind(length, in_place=False, layout="causal_window")
    return {**read(raw), "qk_norm": True, "mask_in_softmax": True, **behind}


NEMOTRON = Family(
    name="Nemotron-Labs-Diffusion",  # arXiv 2607.05722: Ministral 3
    model_types=("nemotron_labs_diffusion", "ministral_dlm"),
    architectures=("NemotronLabsDiffusionModel", "MinistralDiffEncoderModel"),
    read=_nemotron,
    names=named("encoder.", "diffusion_head"),
    kind="B",
    defaults={"rule": "threshold", "threshold": 0.9, "schedule": "last", "convention": "nemotron"},
    generation=_nemotron_decoding,
    mask=100,
    eos=11,
    limits="the adapter of its drafts (linear_spec_lora), the budget of thinking and the speculation called quadratic "
    "are not there",
)
SDLM = Family(
    name="SDLM",  # arXiv 2509.24007: Qwen2.5
    model_types=(),  # its model_type and its architecture are Qwen2's
    architectures=(),
    read=_sdlm,
    names=NAMES,
    recognises=lambda raw, hint: raw.get("text_mask_token_id") is not None and raw.get("block_size") is not None,
    kind="B",
    defaults={"rule": "prefix", "threshold": 0.5, "convention": "sdlm"},
    mask=151665,
    eos=151643,
    turn=151645,  # <|im_end|>
)
WEDLM = Family(
    name="WeDLM",
    model_types=("wedlm",),
    architectures=("WeDLMForCausalLM",),
    read=_wedlm,
    names=NAMES,
    kind="B",
    defaults={"rule": "nearest", "entropy_bound": 0.4, "temperature": 0.2, "convention": "wedlm"},
    mask=151665,
    eos=151643,
    turn=151645,  # <|im_end|>
)
I_DLM = Family(
    name="I-DLM",  # SDAR's names and model_type
    model_types=(),
    architectures=(),
    read=_idlm,
    names=NAMES,
    recognises=lambda raw, hint: raw.get("model_type") in ("sdar", "sdar_moe") and bool(raw.get("use_regular_causal")),
    kind="B",
    defaults={"mode": "verify", "temperature": 1.0, "top_k": 50, "top_p": 0.95},
    mask=151669,
    eos=151643,
    turn=151645,  # <|im_end|>
    limits="it writes what mode ar writes, in strides (verify); its lossy ways (verify_alpha below 1) are not there",
)
