"""MDLM, BD3-LM, DUO and SEDD: a DiT with LayerNorm, fused qkv, rotation and (but for BD3-LM's default) adaLN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unmask.checkpoints.families.family import Family, Names, layered
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

ROOT = "backbone."


def _network(hidden: Any) -> dict[str, Any]:
    """What all DiTs share: ModelConfig fields that follow from the hidden size alone."""
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden if isinstance(hidden, int) else hidden,
        "norm": "layer",
        "mlp_bias": True,
        "activation": "gelu_tanh",
        "tie_embeddings": False,
        "head_bias": True,
    }


def read(raw: dict[str, Any]) -> dict[str, Any]:
    vocabulary = raw.get("vocab_size")
    kind = _kind(raw)
    blocks = kind == "bd3lm"
    adaln = raw.get("adaln", True) if blocks else True
    return {
        **_network(raw.get("hidden_dim")),
        "vocab_size": vocabulary,
        "num_layers": raw.get("n_blocks"),
        "num_heads": raw.get("n_heads"),
        "max_length": raw.get("model_length"),
        "time_condition_size": raw.get("cond_dim") if adaln else 0,
        "layout": "block_causal" if blocks else "bidirectional",
        "block_length": raw.get("block_size", 4) if blocks else 0,
        "time_conditioned": raw.get("time_conditioning", kind == "duo"),
        "corruption": "uniform" if kind == "duo" else "absorbing",
        "noise_schedule": "linear" if blocks else "log_linear",
        # GPT-2's vocabulary and, last, the mask
        "mask_token_id": vocabulary - 1 if isinstance(vocabulary, int) and kind != "duo" else None,
    }


def _kind(raw: dict[str, Any]) -> str:
    """mdlm, bd3lm or duo: by model_type, else by architecture."""
    listed = raw.get("architectures")
    named = str(listed[0]).lower() if isinstance(listed, list) and listed else ""
    kind = str(raw.get("model_type"))
    return kind if kind in ("mdlm", "bd3lm", "duo") else named


def read_sedd(raw: dict[str, Any]) -> dict[str, Any]:
    """Of SEDD, whose head gives log scores at a noise level: its config.json is the training run's."""
    graph = raw.get("graph")
    model = raw.get("model")
    tokens = raw.get("tokens")
    kind = graph.get("type") if isinstance(graph, dict) else graph
    if kind not in ("absorb", "uniform"):
        raise UnmaskError(f"model config: graph.type {kind!r:.40} is not supported; SEDD has 'absorb' and 'uniform'")
    if not isinstance(model, dict):
        raise UnmaskError(f"model config: model must be a mapping of sizes, got {model!r:.40}")
    absorbs = kind == "absorb"  # then the mask is one token more than the vocabulary
    noise = raw.get("noise")  # where none is said, the one that suits the graph
    noise = noise if isinstance(noise, dict) else {"type": "loglinear" if absorbs else "geometric"}
    schedules = {"loglinear": "log_linear", "geometric": "geometric"}
    if noise.get("type") not in schedules:
        raise UnmaskError(
            f"model config: noise.type {noise.get('type')!r:.40} is not supported; SEDD has {list(schedules)}"
        )
    return {
        **_network(model.get("hidden_size")),
        "vocab_size": tokens + 1 if absorbs and isinstance(tokens, int) else tokens,
        "num_layers": model.get("n_blocks"),
        "num_heads": model.get("n_heads"),
        "max_length": model.get("length"),
        "time_condition_size": model.get("cond_dim"),
        "time_conditioned": True,
        "corruption": "absorbing" if absorbs else "uniform",
        "noise_schedule": schedules[noise["type"]],
        "noise_range": (noise.get("sigma_min", 1e-3), noise.get("sigma_max", 1.0)),
        "output": "log_score",
        "score_scaled": model.get("scale_by_sigma", False),
        "mask_token_id": tokens if absorbs else None,
    }


def named(root: str) -> Names:
    whole = {
        "embedding.weight": root + "vocab_embed.embedding",
        "norm": root + "output_layer.norm_final",
        "head": root + "output_layer.linear",
        "final_modulation": root + "output_layer.adaLN_modulation",
        "time_embedding.up": root + "sigma_map.mlp.0",
        "time_embedding.down": root + "sigma_map.mlp.2",
    }
    layer = {
        "norm1": "norm1",
        "norm2": "norm2",
        **{f"mixer.{part}_proj": "attn_qkv" for part in "qkv"},
        "mixer.o_proj": "attn_out",
        "mlp.up_proj": "mlp.0",
        "mlp.down_proj": "mlp.2",
        "modulation": "adaLN_modulation",
    }
    return layered(whole, root + "blocks.{}.", layer)


def _frequencies(config: ModelConfig, root: str) -> dict[str, Tensor]:
    """The rotary frequencies as the references store them."""
    import torch

    steps = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    return {root + "rotary_emb.inv_freq": 1.0 / (10000**steps)}


def constants(config: ModelConfig, raw: dict[str, Any]) -> dict[str, Tensor]:
    """Buffers in the files: the rotary frequencies and, in BD3-LM, the clipped interval of times."""
    import torch

    clip = {name: raw.get(name) for name in ("sampling_eps_min", "sampling_eps_max") if _kind(raw) == "bd3lm"}
    numbers = {name: torch.tensor(float(v)) for name, v in clip.items() if isinstance(v, int | float)}
    return _frequencies(config, ROOT) | numbers


def _family(name: str, kind: Literal["A", "B", "C"], model_type: str, **defaults: Any) -> Family:
    own = {"temperature": 1.0, **defaults}
    return Family(name, (model_type,), (name.replace("-", ""),), read, named(ROOT), kind, own, constants=constants)


FAMILIES = [
    _family("MDLM", "A", "mdlm", sampler="ddpm_cache", noise_removal="greedy"),
    _family("BD3-LM", "B", "bd3lm", sampler="first_hitting", nucleus_p=0.9),
    _family("DUO", "C", "duo", sampler="ancestral", noise_removal="ancestral"),
]
SEDD = Family(
    name="SEDD",  # arXiv 2310.16834
    model_types=(),
    architectures=("SEDD",),
    read=read_sedd,
    names=named(""),
    recognises=lambda raw, hint: "model_type" not in raw and {"graph", "tokens", "model"} <= raw.keys(),
    constants=lambda config, raw: _frequencies(config, ""),
    defaults={"sampler": "analytic", "temperature": 1.0, "noise_removal": "ancestral"},
)
