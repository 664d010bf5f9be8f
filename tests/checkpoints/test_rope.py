"""Stretched rotary positions: every kind as transformers has it, and what is not read refused by its name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask import DiffusionLM
from unmask.checkpoints.families import llama
from unmask.checkpoints.families import rope as reading
from unmask.errors import UnmaskError
from unmask.models import rope
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer, rotary_tables

THETA = 1e6
SIZE = 128
TRAINED = 16384.0
FACTOR = 16.0
RAW = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 64, "max_position_embeddings": 512}


def stretched(rope_scaling: Any, **more: Any) -> dict[str, Any]:
    return reading.read({**RAW, "rope_theta": 10000.0, "rope_scaling": rope_scaling, **more})


def test_fast_frequencies_stay_and_slow_ones_are_divided() -> None:
    ratio = torch.tensor(rope.yarn(THETA, SIZE, factor=FACTOR, trained=TRAINED, fast=32.0, slow=1.0))
    plain = torch.tensor(rope.frequencies(THETA, SIZE))
    turns = TRAINED * plain / (2 * math.pi)  # in the texts it was trained on
    step = THETA ** (2 / SIZE)  # neighbouring dimensions: the ends of the ramp are rounded to one
    torch.testing.assert_close(ratio[turns > 32 * step], torch.ones_like(ratio[turns > 32 * step]))
    torch.testing.assert_close(ratio[turns < 1 / step], torch.full_like(ratio[turns < 1 / step], FACTOR))
    assert (ratio.diff() >= -1e-6).all()
    assert ((ratio > 1) & (ratio < FACTOR)).any()


def test_the_ramp_is_linear_in_the_dimension_between_its_ends() -> None:
    """By hand for 8 dimensions, theta 10000, 4096 tokens: low = floor(4 log_1e4(4096 / 64 pi)), high likewise."""
    low = math.floor(8 * math.log(4096 / (32 * 2 * math.pi)) / (2 * math.log(10000)))
    high = math.ceil(8 * math.log(4096 / (2 * math.pi)) / (2 * math.log(10000)))
    assert (low, high) == (1, 3)
    factors = rope.yarn(10000.0, 8, factor=4.0, trained=4096.0, fast=32.0, slow=1.0)
    assert factors == pytest.approx((1.0, 1.0, 1 / (0.5 + 0.125), 4.0))


def test_tables_are_made_in_pieces_that_fit_together(tiny: Callable[..., Transformer]) -> None:
    config = tiny(rope_factors=(1.0, 1.5, 2.0, 2.0), rope_scale=1.25).config
    cos, sin = rotary_tables(config, 20_000)
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, 1.25**2))
    short_cos, short_sin = rotary_tables(config, 100)
    assert torch.equal(cos[:100], short_cos)
    assert torch.equal(sin[:100], short_sin)
    assert cos[19_999, 0].item() == pytest.approx(1.25 * math.cos(19_999), abs=1e-6)


# --- against transformers -----------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1 + i / 16 for i in range(32)],
    "long_factor": [2.0] * 32,
    "original_max_position_embeddings": 128,
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": YARN,
    "yarn without rounding": {**YARN, "truncate": False},
    "yarn with scales": {**YARN, "mscale": 2.0, "mscale_all_dim": 1.0},
    "yarn with a given scale": {**YARN, "attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0},
    "llama3": {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": LONG,
    "longrope with a factor": {**LONG, "factor": 8.0},
    "longrope with a scale": {**LONG, "attention_factor": 1.25},
}


@pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_logits_of_transformers(kind: str, where: str, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    given = {"rope_theta": 10000.0, **KINDS[kind]}
    config = LlamaConfig(
        vocab_size=97, head_dim=64, num_key_value_heads=1, max_position_embeddings=512, rope_parameters=given, **sizes
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps({**raw, where: KINDS[kind], "rope_theta": 10000.0}))
    lm = DiffusionLM.from_pretrained(tmp_path)
    ids = torch.randint(97, (1, min(lm.config.max_length, 160)), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = model(ids).logits
    ours = lm.logits(ids)
    torch.testing.assert_close(ours[:, 1:], theirs[:, :-1], atol=1e-4, rtol=1e-4)


def test_reading_of_yarn() -> None:
    made = stretched({"rope_type": "yarn", "factor": 8.0})
    assert made["rope_scale"] == pytest.approx(0.1 * math.log(8) + 1)
    assert len(made["rope_factors"]) == 32
    made = stretched({"type": "yarn", "factor": 8.0, "mscale": 2.0, "mscale_all_dim": 1.0})
    assert made["rope_scale"] == pytest.approx((0.2 * math.log(8) + 1) / (0.1 * math.log(8) + 1))


def test_the_newer_place_of_theta_wins_and_nested_kinds_are_read() -> None:
    assert reading.read({**RAW, "rope_theta": 1.5, "rope_parameters": {"rope_theta": 500.0}})["rope_theta"] == 500.0
    nested = {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}}
    made = reading.read({**RAW, "rope_parameters": nested})
    assert (made["rope_theta"], made["rope_factors"][0]) == (100.0, 2.0)


@pytest.mark.parametrize(
    ("rope_scaling", "named"),
    [
        ("linear", "rope_scaling"),
        ({"rope_type": "su"}, "'su'"),
        ({"rope_type": "proportional"}, "'proportional'"),
        ({"rope_type": ["yarn"]}, "yarn"),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "yarn", "factor": "8"}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": 3}, "truncate"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 2.0}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "novel": 3}, "'novel'"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.0}, "attention_factor"),
        ({"rope_type": "default", "mrope_section": [1, 2]}, "'mrope_section'"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 32}, "'beta_fast'"),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "short_factor"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(rope_scaling: Any, named: str) -> None:
    with pytest.raises(UnmaskError, match=named):
        stretched(rope_scaling)
    with pytest.raises(UnmaskError, match="partial_rotary_factor"):
        llama.read({**RAW, "partial_rotary_factor": 0.25})


def test_scaling_is_never_left_out_in_silence() -> None:
    with pytest.raises(UnmaskError, match=r"rope_theta 0\.5"):
        stretched({"rope_type": "linear", "factor": 2.0}, rope_theta=0.5)


@pytest.mark.parametrize("fields", [{"rope_factors": (1.0,)}, {"rope_factors": (0.0,) * 4}, {"rope_scale": 0.0}])
def test_impossible_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UnmaskError, match="rope_"):
        ModelConfig(8, 8, 1, 1, 8, **fields)


def test_a_rotated_size_that_is_said_twice_has_to_agree() -> None:
    """LLaDA2 and others of Bailing's shape say rotary_dim beside partial_rotary_factor."""
    both = {**RAW, "partial_rotary_factor": 0.5, "rotary_dim": 32}
    assert llama.read(both, partial=True)["rope_fraction"] == 0.5
    assert llama.read({**RAW, "rotary_dim": 64})["rope_fraction"] == 1.0
    for wrong in ({**both, "rotary_dim": 64}, {**RAW, "rotary_dim": 32}, {**RAW, "rotary_dim": "64"}):
        with pytest.raises(UnmaskError, match="rotary_dim"):
            llama.read(wrong, partial=True)
