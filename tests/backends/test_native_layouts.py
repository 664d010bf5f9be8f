"""The native forward by layout: near torch, equal with float32 weights, the same to the bit in any company."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_registry import config_of, saved

from unmask import DiffusionLM, UnmaskError
from unmask.backends import Source
from unmask.backends.native import network as native
from unmask.backends.native.backend import PIECE, NativeBackend, _plan
from unmask.backends.native.packed_file import PackedFile, mapped, unnamed
from unmask.backends.store import compiled
from unmask.backends.torch import TorchBackend
from unmask.decoding.feed import Columns, Feed
from unmask.layout import Layout

pytestmark = pytest.mark.skipif(native.library() is None, reason="installed without a C compiler")

SIZES: dict[str, Any] = {"qk_norm": True, "shift": False, "num_heads": 4, "head_dim": 32, "hidden_size": 64}
LAYOUTS: dict[str, dict[str, Any]] = {
    "causal": {"layout": "causal"},
    "block_causal": {"layout": "block_causal", "block_length": 8},
    "bidirectional": {"layout": "bidirectional"},
    "experts": {"layout": "bidirectional", "num_experts": 8, "experts_per_token": 3, "expert_size": 32},
    "noise levels": {
        "layout": "bidirectional", "norm": "layer", "activation": "gelu_tanh", "mlp_bias": True, "qk_norm": False,
        "time_condition_size": 32, "time_conditioned": True,
    },
    "experts in groups": {
        "layout": "block_causal", "block_length": 8, "num_experts": 12, "experts_per_token": 3, "expert_size": 40,
        "shared_expert_size": 64, "first_dense_layers": 1, "router": "sigmoid", "router_bias": True, "mlp_bias": True,
        "router_normalise": True, "router_scale": 2.5, "expert_groups": 4, "expert_groups_kept": 2,
    },
}  # fmt: skip
LENGTHS = (40, 23, 64)


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASK_CACHE", str(root / "cache"))
        yield saved(config_of({**SIZES, **LAYOUTS[request.param], "max_length": 1024}), root / "model")


@pytest.fixture(params=native.BUILDS)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each build of the code in turn."""
    monkeypatch.setattr(native, "BUILDS", (request.param,))
    native.library.cache_clear()
    if native.library() is None:
        pytest.skip("not for this CPU")
    yield request.param
    native.library.cache_clear()


def columns(number: int, low: int, high: int, after: int = 0) -> Columns:
    """Positions of a text, all of them scored; `after`: its cached end is seen too."""
    ids = np.random.default_rng(number).integers(0, 70, LENGTHS[number])
    place = np.arange(low, high)
    none = np.full(high - low, -1)
    seen = (high, after) if after else (0, 0)
    return Columns(ids[low:high], place, none, place - low, place, cached_after=seen, time=0.4 * number)


def logits(backend: Any, requests: list[Columns]) -> np.ndarray:
    feed = Feed.of(requests, np.array([request.position[0] for request in requests]))
    made = backend.forward(feed)
    return np.array(made.text if isinstance(backend, NativeBackend) else made.logits.cpu().numpy())


def reading(backend: Any, layout: Layout, numbers: tuple[int, ...]) -> list[np.ndarray]:
    """Logits of texts read whole, then of a window of each, before what stands behind it."""
    backend.open(layout, len(numbers), 64, True)
    whole = logits(backend, [columns(n, 0, LENGTHS[n]) for n in numbers])
    window = logits(backend, [columns(n, 8, 16, LENGTHS[n]) for n in numbers])
    rest = logits(backend, [columns(n, 16, LENGTHS[n]) for n in numbers])
    return [whole, window, rest]


def layout_of(lm: DiffusionLM) -> Layout:
    return Layout(lm.config.layout, max(lm.config.block_length, 1))


def test_float32_is_torch_within_a_thousandth(folder: Path, build: str) -> None:
    exact = DiffusionLM.from_pretrained(folder, backend="torch")
    compiled = DiffusionLM.from_pretrained(folder, backend="native", dtype="float32")
    assert compiled.computes == "native-f32"
    assert isinstance(exact.backend, TorchBackend)
    pair = [reading(lm.backend, layout_of(lm), (0, 1, 2)) for lm in (exact, compiled)]
    for one, other in zip(*pair, strict=True):
        finite = np.isfinite(one)
        assert np.array_equal(finite, np.isfinite(other))
        np.testing.assert_allclose(other[finite], one[finite], rtol=0, atol=1e-3)


def test_float32_writes_what_torch_writes(folder: Path) -> None:
    prompts = [[1, 2, 3], [9, 8], list(range(30))]
    texts = []
    for backend in ("torch", "native-f32"):
        lm = DiffusionLM.from_pretrained(folder, backend=backend)
        texts.append([out.token_ids for out in lm.generate(prompts, 24, temperature=0.0)])
    assert texts[0] == texts[1]


def test_eight_bits_are_near(folder: Path, build: str) -> None:
    exact = DiffusionLM.from_pretrained(folder, backend="torch")
    compiled = DiffusionLM.from_pretrained(folder, backend="native")
    one = reading(exact.backend, layout_of(exact), (0, 1, 2))[0]
    other = reading(compiled.backend, layout_of(compiled), (0, 1, 2))[0]
    finite = np.isfinite(one)
    assert np.abs(one[finite] - other[finite]).mean() < 0.05 * one[finite].std()


@pytest.mark.parametrize("backend", ["native", "native-f32"])
def test_company_changes_no_bit(folder: Path, backend: str) -> None:
    lm = DiffusionLM.from_pretrained(folder, backend=backend)
    together = reading(lm.new_backend(), layout_of(lm), (0, 1, 2))
    for n in range(3):
        alone = reading(lm.new_backend(), layout_of(lm), (n,))
        for part, (one, all_rows) in enumerate(zip(alone, together, strict=True)):
            sizes = [LENGTHS[m] if part == 0 else 8 if part == 1 else LENGTHS[m] - 16 for m in range(3)]
            low = sum(sizes[:n])
            np.testing.assert_array_equal(one, all_rows[low : low + sizes[n]])


@pytest.mark.parametrize("backend", ["native", "native-q4"])
def test_the_number_of_columns_changes_no_bit(
    backend: str, build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of weights in groups, whichever kernel takes that many; tiles take four groups at a time, and here are five."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("unmask.backends.native.backend.rows_pay", lambda: False)
    sizes = {**SIZES, "hidden_size": 160, "layout": "causal", "max_length": 128}
    lm = DiffusionLM.from_pretrained(saved(config_of(sizes), tmp_path / "model"), backend=backend)

    def reading_by(widths: list[int]) -> np.ndarray:
        reader = lm.new_backend()
        reader.open(layout_of(lm), 1, 64, True)
        spans = zip(widths, np.cumsum(widths), strict=True)
        return np.concatenate([logits(reader, [columns(2, high - width, high)]) for width, high in spans])

    alone = reading_by([1] * 64)
    for widths in ([1, 7, 16, 33, 7], [64], [10, 15, 9, 17, 13]):
        np.testing.assert_array_equal(reading_by(widths), alone)


def test_text_in_portions_leaves_the_same_keys(folder: Path) -> None:
    lm = DiffusionLM.from_pretrained(folder, backend="native")
    if lm.config.layout == "bidirectional":  # nothing of it is final before all is read
        return
    ids = np.random.default_rng(5).integers(0, 70, PIECE + 128)
    kept = []
    for cuts in ([PIECE + 128], [64, 320, PIECE + 128]):
        backend = lm.new_backend()
        assert isinstance(backend, NativeBackend)
        backend.open(layout_of(lm), 1, 64, True)
        low = 0
        for high in cuts:
            backend.forward(Feed.of([Columns.text(ids, low, high)], np.array([low])))
            low = high
        kept.append((backend.keys, backend.values))
    np.testing.assert_array_equal(kept[0][0], kept[1][0])
    np.testing.assert_array_equal(kept[0][1], kept[1][1])


def test_threads_change_no_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for threads in (1, 2, 3):
        lm = DiffusionLM.from_pretrained(folder, backend="native")
        assert isinstance(lm.backend, NativeBackend)
        monkeypatch.setattr("unmask.backends.native.backend.ALONE", 0)
        lm.backend.threads = threads
        made.append(reading(lm.backend, layout_of(lm), (0, 1, 2)))
    for other in made[1:]:
        for one, two in zip(made[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_guidance_is_that_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    folder = saved(config_of({**SIZES, "layout": "bidirectional"}), tmp_path / "model")
    texts = []
    for backend in ("torch", "native-f32"):
        lm = DiffusionLM.from_pretrained(folder, backend=backend)
        texts.append([out.token_ids for out in lm.generate([[1, 2, 3], [4, 5]], 12, guidance=1.5)])
    assert texts[0] == texts[1]


def test_packing_tells_how_far_it_is_and_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    folder = saved(config_of(SIZES), tmp_path / "model")
    told: list[tuple[int, int]] = []
    for _ in range(2):
        lm = DiffusionLM.from_pretrained(folder, backend="native")
        lm.load_backend(lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] > 0.9 * told[-1][1]


def test_four_bits_are_near_and_quantize_chooses(folder: Path) -> None:
    readings = {}
    for quantize, name in {"q8": "native", "q4": "native-q4", "none": "native-f32"}.items():
        lm = DiffusionLM.from_pretrained(folder, quantize=quantize)
        assert lm.computes == name
        readings[quantize] = reading(lm.backend, layout_of(lm), (0, 1, 2))[0]
    exact = readings["none"]
    finite = np.isfinite(exact)
    off = {q: np.abs(other[finite] - exact[finite]).mean() / exact[finite].std() for q, other in readings.items()}
    assert 0 < off["q8"] < 0.05
    assert off["q8"] < off["q4"] < 0.25
    with pytest.raises(UnmaskError, match="use one of q8, q4, none"):
        DiffusionLM.from_pretrained(folder, quantize="q5")
    with pytest.raises(UnmaskError, match="leave the others out"):
        DiffusionLM.from_pretrained(folder, quantize="q4", backend="torch")


def test_weights_are_mapped_and_outlive_their_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "MAPPED", 0)
    lm = DiffusionLM.from_pretrained(folder, quantize="q8")
    backend = lm.backend
    assert isinstance(backend, NativeBackend)
    kept = [array for name, array in backend.network.weights.items() if name.endswith(".blocks")]
    assert not any(array.flags.writeable for array in kept)
    before = reading(backend, layout_of(lm), (0,))
    shutil.rmtree(compiled())
    for one, other in zip(before, reading(backend, layout_of(lm), (0,)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_files_and_a_network_in_memory_are_packed_alike(folder: Path) -> None:
    lm = DiffusionLM.from_pretrained(folder, backend="torch")
    for bits in (4, 8, 32):
        plans = [_plan(Source(lm.config, lambda: lm.model, loaded), bits) for loaded in (lm.loaded, None)]
        packed = []
        for plan in plans:
            with unnamed() as file:
                made = PackedFile(file)
                plan.write(made)
                made.end()
                packed.append(mapped(file))
        assert packed[0].keys() == packed[1].keys()
        for name, array in packed[0].items():
            np.testing.assert_array_equal(array, packed[1][name], err_msg=name)


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    lm = DiffusionLM.from_pretrained(saved(config_of(SIZES), tmp_path / "model"), backend="native")
    assert len(lm.generate([1, 2, 3], 4).token_ids) <= 4


def test_auto_is_what_is_fast_and_writes_the_same_ids() -> None:
    assert DiffusionLM.from_pretrained("austen").computes == "native-f32"
    assert DiffusionLM.from_pretrained("austen", dtype="float32").computes == "torch"
    assert DiffusionLM.from_pretrained("default").computes == "native"
