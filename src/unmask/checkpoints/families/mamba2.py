"""Mamba-2 (arXiv 2405.21060), as transformers saves it: autoregressive, without attention and MLP."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families.family import Family, ids, layered, require
from unmask.checkpoints.families.llama import AR

LONGEST = 2**20  # its config.json names no length, and none is built in
SPACE = {  # ours and theirs
    "expand": ("expand", 2),
    "head_dim": ("head_dim", 64),
    "state_size": ("state_size", 128),
    "num_groups": ("n_groups", 8),
    "conv_width": ("conv_kernel", 4),
    "bias": ("use_bias", False),
    "conv_bias": ("use_conv_bias", True),
}


def read(raw: dict[str, Any]) -> dict[str, Any]:
    space = {ours: raw.get(theirs, usual) for ours, (theirs, usual) in SPACE.items()}
    unbounded = [[0.0, end] for end in (float("inf"), "Infinity", {"__float__": "Infinity"})]
    require(raw, "Mamba-2", hidden_act=("silu", "swish"), time_step_limit=tuple(unbounded))
    return {
        "vocab_size": raw.get("vocab_size"),
        "hidden_size": raw.get("hidden_size"),
        "num_layers": raw.get("num_hidden_layers"),
        "num_heads": 1,  # of attention, which it has not
        "intermediate_size": 0,
        "rope_fraction": 0.0,
        "max_length": LONGEST,
        "norm_eps": raw.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": raw.get("tie_word_embeddings", False),
        "mixers": ["mamba2"],
        "state_space": space,
        **AR,
        **ids(raw),
    }


WHOLE = {"embedding": "backbone.embeddings", "norm": "backbone.norm_f", "head": "lm_head"}
LAYER = {
    "norm1": "norm",
    "mixer.in_proj": "mixer.in_proj",
    "mixer.o_proj": "mixer.out_proj",
    "mixer.conv_weight": "mixer.conv1d.weight",
    "mixer.conv_bias": "mixer.conv1d.bias",
    "mixer.norm_weight": "mixer.norm.weight",
    **{f"mixer.{name}": f"mixer.{name}" for name in ("dt_bias", "A_log", "D")},
}
FAMILY = Family(
    name="Mamba-2",
    model_types=("mamba2",),
    architectures=("Mamba2ForCausalLM",),
    read=read,
    names=layered(WHOLE, "backbone.layers.{}.", LAYER),
    kind="AR",
    borrows_mask=True,
    limits="the sum of layers is kept in the weights' dtype, whatever residual_in_fp32 says",
)
