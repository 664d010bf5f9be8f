"""MDLM, BD3-LM and DUO: a DiT with LayerNorm, fused qkv, rotary positions and (but for BD3-LM's default) adaLN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unmask.models.config import ModelConfig
from unmask.models.family import Family, Names

if TYPE_CHECKING:
    from torch import Tensor

ROOT = "backbone."


def read(raw: dict[str, Any]) -> dict[str, Any]:
    hidden, vocabulary = raw.get("hidden_dim"), raw.get("vocab_size")
    blocks = raw.get("model_type") == "bd3lm"
    adaln = raw.get("adaln", True) if blocks else True
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_layers": raw.get("n_blocks"),
        "num_heads": raw.get("n_heads"),
        "intermediate_size": 4 * hidden if isinstance(hidden, int) else hidden,
        "max_length": raw.get("model_length"),
        "norm": "layer",
        "mlp_bias": True,
        "activation": "gelu_tanh",
        "tie_embeddings": False,
        "head_bias": True,
        "time_condition_size": raw.get("cond_dim") if adaln else 0,
        "layout": "block_causal" if blocks else "bidirectional",
        "block_length": raw.get("block_size", 4) if blocks else 0,
        # GPT-2's vocabulary and, last, the mask (DUO has none: its noise is uniform)
        "mask_token_id": vocabulary - 1 if isinstance(vocabulary, int) and raw.get("model_type") != "duo" else None,
    }


def names(config: ModelConfig) -> Names:
    layer, ours = ROOT + "blocks.{i}.", "blocks.{i}."
    table = [
        ("embedding.weight", ROOT + "vocab_embed.embedding"),
        ("norm.weight", ROOT + "output_layer.norm_final.weight"),
        ("head.weight", ROOT + "output_layer.linear.weight"),
        ("head.bias", ROOT + "output_layer.linear.bias"),
        (ours + "norm1.weight", layer + "norm1.weight"),
        (ours + "norm2.weight", layer + "norm2.weight"),
        (" + ".join(f"{ours}mixer.{part}_proj.weight" for part in "qkv"), layer + "attn_qkv.weight"),
        (ours + "mixer.o_proj.weight", layer + "attn_out.weight"),
    ]
    pairs = [(ours + "mlp.up_proj", layer + "mlp.0"), (ours + "mlp.down_proj", layer + "mlp.2")]
    if config.time_condition_size:
        pairs += [
            (ours + "modulation", layer + "adaLN_modulation"),
            ("final_modulation", ROOT + "output_layer.adaLN_modulation"),
            ("time_embedding.up", ROOT + "sigma_map.mlp.0"),
            ("time_embedding.down", ROOT + "sigma_map.mlp.2"),
        ]
    return table + [(f"{a}.{leaf}", f"{b}.{leaf}") for a, b in pairs for leaf in ("weight", "bias")]


def constants(config: ModelConfig, raw: dict[str, Any]) -> dict[str, Tensor]:
    """Buffers in the files: the rotary frequencies and, in BD3-LM, the clipped interval of times."""
    width = config.head_dim
    import torch

    out = {ROOT + "rotary_emb.inv_freq": 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width))}
    if raw.get("model_type") == "bd3lm":
        out |= {n: torch.tensor(float(raw[n])) for n in ("sampling_eps_min", "sampling_eps_max") if n in raw}
    return out


FAMILY = Family(
    name="MDLM, BD3-LM, DUO",
    model_types=("mdlm", "bd3lm", "duo"),
    architectures=("MDLM", "BD3LM", "DUO"),
    read=read,
    names=names,
    defaults={"rule": "random", "temperature": 1.0},
    constants=constants,
)
