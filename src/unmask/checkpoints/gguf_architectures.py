"""What a GGUF file's general.architecture stands for: a family, what its tensors are called, and its config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from unmask.checkpoints.families import diffusion_gemma, gemma, llada, llama, registry
from unmask.checkpoints.families.diffusion_gemma import FULL, SLIDING
from unmask.checkpoints.families.family import Family, ends_of
from unmask.checkpoints.gguf_header import Values, plain
from unmask.checkpoints.gguf_text import Text
from unmask.checkpoints.safetensors import MOST_EXPERTS, Stored, slices
from unmask.checkpoints.tokens import free_token
from unmask.errors import UnmaskError

Raw = dict[str, Any]  # a config.json
Tensors = Mapping[str, Stored]  # by Hugging Face name
LONGEST_CONTEXT = 2**20  # more positions than any model reads
WIDEST_HEAD = 2**12  # features
READ = {  # keys of an architecture that are read; any other that says something is refused
    "context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size", "rope.freq_base",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.scale_linear", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout",
    "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "attention.causal", "pooling_type",
}  # fmt: skip
EXPERTS = frozenset({"expert_count", "expert_used_count", "expert_feed_forward_length"})
WINDOW = "attention.sliding_window"
PATTERN = "attention.sliding_window_pattern"
LOCAL_THETA = "rope.freq_base_swa"
CAP = "final_logit_softcapping"
SLIDES = frozenset({WINDOW, PATTERN, LOCAL_THETA, CAP})
LOCAL_HEAD = "attention.key_length_swa"
LOCAL_SIZES = ("attention.value_length_swa", "rope.dimension_count_swa")  # the same
GELU = dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh")
LARGEST_GEMMA3 = 62  # layers of the one whose queries are scaled by other than a head's width
UNTURNED = 1e20  # what frequencies are at least divided by where a pair of features is not turned
CANVAS = "diffusion.canvas_length"
DENOISING = {  # keys of generation_config.json, and the format's
    "max_denoising_steps": "max_steps",
    **{key: key for key in ("t_min", "t_max", "entropy_bound", "stability_threshold", "confidence_threshold")},
}

WHOLE = {"token_embd": "embedding", "output_norm": "norm", "output": "head"}  # their names and ours
LAYER = {
    "attn_norm": "norm1",
    **{f"attn_{part}": f"mixer.{part}_proj" for part in "qkv"},
    "attn_output": "mixer.o_proj",
    "attn_q_norm": "mixer.q_norm",
    "attn_k_norm": "mixer.k_norm",
    "post_attention_norm": "mixer_norm",
    "ffn_norm": "norm2",
    "post_ffw_norm": "mlp_norm",
    "ffn_gate_inp": "mlp.router",
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_exps": f"mlp.experts.{{}}.{part}_proj" for part in ("gate", "up", "down")},
}
CANVAS_TENSORS = {  # of DiffusionGemma: modules, and tensors whose ends are not ours
    "self_cond_pre_norm": "self_conditioning.norm",
    **{f"self_cond_{part}": f"self_conditioning.mlp.{part}_proj" for part in ("gate", "up", "down")},
    "post_ffw_norm_1": "mlp_norm",
    "pre_ffw_norm_2": "norm3",
    "post_ffw_norm_2": "experts_norm",
    "post_ffw_norm": "sum_norm",
    "ffn_gate_inp": "router",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_gate_up_exps.weight": "experts.gate_up",
    "ffn_down_exps.weight": "experts.down",
    "ffn_down_exps.scale": "router.expert_scale",
    "layer_output_scale.weight": "canvas_scalar",
    "enc_layer_output_scale.weight": "text_scalar",
}


@dataclass(frozen=True)
class Architecture:
    """How files of an architecture are read."""

    family: Family
    causal: bool = True
    shift: bool = True  # of the logits, as diffusion.shift_logits says it where it is there
    permuted: bool = False  # rows of queries and keys stand so that neighbours are rotated
    partial: bool = False  # a part of each head may be all that is rotated
    read: frozenset[str] = frozenset()  # keys of its own
    config: Callable[[Values, Raw, Tensors], Raw] = lambda values, raw, stored: raw
    # its config.json, of what that of a Llama would be
    names: dict[str, str] = field(default_factory=dict)  # of tensors, over WHOLE and LAYER
    added: float = 0.0  # what converters add to weights of norms

    def renamed(self, tensor: Stored) -> Iterator[Stored]:
        """A tensor under its Hugging Face name; several experts in one as those of each."""
        return slices(tensor, self._theirs(tensor))

    def _theirs(self, tensor: Stored) -> list[str]:
        found = re.fullmatch(r"(?:blk\.([0-9]{1,6})\.)?(\w+)\.(weight|bias|scale)", tensor.name)
        with suppress(KeyError):  # no network has such a tensor, or none of this family
            layer, part, leaf = ("", "", "") if found is None else found.groups()
            known = (WHOLE if layer is None else LAYER) | self.names
            ours = known.get(f"{part}.{leaf}") or f"{known[part]}.{leaf}"
            ours = ours if layer is None else f"blocks.{layer}.{ours}"
            experts = tensor.shape[0] if "{}" in ours else 1
            if experts == 1 or (len(tensor.shape) == 3 and experts <= MOST_EXPERTS):
                return [self.family.theirs(ours.format(expert)) for expert in range(experts)]
        raise UnmaskError(
            f"{tensor.path}: tensor {tensor.name!r:.60} is not one of a {self.family.name} model, so it cannot be read"
        )


def _llama(values: Values, raw: Raw, stored: Tensors) -> Raw:
    return raw | {"attention_bias": llama.LLAMA.theirs("blocks.0.mixer.q_proj.bias") in stored}


def _experts(values: Values, raw: Raw, stored: Tensors) -> Raw:
    size = values.number("expert_feed_forward_length", raw["intermediate_size"])
    return raw | {
        "num_experts": values.number("expert_count"),
        "num_experts_per_tok": values.number("expert_used_count"),
        "moe_intermediate_size": size,
        "expert_intermediate_size": size,
        "dense_intermediate_size": raw["intermediate_size"],
        "partial_rotary_factor": values.number("rope.dimension_count", raw["head_dim"]) / raw["head_dim"],
        "norm_topk_prob": True,
    }


def _llada(values: Values, raw: Raw, stored: Tensors) -> Raw:
    hidden = raw["hidden_size"]
    heads = raw["num_attention_heads"]
    if raw["head_dim"] * heads != hidden:
        raise UnmaskError(f"{values.path}: {heads} heads of {raw['head_dim']} are not {hidden}, as in every LLaDA")
    plain = raw["rope_parameters"]["rope_type"] == "default"
    return raw | {
        **{theirs: raw[llama.SIZES[ours]] for ours, theirs in llada.SIZES.items()},
        "rope_parameters": None if plain else raw["rope_parameters"],
        "include_qkv_bias": llada.LLADA.theirs("blocks.0.mixer.q_proj.bias") in stored,
        "n_kv_heads": raw["num_key_value_heads"],
        "weight_tying": raw["tie_word_embeddings"],
    }


def _gemma3(values: Values, raw: Raw, stored: Tensors) -> Raw:
    """Most layers see a window, and rotate by a theta of their own."""
    largest = raw["num_hidden_layers"] == LARGEST_GEMMA3
    window = values.number(WINDOW) if values.own(WINDOW) else None
    slides = values.own(PATTERN)  # of each layer, or how often one sees all
    kinds = [SLIDING if slid else FULL for slid in slides] if isinstance(slides, tuple) else None
    local = {"rope_type": "default", "rope_theta": values.decimal(LOCAL_THETA, 10000.0)}
    return raw | {
        **GELU,
        "query_pre_attn_scalar": raw["hidden_size"] // raw["num_attention_heads"] if largest else raw["head_dim"],
        CAP: values.decimal(CAP, 0.0) or None,
        "sliding_window": window or raw["max_position_embeddings"],  # transformers wants one in any case
        "sliding_window_pattern": 1 if window is None or kinds else values.number(PATTERN, 6),
        "layer_types": kinds if window else None,
        "rope_parameters": {FULL: raw["rope_parameters"], SLIDING: local},
    }


def _diffusion_gemma(values: Values, raw: Raw, stored: Tensors) -> Raw:
    """Layers that see a window have heads of their own; the others turn the pairs whose frequency is divided by 1."""
    slides = values.own(PATTERN)
    if not isinstance(slides, tuple) or len(slides) != raw["num_hidden_layers"]:
        raise values.damaged(f"does not say in {PATTERN} which of {raw['num_hidden_layers']} layers see a window")
    keys = raw["num_key_value_heads"]
    keys = keys if isinstance(keys, list) else [keys] * len(slides)
    local = values.number(LOCAL_HEAD)
    factors = raw["rope_parameters"].get("short_factor", [])
    turned = factors.count(1.0)
    if len(keys) != len(slides) or {values.number(key, local) for key in LOCAL_SIZES} != {local}:
        raise UnmaskError(f"{values.path}: heads of layers with a window are unlike those of any DiffusionGemma")
    if not factors or not all(factor >= UNTURNED for factor in factors[turned:]):
        raise UnmaskError(f"{values.path}: rope_freqs does not say which pairs are turned, as in every DiffusionGemma")
    heads = [local if slid else raw["head_dim"] for slid in slides]
    own = [{"head_dim": head, "num_key_value_heads": k} for head, k in zip(heads, keys, strict=True)]
    ropes = {
        FULL: {"rope_type": "proportional", "rope_theta": raw["rope_theta"]},
        SLIDING: {"rope_type": "default", "rope_theta": values.decimal(LOCAL_THETA, 10000.0)},
    }
    ropes[FULL]["partial_rotary_factor"] = turned / len(factors)
    experts = _experts(values, raw, stored)
    text = {key: raw[key] for key in (*llama.SIZES.values(), "bos_token_id", "eos_token_id", "pad_token_id")}
    text |= {
        **own[0],
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": [SLIDING if slid else FULL for slid in slides],
        "per_layer_config": {str(layer): sizes for layer, sizes in enumerate(own) if sizes != own[0]},
        "rope_parameters": ropes,
        "sliding_window": values.number(WINDOW),
        CAP: values.decimal(CAP, 0.0),
        "num_experts": experts["num_experts"],
        "top_k_experts": experts["num_experts_per_tok"],
        "moe_intermediate_size": experts["moe_intermediate_size"],
    }
    whole = {key: raw[key] for key in ("architectures", "model_type", "tie_word_embeddings")}
    return whole | {"canvas_length": values.all.get(CANVAS), "text_config": text}


ARCHITECTURES = {
    "llama": Architecture(llama.LLAMA, permuted=True, config=_llama),
    "qwen2": Architecture(llama.OPEN_DCODER),
    "qwen3": Architecture(llama.QWEN3),
    "qwen3moe": Architecture(llama.QWEN3, read=EXPERTS, config=_experts),
    "rnd1": Architecture(llama.RND1, causal=False, read=EXPERTS, config=_experts),
    "dream": Architecture(llama.DREAM, causal=False),
    "llada": Architecture(llada.LLADA, causal=False, shift=False, permuted=True, config=_llada),
    "llada-moe": Architecture(llama.LLADA_MOE, causal=False, shift=False, partial=True, read=EXPERTS, config=_experts),
    "gemma": Architecture(gemma.GEMMA, config=lambda values, raw, stored: raw | GELU, added=1.0),
    "gemma3": Architecture(gemma.GEMMA_3, read=SLIDES, config=_gemma3, added=1.0),
    "diffusion-gemma": Architecture(
        diffusion_gemma.FAMILY,
        causal=False,
        shift=False,
        read=EXPERTS | SLIDES | {LOCAL_HEAD, *LOCAL_SIZES},
        config=_diffusion_gemma,
        names=CANVAS_TENSORS,
    ),
}


def of(values: Values) -> Architecture:
    """The architecture of a file; one that cannot be read raises UnmaskError."""
    name = values.architecture
    if values.all.get("general.type") == "adapter":
        raise UnmaskError(f"{values.path} is an adapter, not a model; merge it into its base with: llama-export-lora")
    if name == "gemma2":  # refused as the folder of such a model is
        registry.recognise({"model_type": name}, str(values.path))
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnmaskError(
            f"{values.path} is of architecture {name!r:.40}; {', '.join(ARCHITECTURES)} can be read from GGUF; "
            "docs/families.md lists what is read from safetensors"
        )
    return ARCHITECTURES[name]


def config(kind: Architecture, values: Values, text: Text, stored: Tensors, factors: list[float]) -> Raw:
    """What config.json would say; factors: what each pair's frequency is divided by, where the file says so."""
    family = kind.family
    hidden = values.number("embedding_length")
    heads = values.number("attention.head_count")
    head = values.number("attention.key_length", hidden // heads)
    keys = values.own("attention.head_count_kv")  # of each layer, or of all
    context = values.number("context_length")
    rotated = values.number("rope.dimension_count", head)
    ids = text.special_ids
    if context > LONGEST_CONTEXT:
        raise values.damaged(f"says that it reads {context} tokens")
    if head > WIDEST_HEAD:
        raise values.damaged(f"has heads of {head} features")
    if factors and len(factors) != rotated // 2:
        raise values.damaged(f"has {len(factors)} values of rope_freqs for heads of {rotated}")
    if rotated != head and not (kind.partial and rotated < head):
        raise UnmaskError(f"{values.path}: only part of each head is rotated, which no {family.name} model does")
    if values.number("attention.value_length", head) != head:
        raise UnmaskError(f"{values.path}: values and keys have different widths, which no {family.name} model has")
    refuse_unread(values, kind)
    sizes = {
        "hidden_size": hidden,
        "num_layers": values.number("block_count"),
        "num_heads": heads,
        "num_kv_heads": list(keys) if isinstance(keys, tuple) else values.number("attention.head_count_kv", heads),
        "head_dim": head,
        "intermediate_size": values.number("feed_forward_length"),
        "vocab_size": text.vocabulary,
        "max_length": context,
        "norm_eps": values.decimal("attention.layer_norm_rms_epsilon"),
        "tie_embeddings": ends_of(family)[0] not in stored,
    }
    raw: Raw = {
        "architectures": [family.architectures[0]],
        "model_type": next(iter(family.model_types), "llama"),
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        **{llama.SIZES[ours]: value for ours, value in sizes.items()},
        "rope_theta": values.decimal("rope.freq_base", 10000.0),
        "rope_parameters": _rope(values, context, factors),
        "bos_token_id": ids.get("bos"),
        "eos_token_id": text.ends if len(text.ends) > 1 else ids.get("eos"),
        "pad_token_id": ids.get("pad"),
        "mask_token_id": ids.get("mask"),
    }
    if family.borrows_mask and raw["mask_token_id"] is None:
        used = list(ids.values())
        raw["mask_token_id"] = free_token(text.special_tokens(), used, text.templates.get("default"), str(values.path))
    return kind.config(values, raw, stored)


def refuse_unread(values: Values, kind: Architecture) -> None:
    """Raises UnmaskError for a key of the architecture that says something which is not read."""
    name = values.architecture
    read = READ | kind.read
    instead = "load the model's safetensors instead"
    for key, value in values.all.items():
        if key.startswith(f"{name}.") and key.removeprefix(f"{name}.") not in read and value not in (0, "none", ""):
            raise UnmaskError(f"{values.path}: {key!r:.80} is {value!r:.40}, which cannot be read yet; {instead}")
    expected = {f"{name}.attention.causal": kind.causal, "diffusion.shift_logits": kind.shift}
    for key, usual in expected.items():
        value = values.all.get(key, usual)
        if value is not usual:
            raise UnmaskError(f"{values.path}: {key} is {value!r:.40}, which no {name} model has; {instead}")


def _rope(values: Values, context: int, factors: list[float]) -> Raw:
    """rope_parameters of config.json: how positions are stretched, as llama.cpp does it."""
    name = f"{values.architecture}.rope.scaling.type"
    kind = values.all.get(name, "linear")
    factor = values.decimal("rope.scaling.factor", values.decimal("rope.scale_linear", 0.0)) or 1.0
    attention = values.decimal("rope.scaling.attn_factor", 1.0)
    attention *= values.decimal("rope.scaling.yarn_attn_factor", 1.0)
    rope: Raw = {"rope_type": "default", "rope_theta": values.decimal("rope.freq_base", 10000.0)}
    if kind not in ("linear", "none", "yarn"):
        raise UnmaskError(f"{values.path}: {name} is {kind!r:.40}, which cannot be read")
    if not 0 < factor < 1e6 or not 0 < attention < 1e6:
        raise values.damaged(f"stretches its positions by {factor}, its attention by {attention}")
    if (attention != 1 and kind != "yarn") or (factors and kind == "yarn"):
        raise UnmaskError(f"{values.path}: {name} {kind} with other factors cannot be read")
    if kind == "yarn":
        scale = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
        return rope | {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": values.number("rope.scaling.original_context_length", context),
            "beta_fast": values.decimal("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": values.decimal("rope.scaling.yarn_beta_slow", 1.0),
            "attention_factor": attention * scale,
        }
    factor = 1.0 if kind == "none" else factor
    if factors:
        each = [value * factor for value in factors]
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": context, "attention_factor": 1.0}
        return rope | {"short_factor": each, "long_factor": each}
    return rope if factor == 1 else rope | {"rope_type": "linear", "factor": factor}


def generation(values: Values) -> Raw:
    """What generation_config.json would say of how canvases are denoised."""
    said = {key: values.all.get(f"diffusion.eb_{theirs}") for key, theirs in DENOISING.items()}
    found = {key: plain(value) for key, value in said.items() if value is not None}
    sampler = {key: found.pop(key) for key in ("entropy_bound",) if key in found}
    return found | {"sampler_config": sampler} if sampler else found
