"""Llama- and Qwen-shaped families: what their config.json have in common, their names, and what each adds."""

from __future__ import annotations

from functools import partial
from typing import Any

from unmask.checkpoints.families import rope
from unmask.checkpoints.families.family import GATED, Family, Names, ids, layered, require
from unmask.errors import UnmaskError

NOTHING: tuple[Any, ...] = ()  # a key that is refused whatever it says
# what other networks of this build have, and ours does not: keys, and their values that change nothing
UNREAD: dict[str, Any] = {
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "scale_emb"), (1, 1.0)),
    **dict.fromkeys(("rotary_pct", "rope_ratio"), (1, 1.0)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"), NOTHING),
    **dict.fromkeys(("attention_multiplier", "scale_depth", "attention_chunk_size"), NOTHING),
    **dict.fromkeys(("use_logn_attn", "use_dynamic_ntk", "alibi", "use_parallel_residual", "parallel_attn"), False),
}
SIZES = {  # ours and theirs, read and written as they are
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "max_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
USUAL = {"num_kv_heads": 0, "head_dim": 0, "norm_eps": 1e-6, "tie_embeddings": False}  # where nothing is said
LAYER = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    **{f"mixer.{part}": f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")},
    **{f"mlp.{part}": f"mlp.{part}" for part in GATED},
    "mlp.router": "mlp.gate",
    **{f"mlp.experts.{{}}.{part}": f"mlp.experts.{{}}.{part}" for part in GATED},
    **{f"mlp.shared.{part}": f"mlp.shared_expert.{part}" for part in GATED},
}


def named(root: str = "model.", head: str = "lm_head") -> Names:
    """The Hugging Face Llama/Qwen names, experts included (OLMoE, Qwen3-MoE)."""
    whole = {"embedding": root + "embed_tokens", "norm": root + "norm", "head": head}
    return layered(whole, root + "layers.{}.", LAYER)


NAMES = named()


def read(raw: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    """ModelConfig fields from the keys that Llama, Qwen2 and Qwen3 configs have in common.

    partial: the family may rotate a part of each head only.
    """
    require(raw, "this family", hidden_act=("silu", "swish"), use_sliding_window=False, **UNREAD)
    window = raw.get("sliding_window")
    layers = raw.get("layer_types")
    if window is not None and "use_sliding_window" not in raw:
        raise UnmaskError(f"model config: sliding_window {window!r:.40} is not supported; every layer sees all tokens")
    if isinstance(layers, list) and any(kind != "full_attention" for kind in layers):
        raise UnmaskError(f"model config: layer_types {layers!r:.80} are not supported; every layer sees all tokens")
    fields = {ours: raw.get(theirs) for ours, theirs in SIZES.items()}
    eos = raw.get("eos_token_id")
    return {
        **fields,
        **{name: usual for name, usual in USUAL.items() if fields[name] is None},
        **rope.read(raw, partial),
        "qkv_bias": raw.get("attention_bias") or False,
        "out_bias": raw.get("attention_bias") or False,
        "mlp_bias": raw.get("mlp_bias") or False,
        **ids(raw),
        "eos_token_id": eos[0] if isinstance(eos, list) and eos else eos,
    }


def blocks(length: Any) -> dict[str, Any]:
    return {"layout": "block_causal", "block_length": length, "mask_in_softmax": True}


AR = {"layout": "causal", "shift": True}
QWEN2_BIAS = {"qkv_bias": True, "out_bias": False}  # Qwen2 has it always and says nothing


def _dream(raw: dict[str, Any]) -> dict[str, Any]:
    return {**read(raw), **QWEN2_BIAS, "shift": True, "mask_in_softmax": True}


def _a2d(raw: dict[str, Any]) -> dict[str, Any]:
    base = str(raw.get("model_type", "")).removeprefix("a2d-")
    return {**read(raw), "qk_norm": base == "qwen3", "mask_in_softmax": True} | (QWEN2_BIAS if base == "qwen2" else {})


def _illada(raw: dict[str, Any]) -> dict[str, Any]:
    fields = {**read(raw), "mask_in_softmax": True}
    if raw.get("layer_norm_eps") is not None:  # then it has LayerNorm with a bias instead
        fields |= {"norm": "layer", "norm_bias": True, "norm_eps": raw["layer_norm_eps"]}
    return fields


def _llada_moe(raw: dict[str, Any]) -> dict[str, Any]:
    require(raw, "LLaDA-MoE", moe_router_score_function="softmax", clip_qkv=())
    return {
        **read(raw, partial=True),
        "intermediate_size": raw.get("dense_intermediate_size"),
        "qk_norm": raw.get("qk_layernorm", True),
        "num_experts": raw.get("num_experts") or None,  # none is refused: a dense LLaDA has other names
        "experts_per_token": raw.get("num_experts_per_tok"),
        "expert_size": raw.get("expert_intermediate_size"),
        "shared_expert_size": raw.get("shared_expert_intermediate_size") or 0,
        "router_normalise": False,  # hard-coded in the reference, whatever norm_topk_prob says
        "mask_in_softmax": True,
    }


def _qwen3(raw: dict[str, Any]) -> dict[str, Any]:
    """Of Qwen3, dense or with experts."""
    fields = {**read(raw), "qk_norm": True}
    experts = raw.get("num_experts", raw.get("num_local_experts"))  # the newer spelling
    if experts is None:
        return fields
    if raw.get("decoder_sparse_step", 1) != 1 or raw.get("mlp_only_layers"):
        raise UnmaskError("model config: Qwen3 is read with experts in every layer (decoder_sparse_step 1)")
    return {
        **fields,
        "num_experts": experts,
        "experts_per_token": raw.get("num_experts_per_tok"),
        "expert_size": raw.get("moe_intermediate_size"),
        "router_normalise": raw.get("norm_topk_prob", False),
    }


def up_to(fields: dict[str, Any], length: Any) -> dict[str, Any]:
    """For texts up to a length, where config.json gives one."""
    longest = fields["max_length"]
    both = isinstance(length, int) and isinstance(longest, int)
    return {**fields, "max_length": min(length, longest)} if both else fields


def _mistral(raw: dict[str, Any]) -> dict[str, Any]:
    """Every layer may see a window of the last positions only; texts up to its length are read, where it shows all."""
    fields = read({**raw, "sliding_window": None, "layer_types": None})
    return up_to({**fields, **AR}, raw.get("sliding_window"))


def _autoregressive(name: str, read: Any, architectures: tuple[str, ...], model_types: tuple[str, ...] = ()) -> Family:
    """A base to adapt, or a judge."""
    return Family(name, model_types, architectures, lambda raw: {**read(raw), **AR}, NAMES, "AR", borrows_mask=True)


_family = partial(Family, names=NAMES)
LLADA = {"rule": "quota", "convention": "llada", "block_length": 32}  # how all LLaDA models decode
LLADA_MOE = _family(
    name="LLaDA-MoE",  # OLMoE's shape, softmax router, bidirectional, no shift
    model_types=("lladamoe",),
    architectures=("LLaDAMoEModelLM",),
    read=_llada_moe,
    defaults=LLADA,
    mask=156895,
    eos=156892,
)
ILLADA = _family(
    name="iLLaDA",  # arXiv 2606.25331: LLaDA's successor, grouped heads, bidirectional, no shift
    model_types=("illada",),
    architectures=("ILLaDAForCausalLM",),
    read=_illada,
    defaults=LLADA,
    mask=5,  # <[MASK]>
    eos=2,
)
DREAM = _family(
    name="Dream",  # also Dream-Coder and DiffuCoder: Qwen2 made bidirectional, with a head shifted by one
    model_types=("Dream",),
    architectures=("DreamModel",),
    read=_dream,
    defaults={"rule": "entropy", "schedule": "timesteps", "convention": "dream", "temperature": 0.2, "top_p": 0.95},
    mask=151666,
    eos=151643,
    turn=151645,  # <|im_end|>
)
OPEN_DCODER = _family(
    name="Open-dCoder",  # Open-dLLM: as Dream, under Qwen2's own names
    model_types=("qwen2",),
    architectures=("Qwen2ForCausalLM",),
    read=_dream,
    defaults={"rule": "entropy_bound", "temperature": 0.6},
    turn=151645,  # <|im_end|>
    unmasked=_autoregressive("Qwen2", lambda raw: {**read(raw), **QWEN2_BIAS}, ("Qwen2ForCausalLM",)),
)
SDAR = _family(
    name="SDAR",  # also TraDo: Qwen3, dense and with experts, block-causal, no shift
    model_types=("sdar", "sdar_moe"),
    architectures=("SDARForCausalLM", "SDARMoeForCausalLM"),
    read=lambda raw: {**_qwen3(raw), **blocks(raw.get("block_size") or 4)},
    kind="B",
    defaults={"rule": "threshold", "threshold": 0.9, "schedule": "block", "convention": "sdar"},
    mask=151669,
    eos=151643,
    turn=151645,  # <|im_end|>
)
A2D = _family(
    name="tiny-A2D",  # dllm: Qwen3, Qwen2 or Llama made bidirectional, no shift
    model_types=("a2d-qwen3", "a2d-qwen2", "a2d-llama"),
    architectures=("A2DQwen3LMHeadModel", "A2DQwen2LMHeadModel", "A2DLlamaLMHeadModel"),
    read=_a2d,
    defaults={"rule": "quota", "schedule": "linear", "convention": "dllm", "block_length": 32},
    mask=151669,  # the Qwen tokenizers' added <|mask|>
)
FAST_DLLM_V2 = _family(
    name="Fast-dLLM v2",  # Qwen2.5, block-causal, with a head shifted by one
    model_types=("Fast_dLLM_Qwen",),
    architectures=("Fast_dLLM_QwenForCausalLM",),
    read=lambda raw: {**_dream(raw), **blocks(raw.get("bd_size", 32))},
    kind="B",
    defaults={"rule": "threshold", "threshold": 0.9, "sub_block_length": 8, "convention": "fast-dllm"},
    mask=151665,
    eos=151645,
)
STABLE_DIFFCODER = _family(
    name="Stable-DiffCoder",  # Llama, block-causal, no shift
    model_types=(),  # its model_type is plain "llama"
    architectures=("StableDiffcoderForCausalLM",),
    read=lambda raw: {**read(raw), **blocks(raw.get("block_size") or 4)},
    kind="B",
    defaults={"rule": "threshold", "threshold": 0.95},
    mask=5,
)
RND1 = _family(
    name="RND1",  # Qwen3-MoE made bidirectional, with a head shifted by one
    model_types=("rnd1",),
    architectures=("RND1LM",),
    read=lambda raw: {**_qwen3(raw), "shift": True, "mask_in_softmax": True},
    defaults={"rule": "entropy", "max_denoising_steps": 256},
    mask=151669,
    eos=151645,
)
DREAM_REASONER = _family(
    name="Dream-Reasoner",  # Qwen3 under Dream's model_type, block-causal, no shift
    model_types=(),
    architectures=(),
    read=lambda raw: {**read(raw), "qk_norm": True, **blocks(raw.get("block_size"))},
    recognises=lambda raw, hint: raw.get("model_type") == "Dream" and raw.get("block_size") is not None,
    kind="B",
    defaults={"rule": "threshold", "threshold": 0.9, "schedule": "block", "convention": "sdar"},
    mask=151669,
    eos=151643,
    turn=151645,  # <|im_end|>
    limits="rule, threshold and ends of text are SDAR's, no model card of its own was at hand",
)
DIFFULLAMA = _family(
    name="DiffuLLaMA",  # arXiv 2410.17891: Llama 2 made bidirectional, with a head shifted by one
    model_types=(),
    architectures=("DiffuLlamaForCausalLM",),
    read=lambda raw: {**read(raw), "shift": True},
    # its config.json is that of any Llama: where it came from, or the folder's name, tells
    recognises=lambda raw, hint: raw.get("model_type") == "llama" and "diffullama" in hint,
    defaults={"rule": "random", "max_denoising_steps": 64, "temperature": 0.9, "top_p": 0.9},
    mask=811,  # a piece of Llama's vocabulary, used anew
    eos=2,
)
# diffusion models share the model_types "llama" and "qwen2"; there the architecture decides
LLAMA = _autoregressive("Llama", read, ("LlamaForCausalLM",))
QWEN3 = _autoregressive("Qwen3", _qwen3, ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"), ("qwen3", "qwen3_moe"))
MISTRAL = _autoregressive("Mistral", _mistral, ("MistralForCausalLM",), ("mistral",))
