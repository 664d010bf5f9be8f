"""Experts in the native forward: only those that are asked are read, and packing reads them one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_registry import config_of, saved

from unmask import DiffusionLM
from unmask.backends import Source
from unmask.backends.native import network as native
from unmask.backends.native.backend import NativeBackend, packed
from unmask.backends.native.packing import Plan, Product
from unmask.checkpoints.rows import GROUP, Held
from unmask.decoding.feed import Columns, Feed
from unmask.layout import Layout
from unmask.models.transformer import Transformer

pytestmark = pytest.mark.skipif(native.library() is None, reason="installed without a C compiler")

SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_heads": 4, "head_dim": 16, "layout": "bidirectional", "shift": False, "num_experts": 16,
    "experts_per_token": 2, "expert_size": 64, "first_dense_layers": 1, "shared_expert_size": 32,
}  # fmt: skip
SIGMOID = {"router": "sigmoid", "router_bias": True, "router_normalise": True, "router_scale": 2.5, "expert_groups": 4,
           "expert_groups_kept": 2}  # fmt: skip


@pytest.fixture(params=[{}, SIGMOID], ids=["softmax", "sigmoid"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    return saved(config_of({**SIZES, **request.param}), tmp_path / "model")


def logits(backend: Any, ids: np.ndarray) -> np.ndarray:
    place = np.arange(len(ids))
    backend.open(Layout("bidirectional"), 1, len(ids), True)
    made = backend.forward(Feed.of([Columns(ids, place, np.full(len(ids), -1), place, place)], np.zeros(1, np.int64)))
    return np.array(made.text if isinstance(backend, NativeBackend) else made.logits.numpy())


def asked(lm: DiffusionLM, ids: np.ndarray) -> list[set[int]]:
    """The experts that torch's routers choose, by layer."""
    found: list[set[int]] = [set() for _ in lm.model.blocks]
    for number, block in enumerate(lm.model.blocks):
        if hasattr(block.mlp, "router"):
            block.mlp.router.register_forward_hook(
                lambda _, given, out, n=number: found[n].update(out[0].flatten().tolist())
            )
    lm.logits(torch.tensor(ids)[None])
    return found


@pytest.mark.parametrize("count", [1, 4])
def test_only_experts_that_are_asked_are_read(folder: Path, count: int) -> None:
    """The others' weights may be anything, nan too, which a weight of 0 would not hide."""
    ids = np.random.default_rng(3).integers(0, 70, count)
    chosen = asked(DiffusionLM.from_pretrained(folder, backend="torch"), ids)
    backend: Any = DiffusionLM.from_pretrained(folder, backend="native-f32").backend
    before = logits(backend, ids)
    spoilt = 0
    for layer, own in enumerate(chosen):
        for part in ("gate_up", "down"):
            blocks = backend.network.weights.get(f"layer.{layer}.expert_{part}.blocks")
            for number in range(0 if blocks is None else 16):
                each = len(blocks) // 16
                if number not in own:
                    blocks[number * each : (number + 1) * each] = np.nan
                    spoilt += 1
    assert spoilt >= 2 * (16 - 2 * count)
    np.testing.assert_array_equal(logits(backend, ids), before)
    blocks[min(chosen[-1]) * each : (min(chosen[-1]) + 1) * each] = np.nan  # and one that is asked shows
    assert not np.array_equal(logits(backend, ids), before)


def test_best_tokens_agree(folder: Path) -> None:
    """Of random weights, whose routers and heads are nearer to ties than those of a taught network."""
    ids = np.random.default_rng(4).integers(0, 70, 200)
    best = {name: logits(DiffusionLM.from_pretrained(folder, backend=name).backend, ids)[:, :74].argmax(-1)
            for name in ("torch", "native-f32", "native", "native-q4")}  # fmt: skip
    agree = {name: float((own == best["torch"]).mean()) for name, own in best.items()}
    assert agree["native-f32"] == 1
    assert agree["native"] > 0.85
    assert agree["native"] > agree["native-q4"] > 0.5


def any_network(seed: int) -> Transformer:
    """A random network with experts: widths that fill no tile, experts that no column asks, biases, either router."""
    rng = np.random.default_rng(seed)
    count = int(rng.choice([2, 3, 8, 16, 33]))
    asked = int(rng.integers(1, min(count, 8) + 1))
    sizes: dict[str, Any] = {
        **SIZES,
        **(SIGMOID if count % 4 == 0 and asked <= count // 2 else {}),
        "hidden_size": int(rng.choice([32, 96, 160])),
        "num_experts": count,
        "experts_per_token": asked,
        "expert_size": int(rng.choice([32, 48, 100, 256])),
        "first_dense_layers": int(rng.integers(0, 2)),
        "shared_expert_size": int(rng.choice([0, 32, 96])),
        "activation": str(rng.choice(["swiglu", "gelu"])),
        "mlp_bias": bool(rng.integers(0, 2)),
    }
    network = Transformer(config_of(sizes)).initialise(seed, std=0.15).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.data += 0.3 * torch.arange(parameter.numel()).sin()
    return network


@pytest.mark.parametrize(("bits", "rows"), [(8, True), (8, False), (4, True), (32, True)])
@pytest.mark.parametrize("seed", range(6))
def test_builds_agree(seed: int, bits: int, rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many columns, few and one: tiles of AMX make VNNI's bits, any other build what differs by the order of sums,
    but where rounding moves a choice of experts; with float32 weights all of them make torch's logits."""
    monkeypatch.setattr("unmask.backends.native.backend.rows_pay", lambda: rows)
    monkeypatch.setattr("unmask.backends.native.backend.ALONE", 0)
    network = any_network(seed)
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 70, count) for count in (1, int(rng.integers(2, 16)), 17, int(rng.integers(18, 64)), 64)]
    with torch.inference_mode():
        exact = [network(torch.tensor(ids)[None])[0, :, :74].numpy() for ids in texts]
    made: dict[str, list[np.ndarray]] = {}
    try:
        for build in native.BUILDS:
            monkeypatch.setattr(native, "BUILDS", (build,))
            native.library.cache_clear()
            if native.library() is None:
                continue
            compiled = packed(Source(network.config, lambda: network), bits, None)
            assert compiled.struct.by_row == (rows and bits == 8)
            backend = NativeBackend(compiled)
            backend.threads = 1 + seed % 2
            made[build] = [logits(backend, ids)[:, :74] for ids in texts]
    finally:
        native.library.cache_clear()
    for build, found in made.items():
        for one, other, truth in zip(found, next(iter(made.values())), exact, strict=True):
            if {build, next(iter(made))} == {"_forward_amx", "_forward_vnni"}:
                np.testing.assert_array_equal(one, other)
            assert np.median(np.abs(one - other).max(1)) < 0.1 * truth.std()
            if bits == 32:
                np.testing.assert_allclose(one, truth, rtol=0, atol=1e-3)


class Watched(Held):
    """A parameter that says when it is read."""

    log: list[int]

    def values(self, first: int = 0, last: int | None = None) -> np.ndarray:
        Watched.log.append(id(self))
        return super().values(first, last)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_experts_are_packed_one_by_one(bits: int) -> None:
    """A released layer has gigabytes of them."""
    rng = np.random.default_rng(0)
    parts: list[Any] = [Watched(rng.normal(size=(GROUP, GROUP)).astype(np.float32)) for _ in range(6)]
    biases = [rng.normal(size=GROUP) for _ in parts]
    stack = Product("all", parts, bits, biases, interleaved=True, experts=3)
    alone = [Product("one", parts[n : n + 2], bits, biases[n : n + 2], interleaved=True) for n in (0, 2, 4)]
    Watched.log = []
    for number, (piece, one) in enumerate(zip(stack.packed(), alone, strict=True)):
        assert set(Watched.log) == {id(part) for part in parts[: 2 * number + 2]}
        np.testing.assert_array_equal(piece, *one.packed())
        np.testing.assert_array_equal(stack.bias[number * 64 : (number + 1) * 64], one.bias)
    assert stack.shape == alone[0].shape == (64, 32)
    assert stack.size == sum(one.size for one in alone)


def test_a_column_counts_the_bytes_of_the_experts_that_it_asks(folder: Path) -> None:
    network: Any = DiffusionLM.from_pretrained(folder, backend="native").backend.network
    sizes = {name: array.nbytes for name, array in network.weights.items() if name.endswith(".blocks")}
    experts = sum(size for name, size in sizes.items() if ".expert_" in name)
    assert experts > 0
    assert network.text_bytes == sum(sizes.values()) - experts + experts * 2 // 16


def test_a_router_is_kept_as_it_is(folder: Path) -> None:
    lm = DiffusionLM.from_pretrained(folder, backend="torch")
    held = {name: Held(p.detach().numpy()) for name, p in lm.model.named_parameters()}
    for bits in (4, 8):
        (router,) = [p for p in Plan(lm.config, held, None, bits).products if p.name.endswith("router")]
        assert (router.name, router.bits, router.by_row) == ("layer.1.router", 32, False)
