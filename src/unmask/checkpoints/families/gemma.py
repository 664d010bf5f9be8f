"""Gemma and Gemma 3 as autoregressive bases and judges.

Embeddings are scaled, and the norms add one to their weights. Gemma 3 also norms what a layer adds, and most of its
layers see a window of the last positions, with a rotation of their own: texts up to that window are read.
"""

from __future__ import annotations

import sys
from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family, layered, require
from unmask.errors import UnmaskError

LAYERS = 65536  # more than any network has
LARGEST = sys.float_info.max
SLIDING = "sliding_attention"
USUAL = {  # where nothing is said
    "head_dim": 256,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA3 = {"max_position_embeddings": 131072, "rope_theta": 1e6, "query_pre_attn_scalar": 256, "sliding_window": 4096}


def _read(raw: dict[str, Any], act: Any) -> dict[str, Any]:
    if act not in (None, "gelu", "gelu_pytorch_tanh"):  # "gelu" means the latter in the first release
        raise UnmaskError(f"model config: hidden activation {act!r:.40} is not supported; Gemma's is gelu_pytorch_tanh")
    require(raw, "Gemma, read as an AR model,", use_bidirectional_attention=(False, None))
    fields = llama.read({**USUAL, **raw, "hidden_act": "silu"})
    size = fields["hidden_size"]
    scale = size**0.5 if isinstance(size, int) and size > 0 else 1.0
    return {**fields, "activation": "geglu_tanh", "embedding_scale": scale, "norm_offset": 1.0}


def read(raw: dict[str, Any]) -> dict[str, Any]:
    return _read({"max_position_embeddings": 8192, **raw}, raw.get("hidden_act"))


def read3(raw: dict[str, Any]) -> dict[str, Any]:
    require(raw, "Gemma 3", attn_logit_softcapping=(None,))
    whole = {**GEMMA3, **raw}
    count: Any = whole.get("num_hidden_layers")
    pattern = whole.get("sliding_window_pattern") or 6
    if not all(isinstance(number, int) and 1 <= number <= LAYERS for number in (count, pattern)):
        raise UnmaskError(
            f"model config: num_hidden_layers and sliding_window_pattern must be whole numbers from 1 to {LAYERS}"
        )
    kinds = whole.get("layer_types") or ["full_attention" if (i + 1) % pattern == 0 else SLIDING for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or not set(map(str, kinds)) <= {SLIDING, "full_attention"}:
        raise UnmaskError(f"model config: layer_types must hold {SLIDING} or full_attention for each of {count} layers")
    rope = whole.get("rope_parameters")
    local = rope.get(SLIDING) if isinstance(rope, dict) else None
    local = local if isinstance(local, dict) else {"rope_theta": whole.get("rope_local_base_freq", 10000.0)}
    if local.get("rope_type", "default") != "default":
        raise UnmaskError(f"model config: rope_parameters of {SLIDING} {local!r:.80} are not supported")
    scalar = whole["query_pre_attn_scalar"]
    if not isinstance(scalar, int | float) or not 0 < scalar < LARGEST:
        raise UnmaskError(f"model config: query_pre_attn_scalar must be above 0 and finite, got {scalar!r:.40}")
    here = ("sliding_window", "layer_types", "query_pre_attn_scalar", "final_logit_softcapping")
    fields = _read({**whole, **dict.fromkeys(here)}, whole.get("hidden_activation"))
    sliding = [number for number, kind in enumerate(kinds) if kind == SLIDING]
    return {
        **llama.up_to(fields, whole["sliding_window"] if sliding else None),
        "qk_norm": True,
        "output_norms": True,
        "attention_scale": scalar**-0.5,
        "local_layers": sliding,
        "local_theta": local.get("rope_theta", 10000.0),
        "logit_softcap": whole.get("final_logit_softcapping") or 0.0,
    }


NAMES3 = layered(
    {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
    "model.layers.{}.",
    {
        **llama.LAYER,
        "mixer_norm": "post_attention_layernorm",
        "norm2": "pre_feedforward_layernorm",
        "mlp_norm": "post_feedforward_layernorm",
    },
)


def _family(name: str, read: Any, architecture: str, model_type: str, names: Any) -> Family:
    ar = lambda raw: {**read(raw), **llama.AR}  # noqa: E731
    return Family(name, (model_type,), (architecture,), ar, names, "AR", borrows_mask=True)


GEMMA = _family("Gemma", read, "GemmaForCausalLM", "gemma", llama.NAMES)
GEMMA_3 = _family("Gemma 3", read3, "Gemma3ForCausalLM", "gemma3_text", NAMES3)
FAMILIES = [GEMMA, GEMMA_3]
