"""Recorded numbers and runs of public references, by the native forward with float32 weights.

The sizes of most fixtures (hidden 48, heads of 12) are none that the forward takes, so each such network is widened by
zeros to one that computes the same.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance.checks import ancestral, full_canvas
from conformance.checks.fixture import FORWARD, Fixture, find
from conformance.checks.run import generation
from unmask import DiffusionLM
from unmask.backends import Source
from unmask.backends import torch as torch_backend
from unmask.backends.native import network as native
from unmask.backends.native.backend import NativeBackend, packed
from unmask.decoding.feed import Columns, Feed
from unmask.layout import Layout
from unmask.models.transformer import Transformer

pytestmark = pytest.mark.skipif(native.library() is None, reason="installed without a C compiler")
FOLDER = Path(__file__).parents[1] / "conformance"
EXPERTS = ("llada_moe", "llada2_moe")
TOLD = ("mdlm", "duo", "sedd_absorb", "sedd_uniform")  # a noise level
DENSE = ("llada", "dream", "sdar", "a2d_qwen3", "stable_diffcoder", "fast_dllm_v2")


def padded(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values in the corner of zeros."""
    out = torch.zeros(shape)
    out[tuple(slice(size) for size in values.shape)] = values
    return out


def wider_heads(values: Tensor, size: int, wide: int) -> Tensor:
    """Rows of heads [H * size, ..], each head with rows of zeros behind it."""
    heads = values.reshape(-1, size, *values.shape[1:])
    return padded(heads, (len(heads), wide, *heads.shape[2:])).flatten(0, 1)


def widened(network: Transformer) -> Transformer:
    """A network of a hidden size and heads that the forward takes, its logits those of a smaller one.

    A root mean square over features and zeros is smaller by the root of the features' share, and so are scores, which
    are divided by the root of a head's width.
    """
    c = network.config
    hidden = -(-c.hidden_size // 32) * 32
    head = -(-c.head_dim // 16) * 16
    shares = {c.hidden_size: math.sqrt(c.hidden_size / hidden), c.head_dim: math.sqrt(c.head_dim / head)}
    sizes = {"hidden_size": hidden, "head_dim": head, "rope_fraction": c.rotary_size / head}
    wide = Transformer(replace(c, **sizes, norm_eps=c.norm_eps * c.hidden_size / hidden))
    for name, parameter in wide.named_parameters():
        values = network.get_parameter(name).detach()
        part = name.split(".")[-2]
        if part in ("q_proj", "k_proj", "v_proj"):
            values = wider_heads(values, c.head_dim, head)
        elif name.endswith("o_proj.weight"):
            values = wider_heads(values.T, c.head_dim, head).T
        elif "norm" in part:
            values = values * shares[len(values)]
        if part == ("q_norm" if c.qk_norm else "q_proj"):
            values = values / shares[c.head_dim]
        parameter.data = padded(values, tuple(parameter.shape))
    return wide


def opened(family: str) -> tuple[Fixture, Any, Any]:
    """A fixture, its model widened, and what makes backends of it."""
    (fixture,), _ = find(FOLDER / family)
    lm = DiffusionLM.from_pretrained(fixture.path, dtype="float32", backend="torch")
    wide = widened(lm.model)
    network = packed(Source(wide.config, lambda: wide), 32, None)
    model = SimpleNamespace(model=wide, config=wide.config, loaded=lm.loaded, name=lm.name)
    return fixture, model, lambda _: NativeBackend(network)


def rows(backend: NativeBackend, ids: Tensor, layout: Layout, time: Tensor | None = None) -> np.ndarray:
    place = np.arange(ids.shape[1])
    times = [0.0] * len(ids) if time is None else time.tolist()
    backend.open(layout, len(ids), len(place), True)
    none = np.full(len(place), -1)
    columns = [Columns(row.numpy(), place, none, place, place, time=t) for row, t in zip(ids, times, strict=True)]
    made = np.array(backend.forward(Feed.of(columns, np.zeros(len(ids), np.int64))).text)
    return made.reshape(*ids.shape, -1)


@pytest.mark.parametrize("family", EXPERTS)
def test_logits_are_the_recorded_ones(family: str) -> None:
    fixture, _, make = opened(family)
    recorded = fixture.tensors(FORWARD)
    names = {"logits": Layout("bidirectional"), "block8.logits": Layout("block_causal", 8)}
    found = [name for name in names if name in recorded]
    assert len(found) == (1 if family == "llada_moe" else 2)
    for name in found:
        theirs = recorded[name].numpy()
        ours = rows(make(None), recorded["input_ids"], names[name])
        finite = np.isfinite(ours)
        assert finite.mean() > 0.99
        np.testing.assert_allclose(ours[finite], theirs[finite], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", TOLD)
def test_logits_at_noise_levels_are_the_recorded_ones(family: str) -> None:
    fixture, _, make = opened(family)
    recorded = fixture.tensors(FORWARD)
    names = [name for name in recorded if name in ("sigma0.logits", "sigma_conditioned.logits", "logits", "log_score")]
    assert names
    for name in names:
        time = None if name == "sigma0.logits" else recorded["sigma"]
        theirs = recorded[name].numpy()
        ours = rows(make(None), recorded["input_ids"], Layout("bidirectional"), time)
        finite = np.isfinite(ours)
        assert finite.mean() > 0.95
        np.testing.assert_allclose(ours[finite], theirs[finite], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", [*EXPERTS, *DENSE, *TOLD, "bd3lm", "bd3lm_adaln"])
def test_recorded_runs_are_made_again(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture, lm, make = opened(family)
    monkeypatch.setattr(ancestral, "TorchBackend", make)
    monkeypatch.setattr(full_canvas, "TorchBackend", make)
    monkeypatch.setattr(torch_backend, "TorchBackend", make)
    cases = fixture.cases()
    noise = fixture.noise()
    found = [generation(family, lm.loaded.family.name, lm, case, noise, n) for n, case in enumerate(cases)]
    assert found
    assert [f"{o.name}: {o.detail}" for o in found if not o.holds and not o.deviation] == []
    assert sum(o.holds is True for o in found) > len(found) // 2
