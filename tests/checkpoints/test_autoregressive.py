"""Plain autoregressive families give the logits of transformers, and are bases for block diffusion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from unmask import DiffusionLM, UnmaskError
from unmask.checkpoints.families.mamba2 import LONGEST
from unmask.checkpoints.open import Checkpoint
from unmask.models.config import ModelConfig

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3 tied": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3 experts": ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mamba2": ("Mamba2", {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "state_size": 24, "n_groups": 2}),
    "mamba2 tied": (
        "Mamba2",
        {"num_heads": 4, "head_dim": 32, "n_groups": 1, "tie_word_embeddings": True, "use_bias": True},
    ),
    "gemma": ("Gemma", {"head_dim": 24}),
    "gemma 3": ("Gemma3Text", {"head_dim": 16, "query_pre_attn_scalar": 20, "num_hidden_layers": 7}),
    "gemma 3 with a window": (
        "Gemma3Text",
        {
            "head_dim": 16,
            "sliding_window": 48,
            "layer_types": ["full_attention", "sliding_attention"],
            "final_logit_softcapping": 5.0,
            "attention_bias": True,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e3},
            },
        },
    ),
    "mistral with a window": ("Mistral", {"sliding_window": 48, "head_dim": 32}),
}


def make(kind: str, folder: Path) -> Any:
    """A random model of transformers, saved."""
    name, options = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **options})
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            parameter.data += 0.2 * torch.randn_like(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = make(kind, tmp_path / "theirs")
    lm = DiffusionLM.from_pretrained(tmp_path / "theirs")
    assert lm.config.layout == "causal"
    length = 48 if "window" in kind else 96
    assert lm.config.max_length == (LONGEST if "mamba2" in kind else length)
    ids = torch.randint(97, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = model(ids).logits
    torch.testing.assert_close(lm.logits(ids)[:, 1:], theirs[:, :-1], atol=1e-4, rtol=1e-4)
    lm.save_pretrained(tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, theirs)


def test_gemma_2_is_refused_by_its_name(tmp_path: Path) -> None:
    transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**{**SIZES, "head_dim": 16})).save_pretrained(tmp_path)
    with pytest.raises(UnmaskError, match="Gemma2ForCausalLM is known but not read"):
        DiffusionLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("gemma", {"hidden_act": "relu"}, "activation 'relu'"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "each of 2 layers"),
        ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "yarn"),
        ("gemma3", {}, "reads images"),
    ],
)
def test_a_gemma_of_another_build_is_refused(kind: str, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **SIZES, **changed}))
    with pytest.raises(UnmaskError, match=message):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma"])
def test_an_encoder_made_of_an_ar_network_is_refused(kind: str, tmp_path: Path) -> None:
    """transformers lets every token see all where config.json says so."""
    for said in (True, False):
        config = {"architectures": [f"{kind}ForCausalLM"], **SIZES, "max_position_embeddings": 64, "is_causal": said}
        (tmp_path / "config.json").write_text(json.dumps(config))
        if said:
            assert Checkpoint.open(tmp_path).config.layout == "causal"
        else:
            with pytest.raises(UnmaskError, match="is_causal False"):
                Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output_norms": True, "time_condition_size": 16}, "output_norms"),
        ({"embedding_scale": float("nan")}, "embedding_scale"),
        ({"attention_scale": -1.0}, "attention_scale"),
        ({"local_layers": (2,)}, "local_layers"),
        ({"layout": "canvas", "block_length": 4, "embedding_scale": 8.0}, "layout canvas"),
    ],
)
def test_what_a_network_would_leave_out_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UnmaskError, match=named):
        ModelConfig(vocab_size=20, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, **options)


@pytest.mark.parametrize("shift", [True, False])
def test_a_base_is_read_in_another_way_and_saved_so(shift: bool, tmp_path: Path) -> None:
    make("qwen3", tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    network = base.network(layout="block_causal", block_length=4, shift=shift, mask_token_id=96)
    assert (network.config.layout, network.config.block_length, network.config.shift) == ("block_causal", 4, shift)
    assert torch.equal(network.embedding.weight, base.network().embedding.weight)
    DiffusionLM(network, None, loaded=base).save_pretrained(tmp_path / "made")
    made = Checkpoint.open(tmp_path / "made")
    assert made.family is None
    assert made.config == network.config
    ids = torch.arange(20)[None]
    assert torch.equal(made.network()(ids), network(ids))


def test_what_the_weights_settle_does_not_change(tmp_path: Path) -> None:
    make("llama", tmp_path)
    base = Checkpoint.open(tmp_path)
    with pytest.raises(UnmaskError, match="hidden_size of"):
        base.network(hidden_size=32)
    with pytest.raises(UnmaskError, match="block_length"):
        base.network(layout="block_causal")
