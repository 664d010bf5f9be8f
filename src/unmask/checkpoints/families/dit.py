"""MDLM, BD3-LM and DUO: a DiT with LayerNorm, fused qkv, rotary positions and (but for BD3-LM's default) adaLN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unmask.checkpoints.families.family import Family, Names
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

ROOT = "backbone."


def network(hidden: Any) -> dict[str, Any]:
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
        **network(raw.get("hidden_dim")),
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


def names(config: ModelConfig, root: str = ROOT) -> Names:
    layer = root + "blocks.{i}."
    ours = "blocks.{i}."
    table = [
        ("embedding.weight", root + "vocab_embed.embedding"),
        ("norm.weight", root + "output_layer.norm_final.weight"),
        ("head.weight", root + "output_layer.linear.weight"),
        ("head.bias", root + "output_layer.linear.bias"),
        (ours + "norm1.weight", layer + "norm1.weight"),
        (ours + "norm2.weight", layer + "norm2.weight"),
        (" + ".join(f"{ours}mixer.{part}_proj.weight" for part in "qkv"), layer + "attn_qkv.weight"),
        (ours + "mixer.o_proj.weight", layer + "attn_out.weight"),
    ]
    pairs = [(ours + "mlp.up_proj", layer + "mlp.0"), (ours + "mlp.down_proj", layer + "mlp.2")]
    if config.time_condition_size:
        pairs += [
            (ours + "modulation", layer + "adaLN_modulation"),
            ("final_modulation", root + "output_layer.adaLN_modulation"),
            ("time_embedding.up", root + "sigma_map.mlp.0"),
            ("time_embedding.down", root + "sigma_map.mlp.2"),
        ]
    return table + [(f"{a}.{leaf}", f"{b}.{leaf}") for a, b in pairs for leaf in ("weight", "bias")]


def frequencies(config: ModelConfig) -> Tensor:
    """The rotary frequencies as the references store them."""
    import torch

    return 1.0 / (10000 ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim))


def constants(config: ModelConfig, raw: dict[str, Any]) -> dict[str, Tensor]:
    """Buffers in the files: the rotary frequencies and, in BD3-LM, the clipped interval of times."""
    import torch

    out = {ROOT + "rotary_emb.inv_freq": frequencies(config)}
    if _kind(raw) == "bd3lm":
        clip = {name: raw.get(name) for name in ("sampling_eps_min", "sampling_eps_max")}
        out |= {name: torch.tensor(float(v)) for name, v in clip.items() if isinstance(v, int | float)}
    return out


def _family(name: str, kind: Literal["A", "B", "C"], model_type: str, **defaults: Any) -> Family:
    own = {"temperature": 1.0, **defaults}
    return Family(name, (model_type,), (name.replace("-", ""),), read, names, kind, own, constants=constants)


FAMILIES = [
    _family("MDLM", "A", "mdlm", sampler="ddpm_cache", noise_removal="greedy"),
    _family("BD3-LM", "B", "bd3lm", sampler="first_hitting", nucleus_p=0.9),
    _family("DUO", "C", "duo", sampler="ancestral", noise_removal="ancestral"),
]
