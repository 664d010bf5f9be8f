"""DiffuGPT (arXiv 2410.17891): GPT-2 made bidirectional, learned positions, with a head shifted by one."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families.family import Family, ids, layered, require


def read(raw: dict[str, Any]) -> dict[str, Any]:
    gelu = ("gelu_new", "gelu_pytorch_tanh")
    require(raw, "DiffuGPT", activation_function=gelu, scale_attn_weights=True, add_cross_attention=False)
    require(raw, "DiffuGPT", scale_attn_by_inverse_layer_idx=False, tie_word_embeddings=True)
    hidden = raw.get("n_embd")
    inner = raw.get("n_inner")
    return {
        "vocab_size": raw.get("vocab_size"),
        "hidden_size": hidden,
        "num_layers": raw.get("n_layer"),
        "num_heads": raw.get("n_head"),
        "intermediate_size": 4 * hidden if inner is None and isinstance(hidden, int) else inner,
        "max_length": raw.get("n_positions"),
        "norm": "layer",
        "norm_bias": True,
        "norm_eps": raw.get("layer_norm_epsilon", 1e-5),
        "rope_fraction": 0.0,
        "learned_positions": True,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "activation": "gelu_tanh",
        "shift": True,
        **ids(raw),
    }


ROOT = "denoise_model."
WHOLE = {"embedding": "embed_tokens", "position_embedding": ROOT + "wpe", "norm": ROOT + "ln_f"}
LAYER = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    **{f"mixer.{part}_proj": "attn.c_attn" for part in "qkv"},
    "mixer.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
FAMILY = Family(
    name="DiffuGPT",
    model_types=("gpt2",),
    architectures=("GPT2LMHeadModel", "DiscreteDiffusionModel"),
    read=read,
    names=layered(WHOLE, ROOT + "h.{}.", LAYER),
    defaults={"rule": "random", "max_denoising_steps": 64, "temperature": 0.95, "top_p": 0.9},
    mask=10541,  # a word of GPT-2's vocabulary, used anew
    eos=50256,
    transposed=("c_attn.weight", "c_proj.weight", "c_fc.weight"),  # GPT-2's Conv1D
    ignored=("attn.bias", "attn.masked_bias"),  # the causal mask, filled with True
)
