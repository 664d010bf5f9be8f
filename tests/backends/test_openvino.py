"""The compiled backend against the torch one, on a small random network with an adapter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draft_slots import compare_draft_head
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import DiffusionLM, UnmaskError
from unmask.backends.torch import TorchBackend
from unmask.checkpoints import adapter_files
from unmask.checkpoints.save import write_checkpoint
from unmask.decoding.feed import TEXT, Columns, Feed, Sampling
from unmask.layout import Layout
from unmask.models import adapter
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

pytest.importorskip("openvino")

from unmask.backends.openvino.backend import SLOT_STEP, OpenVINOBackend
from unmask.backends.openvino.graph import quantise

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_length": 512,
    "layout": "causal",
    "shift": True,
    "mask_token_id": 63,
    "eos_token_id": 62,
    "bos_token_id": 61,
}
PROMPTS = [[1, 2, 3], [9], [4, 5, 6, 7, 8, 9, 10], [20, 21]]


@pytest.fixture(scope="module", params=["width", "rank"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An adapter's folder beside its base, both random, and a cache of its own for the graphs."""
    root = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASK_CACHE", str(root / "cache"))
        make_adapter(root, request.param)
        yield root / "model"


def make_adapter(root: Path, kind: str) -> None:
    base = Transformer(ModelConfig(**SIZES)).initialise(0, std=0.3)
    write_checkpoint(root / "base", base.config.to_dict(), dict(base.named_parameters()), None)
    config = adapter.adapted_config(base.config, 4, **{kind: 8}, chain=8)
    network = adapter.attach(base, config)
    generator = torch.Generator().manual_seed(1)
    tensors = {n: torch.randn(p.shape, generator=generator) * 0.2 for n, p in adapter.own_parameters(network).items()}
    adapter.put(network, tensors)
    network.draft_vocabulary = torch.arange(0, 60)
    adapter_files.save(root / "model", network, tensors, str(root / "base"))


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[DiffusionLM, DiffusionLM]:
    return (
        DiffusionLM.from_pretrained(folder, backend="torch"),
        DiffusionLM.from_pretrained(folder, backend="openvino"),
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**31))
def test_quantised_rows_are_within_half_a_step(rows: int, columns: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    values, scale = quantise(weight)
    assert values.dtype == np.int8
    assert (np.abs(values * scale - weight) <= scale / 2 + 1e-6).all()


def distributions(lm: DiffusionLM, feeds: list[Feed], rows: int) -> list[np.ndarray]:
    """Of every scored row of feeds that follow each other."""
    lm.backend.open(Layout("drafts"), rows, 300, True)
    out = []
    for feed in feeds:
        n = len(feed.row)
        logits = lm.backend.forward(feed)
        sampling = Sampling(np.ones(n), np.zeros(n, int), np.ones(n), np.full(n, 0.5), np.full(n, 0.5))
        out.append(logits.probabilities(np.arange(n), sampling))
    return out


def test_forwards_are_near_those_of_torch(pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    """Prompt and slots, then drafts as text, ragged, over more slots than one step of the cache's growth."""
    rng, feeds, cached = np.random.default_rng(0), [], np.array([0, 0])
    for width in (100, 3, 60, 2):
        requests = []
        for b in range(2):
            count = width + b
            place = cached[b] + np.arange(count)
            slots = place[-1] + 1 + np.arange(3)
            anchor = np.concatenate([np.full(count, TEXT), np.full(3, place[-1])])
            ids = np.concatenate([rng.integers(0, 60, count), np.full(3, 63)])
            column = np.arange(count - 1, count + 3)
            where = np.concatenate([place, slots])
            requests.append(Columns(ids, where, anchor, column, where[column] + 1))
        feeds.append(Feed.of(requests, cached.copy()))
        cached += [width, width + 1]
    assert cached.max() > SLOT_STEP
    exact, compiled = (distributions(lm, feeds, 2) for lm in pair)
    for p, q in zip(exact, compiled, strict=True):
        assert q.shape == p.shape
        np.testing.assert_allclose(q.sum(-1), 1, atol=1e-9)
        assert 0.5 * np.abs(p - q).sum(-1).mean() < 0.06  # total variation: int8 weights and activations
        assert (q[:, 63] == 0).all()


def test_the_draft_head_knows_the_token_before(pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    compare_draft_head(pair, 63, 0.08)


@pytest.mark.parametrize("mode", ["ar", "verify", "diffusion"])
def test_text_is_nearly_that_of_torch(pair: tuple[DiffusionLM, DiffusionLM], mode: str) -> None:
    """Greedy ids agree until int8 first tips the balance between near-equal tokens."""
    exact, compiled = (lm.generate(PROMPTS, 24, mode=mode) for lm in pair)
    first = [a.token_ids[0] == b.token_ids[0] for a, b in zip(exact, compiled, strict=True) if a.token_ids]
    assert sum(first) >= len(first) - 1
    assert all(b.steps <= 24 for b in compiled)
    assert all(63 not in b.token_ids for b in compiled)


def test_verify_gives_the_text_of_ar(pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    _, lm = pair
    same = total = 0
    for prompt in PROMPTS:
        one = lm.generate(prompt, 40, mode="ar").token_ids
        other = lm.generate(prompt, 40, mode="verify", block_length=3).token_ids
        agree = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        same, total = same + agree, total + len(one)
    assert same >= 0.6 * total  # beyond a tie the rest of that text differs


def test_a_request_is_alone_in_company(pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    """Rows that end early, a batch that shrinks: everyone's keys stay their own."""
    _, lm = pair
    together = lm.generate(PROMPTS, 24, mode="diffusion", threshold=0.3, seed=5)
    alone = [lm.generate(p, 24, mode="diffusion", threshold=0.3, seed=5 + i) for i, p in enumerate(PROMPTS)]
    pairs = [(a.token_ids[:8], b.token_ids[:8]) for a, b in zip(together, alone, strict=True)]
    assert sum(a == b for a, b in pairs) >= len(pairs) - 1


def test_requests_leave_and_the_cache_follows(pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    backend = pair[1].new_backend()
    assert isinstance(backend, OpenVINOBackend)
    backend.open(Layout("drafts"), 4, 64, True)
    backend.cache[:] = np.arange(4).reshape(1, 4, 1, 1, 1)
    backend.keep(np.array([0, 2, 3]))
    assert backend.cache.shape[1] == 4
    backend.keep(np.array([1, 2]))
    assert backend.cache.shape[1] == 2
    assert backend.cache[0, backend.active, 0, 0, 0].tolist() == [2, 3]


def test_a_warm_start_needs_no_torch(folder: Path, pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    code = (
        "import sys; from unmask import DiffusionLM\n"
        f"lm = DiffusionLM.from_pretrained({str(folder)!r}, backend='openvino')\n"
        "out = lm.generate([1, 2, 3], 8, mode='verify')\n"
        "assert len(out.token_ids) <= 8 and 'torch' not in sys.modules"
    )
    environment = {**os.environ, "UNMASK_CACHE": str(folder.parent / "cache")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr


def test_signals_are_handled_when_models_have_come_and_gone(folder: Path) -> None:
    """OpenVINO lays the memory that a thread handles signals on; without that memory the next one ends the process."""
    code = (
        "import gc, os, signal; from unmask import DiffusionLM\n"
        f"models = [DiffusionLM.from_pretrained({str(folder)!r}, backend='openvino') for _ in range(2)]\n"
        "for model in models: model.generate([1, 2], 4)\n"
        "del model, models[0]; gc.collect(); del models; gc.collect()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    environment = {**os.environ, "UNMASK_CACHE": str(folder.parent / "cache")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr


def test_graphs_are_made_again_for_other_weights(folder: Path, pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    backend = pair[1].backend
    assert isinstance(backend, OpenVINOBackend)
    file = folder / adapter_files.SHARDS[1]
    data = file.read_bytes()
    os.utime(file)
    same = DiffusionLM.from_pretrained(folder, backend="openvino").backend
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    other = DiffusionLM.from_pretrained(folder, backend="openvino").backend
    file.write_bytes(data)
    assert isinstance(same, OpenVINOBackend)
    assert isinstance(other, OpenVINOBackend)
    assert same.where == backend.where != other.where


def test_what_it_cannot_do_is_said(folder: Path, pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    with pytest.raises(UnmaskError, match="keeps exact keys"):
        pair[1].generate([1], 4, cache="none")
    with pytest.raises(UnmaskError, match="on the CPU, not on 'cuda'"):
        DiffusionLM.from_pretrained(folder, device="cuda", backend="openvino")
    with pytest.raises(UnmaskError, match="backend 'other'"):
        DiffusionLM.from_pretrained(folder, backend="other")
    assert isinstance(pair[0].backend, TorchBackend)
