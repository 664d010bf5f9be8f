"""Stretched rotary frequencies (YaRN, arXiv 2309.00071) against the paper's cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from unmask.checkpoints.families import llama
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer, rotary_tables
from unmask.models.yarn import stretched

THETA, SIZE, TRAINED, FACTOR = 1e6, 128, 16384.0, 16.0
PLAIN = THETA ** (-torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)


def test_fast_frequencies_stay_and_slow_ones_are_divided() -> None:
    ours = stretched(PLAIN, THETA, FACTOR, TRAINED, 32.0, 1.0)
    turns = TRAINED * PLAIN / (2 * math.pi)  # in the texts it was trained on
    ratio = PLAIN / ours
    step = THETA ** (2 / SIZE)  # neighbouring dimensions: the ends of the ramp are rounded to one
    torch.testing.assert_close(ratio[turns > 32 * step], torch.ones_like(ratio[turns > 32 * step]))
    torch.testing.assert_close(ratio[turns < 1 / step], torch.full_like(ratio[turns < 1 / step], FACTOR))
    assert (ratio.diff() >= -1e-12).all()
    assert ((ratio > 1) & (ratio < FACTOR)).any()


def test_the_ramp_is_linear_in_the_dimension_between_its_ends() -> None:
    """By hand for 8 dimensions, theta 10000, 4096 tokens: low = floor(4 log_1e4(4096 / 64 pi)), high likewise."""
    plain = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    low = math.floor(8 * math.log(4096 / (32 * 2 * math.pi)) / (2 * math.log(10000)))
    high = math.ceil(8 * math.log(4096 / (2 * math.pi)) / (2 * math.log(10000)))
    assert (low, high) == (1, 3)
    ramp = torch.tensor([0.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    expected = plain * (1 - ramp) + plain / 4 * ramp
    torch.testing.assert_close(stretched(plain, 10000.0, 4.0, 4096.0, 32.0, 1.0), expected)


def test_a_factor_of_one_changes_nothing(tiny: Callable[..., Transformer]) -> None:
    plain, same = tiny().config, tiny(rope_yarn=(1.0, 16.0, 32.0, 1.0, 1.0)).config
    for ours, theirs in zip(rotary_tables(plain, 32), rotary_tables(same, 32), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_tables_are_made_in_pieces_that_fit_together(tiny: Callable[..., Transformer]) -> None:
    config = tiny(rope_yarn=(2.0, 16.0, 32.0, 1.0, 1.25)).config
    cos, sin = rotary_tables(config, 20_000)
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, 1.25**2))
    short_cos, short_sin = rotary_tables(config, 100)
    assert torch.equal(cos[:100], short_cos)
    assert torch.equal(sin[:100], short_sin)
    angle = 19_999 * config.rope_theta ** -torch.tensor(0.0, dtype=torch.float64)
    assert cos[19_999, 0].item() == pytest.approx(1.25 * math.cos(angle.item()), abs=1e-6)


def test_reading_of_rope_scaling() -> None:
    rope = {"rope_type": "yarn", "factor": 8.0}
    raw = {"rope_scaling": rope, "max_position_embeddings": 4096}
    assert llama.yarn(raw) == (8.0, 4096.0, 32.0, 1.0, 0.1 * math.log(8) + 1)
    raw["rope_scaling"] = {**rope, "original_max_position_embeddings": 512, "mscale": 2.0, "mscale_all_dim": 1.0}
    both = (0.2 * math.log(8) + 1) / (0.1 * math.log(8) + 1)
    assert llama.yarn(raw) == (8.0, 512.0, 32.0, 1.0, pytest.approx(both))
    raw["rope_scaling"] = {**rope, "type": "yarn", "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2}
    assert llama.yarn(raw) == (8.0, 4096.0, 16.0, 2.0, 1.5)
    assert llama.yarn({"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}) == ()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3"},
        "linear",
        {"type": "dynamic"},
        {"rope_type": "yarn"},
        {"rope_type": "yarn", "factor": "8"},
    ],
)
def test_other_kinds_and_odd_values_are_refused(rope: object) -> None:
    with pytest.raises(UnmaskError, match="rope_scaling"):
        llama.yarn({"rope_scaling": rope, "max_position_embeddings": 64})


@pytest.mark.parametrize("values", [(1.0,), (0.0, 16.0, 32.0, 1.0, 1.0), (2.0, 16.0, 1.0, 32.0, 1.0)])
def test_impossible_values_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(UnmaskError, match="rope_yarn"):
        ModelConfig(8, 8, 1, 1, 8, rope_yarn=values)
