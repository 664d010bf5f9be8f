"""The native backend: near torch up to rounded inputs, and equal to itself to the bit in any company."""

from __future__ import annotations

import os
import queue
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
from unmask.backends.native import network as native
from unmask.backends.native.backend import (
    PIECE,
    SLOT_STEP,
    TOGETHER,
    NativeBackend,
    groups,
    pieces,
    stairs,
)
from unmask.backends.native.backend import WIDTHS as MEASURED
from unmask.backends.native.logits import summarise
from unmask.checkpoints import adapter_files
from unmask.checkpoints.save import write_checkpoint
from unmask.decoding.feed import TEXT, Columns, Feed, Sampling
from unmask.decoding.sampling import propose
from unmask.layout import Layout
from unmask.models import adapter
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer
from unmask.serving.engine import Done, Engine, Event, Failed, Job, Limits

SIZES: dict[str, Any] = {
    "vocab_size": 75,
    "hidden_size": 96,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 32,
    "intermediate_size": 160,
    "max_length": 1024,
    "layout": "causal",
    "shift": True,
    "mask_token_id": 74,
    "eos_token_id": 73,
    "bos_token_id": 72,
}
PROMPTS = [[1, 2, 3], [9], [4, 5, 6, 7, 8, 9, 10] * 9, [20, 21]]
MASK = 74

pytestmark = pytest.mark.skipif(native.library() is None, reason="installed without a C compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random adapter's folder beside its base, and a cache of its own for what is packed."""
    root = tmp_path_factory.mktemp("native")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASK_CACHE", str(root / "cache"))
        base = Transformer(ModelConfig(**SIZES)).initialise(0, std=0.12)
        write_checkpoint(root / "base", base.config.to_dict(), dict(base.named_parameters()), None)
        network = adapter.attach(base, adapter.adapted_config(base.config, 4, width=64, chain=32))
        seeded = torch.Generator().manual_seed(1)
        tensors = {n: torch.randn(p.shape, generator=seeded) * 0.1 for n, p in adapter.own_parameters(network).items()}
        adapter.put(network, tensors)
        network.draft_vocabulary = torch.arange(0, 70)
        adapter_files.save(root / "model", network, tensors, str(root / "base"))
        yield root / "model"


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[DiffusionLM, DiffusionLM]:
    return DiffusionLM.from_pretrained(folder, backend="torch"), DiffusionLM.from_pretrained(folder, backend="native")


def feeds(rng: np.random.Generator, widths: list[list[int]], only: int | None = None) -> list[Feed]:
    """Forwards that follow each other: text of each request, and two groups of slots behind it; `only` of one."""
    out, cached = [], np.zeros(len(widths[0]), np.int64)
    for step in widths:
        requests = []
        for b, count in enumerate(step):
            place, last = cached[b] + np.arange(count), cached[b] + count - 1
            slots = np.concatenate([last + 1 + np.arange(3), last + np.arange(2)])
            anchor = np.concatenate([np.full(count, TEXT), np.full(3, last), np.full(2, last - 1)])
            ids = np.concatenate([rng.integers(0, 70, count), np.full(5, MASK)])
            where, column = np.concatenate([place, slots]), np.arange(count - 1, count + 5)
            requests.append(Columns(ids, where, anchor, column, where[column] + 1))
        part = slice(None) if only is None else slice(only, only + 1)
        out.append(Feed.of(requests[part], cached[part].copy()))
        cached += step
    return out


def distributions(backend: Any, given: list[Feed], rows: int) -> list[np.ndarray]:
    backend.open(Layout("drafts"), rows, 300, True)
    out = []
    for feed in given:
        n = len(feed.row)
        sampling = Sampling(np.ones(n), np.zeros(n, int), np.ones(n), np.full(n, 0.5), np.full(n, 0.5))
        out.append(backend.forward(feed).probabilities(np.arange(n), sampling))
    return out


WIDTHS = [[100, 60, 2], [3, 5, 1], [60, 1, 9], [2, 2, 2]]


@pytest.mark.parametrize(
    ("backend", "rows", "near"),
    [("native", False, 0.02), ("native", True, 0.02), ("native-q4", False, 0.2), ("native-f32", False, 1e-5)],
)
@pytest.mark.parametrize("build", native.BUILDS)
def test_forwards_are_near_those_of_torch(
    folder: Path,
    pair: tuple[DiffusionLM, DiffusionLM],
    build: str,
    backend: str,
    rows: bool,
    near: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ragged text and slots, over more places than one step of the cache's growth, by each build of the code."""
    monkeypatch.setattr("unmask.backends.native.backend.rows_pay", lambda: rows)
    monkeypatch.setattr(native, "BUILDS", (build,))
    native.library.cache_clear()
    try:
        if native.library() is None:
            pytest.skip("not for this CPU")
        lm = DiffusionLM.from_pretrained(folder, backend=backend)
        given = feeds(np.random.default_rng(0), WIDTHS)
        assert sum(w[0] for w in WIDTHS) > SLOT_STEP
        exact, compiled = distributions(pair[0].backend, given, 3), distributions(lm.backend, given, 3)
    finally:
        native.library.cache_clear()
    for feed, p, q in zip(given, exact, compiled, strict=True):
        np.testing.assert_allclose(q.sum(-1), 1, atol=1e-9)
        off = 0.5 * np.abs(p - q).sum(-1)  # total variation
        assert off[~feed.of_draft].mean() < near  # inputs rounded to 8 bits
        assert off[feed.of_draft].mean() < 5 * near  # and what only drafts pass through to 4
        assert (q[:, MASK] == 0).all()


@pytest.mark.parametrize("backend", ["native", "native-q4"])
def test_tiles_change_no_bit(folder: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of AMX, beside AVX-512: sums of whole numbers are exact, whatever their order and company."""
    monkeypatch.setattr("unmask.backends.native.backend.rows_pay", lambda: True)
    made = []
    for build in ("_forward_amx", "_forward_vnni"):
        monkeypatch.setattr(native, "BUILDS", (build,))
        native.library.cache_clear()
        try:
            if native.library() is None:
                pytest.skip("not for this CPU")
            lm = DiffusionLM.from_pretrained(folder, backend=backend)
            made.append(distributions(lm.backend, feeds(np.random.default_rng(0), WIDTHS), 3))
        finally:
            native.library.cache_clear()
    for one, other in zip(*made, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_draft_head_knows_the_token_before(pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    compare_draft_head(pair, MASK, 0.12)  # what only drafts pass through is rounded to 4 bits


def test_company_changes_nothing(pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    """Requests one by one, and their text in other portions: the same bits."""
    _, lm = pair
    together = distributions(lm.new_backend(), feeds(np.random.default_rng(0), WIDTHS), 3)
    given = feeds(np.random.default_rng(0), WIDTHS)
    for b in range(3):
        alone = distributions(lm.new_backend(), feeds(np.random.default_rng(0), WIDTHS, b), 1)
        for feed, one, all_rows in zip(given, alone, together, strict=True):
            np.testing.assert_array_equal(one, all_rows[feed.row == b])


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_verify_is_ar_to_the_bit(pair: tuple[DiffusionLM, DiffusionLM], temperature: float) -> None:
    _, lm = pair
    for seed, prompt in enumerate(PROMPTS):
        plain = lm.generate(prompt, 40, mode="ar", seed=seed, temperature=temperature)
        checked = lm.generate(prompt, 40, mode="verify", block_length=3, seed=seed, temperature=temperature)
        assert plain.token_ids == checked.token_ids
    together = lm.generate(PROMPTS, 40, mode="diffusion", seed=5, temperature=temperature)
    for number, prompt in enumerate(PROMPTS):
        alone = lm.generate(prompt, 40, mode="diffusion", seed=5 + number, temperature=temperature)
        assert alone.token_ids == together[number].token_ids


@pytest.mark.parametrize("mode", ["ar", "diffusion", "verify"])
def test_a_beginning_is_read_once_by_requests_one_after_another(folder: Path, mode: str) -> None:
    """Kept text gives the same bits, also where a request was cut short, and what does not fit is read again."""
    plain, keeping = (DiffusionLM.from_pretrained(folder, backend="native") for _ in range(2))
    keeping.keep_prefixes(1 << 20)
    fed = list[int]()
    forward = keeping.backend.forward

    def counted(feed: Feed) -> Any:
        fed.append(int((feed.document == 0).sum()))
        return forward(feed)

    keeping.backend.forward = counted  # type: ignore[method-assign]
    system = [(5 * i) % 61 for i in range(150)]
    read = []
    for own in ([1, 2], [3, 1, 4], [1, 2], [1, 2, 7]):
        expected = plain.generate([*system, *own], 12, mode=mode, seed=1)
        fed.clear()
        got = keeping.generate([*system, *own], 12, mode=mode, seed=1)
        assert got.token_ids == expected.token_ids
        assert mode == "verify" or got.frames == expected.frames  # confidences, too
        read.append(fed[0])
    assert read[0] >= 152
    assert max(read[1:]) < 152 - 144 + 12  # nine blocks of 16 were there
    keeping.keep_prefixes(0)
    fed.clear()
    keeping.generate([*system, 1, 2], 12, mode=mode)
    assert fed[0] >= 152


def test_a_server_keeps_beginnings_within_its_memory(folder: Path) -> None:
    lm = DiffusionLM.from_pretrained(folder, backend="native")
    lm.load_backend()
    asked = lm.prepare([(5 * i) % 61 for i in range(100)], 8, mode="ar")
    told: queue.Queue[Event] = queue.Queue()

    def done() -> Done:
        while True:
            event = told.get(timeout=60)
            assert not isinstance(event, Failed)
            if isinstance(event, Done):
                return event

    engine = Engine({"m": lm}, Limits(slots=2))
    results = []
    for _ in range(3):
        engine.submit(Job.of("m", asked, told.put))
        results.append(done())
    assert len({tuple(result.ids) for result in results}) == 1
    (shared,) = [s.value for m in engine.metrics.shared.collect() for s in m.samples if s.name.endswith("_total")]
    assert shared == 2 * 96
    store = lm.new_backend().prefixes  # type: ignore[attr-defined]
    assert 0 < store.size <= store.limit == engine.limits.prefix_bytes
    engine.close()
    tight = engine.cache_bytes(Job.of("m", asked, told.put)[0].key, 1, 108)
    engine = Engine({"m": lm}, Limits(slots=2, cache_bytes=tight))
    engine.submit(Job.of("m", asked, told.put))
    done()
    assert store.size == 0  # the running request needed it all
    engine.close()


def test_busy_neighbours_change_nothing(pair: tuple[DiffusionLM, DiffusionLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that others keep waiting go on alone in their middle: the same bits, and none waits for ever."""
    _, lm = pair
    expected = [lm.generate(prompt, 40, mode="ar").token_ids for prompt in PROMPTS]
    monkeypatch.setattr("unmask.backends.native.backend.ALONE", 0)  # so small a network is computed alone else
    monkeypatch.setattr(lm.backend, "threads", 3)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        for _ in range(5):
            assert [lm.generate(prompt, 40, mode="ar").token_ids for prompt in PROMPTS] == expected
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_long_prompt_is_read_in_pieces(pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    _, lm = pair
    prompt = np.random.default_rng(3).integers(0, 70, PIECE + 200).tolist()
    one, two = lm.new_backend(), lm.new_backend()
    rows = [Columns.text(np.array(prompt), 0, PIECE + 199)]
    for backend, cuts in ((one, [PIECE + 199]), (two, [77, 300, PIECE + 199])):
        backend.open(Layout("drafts"), 1, 300, True)
        low = 0
        for high in cuts:
            rows = [Columns.text(np.array(prompt), low, high)]
            backend.forward(Feed.of(rows, np.array([low])))
            low = high
    assert isinstance(one, NativeBackend)
    assert isinstance(two, NativeBackend)
    np.testing.assert_array_equal(one.keys, two.keys)
    np.testing.assert_array_equal(one.values, two.values)


def test_long_prompts_are_read_together(pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    """Text alone, of several requests, wider than a piece."""
    prompts = [np.random.default_rng(n).integers(0, 70, 300 + 40 * n).tolist() for n in range(4)]
    assert sum(map(len, prompts)) > 2 * PIECE
    for mode in ("ar", "verify"):
        together = pair[1].generate(prompts, 6, mode=mode, temperature=0.0)
        alone = [pair[1].generate(prompt, 6, mode=mode, temperature=0.0) for prompt in prompts]
        assert [out.token_ids for out in together] == [out.token_ids for out in alone]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 200), st.sampled_from([1.0, 30.0]))
def test_best_tokens_are_those_of_numpy(seed: int, rows: int, size: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, size)) * spread).astype(np.float32)
    logits[:, rng.integers(0, size)] = logits.max(1)  # a tie, perhaps: the lowest id is taken
    if size > 2:
        logits[:, rng.integers(0, size)] = -np.inf
    token, confidence, entropy, margin = summarise(logits, 2)
    n = np.zeros(rows)
    wanted = propose(logits, n, n.astype(int), n + 1, n, n, None)
    np.testing.assert_array_equal(token, wanted.token)
    np.testing.assert_allclose(confidence, wanted.confidence, rtol=1e-5)
    np.testing.assert_allclose(entropy, wanted.entropy, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(margin, wanted.margin, rtol=1e-4, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.lists(st.integers(1, 600), max_size=4)), min_size=1, max_size=4))
def test_pieces_cut_no_group(requests: list[tuple[int, list[int]]]) -> None:
    row, anchor = [], []
    for b, (text, sizes) in enumerate(requests):
        row += [b] * (text + sum(sizes))
        anchor += [TEXT] * text + [place for place, size in enumerate(sizes) for _ in range(size)]
    if not row:
        return
    first, last = groups(np.array(row), np.array(anchor))
    cuts = pieces(last)
    assert [low for low, _ in cuts] == [0, *(high for _, high in cuts[:-1])]
    assert cuts[-1][1] == len(row)
    for low, high in cuts:
        assert high > low
        assert (first[low:high] >= low).all()
        assert (last[low:high] <= high).all()
        assert high - low <= PIECE or (first[low + PIECE] < low + PIECE)
    for i, (r, a) in enumerate(zip(row, anchor, strict=True)):
        same = [j for j in range(len(row)) if a != TEXT and (row[j], anchor[j]) == (r, a)] if len(row) < 40 else []
        assert not same or (same[0], same[-1] + 1) == (first[i], last[i])


def test_requests_leave_and_the_cache_follows(pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    backend = pair[1].new_backend()
    assert isinstance(backend, NativeBackend)
    backend.open(Layout("drafts"), 4, 64, True)
    backend.values[:] = np.arange(4).reshape(1, 4, 1, 1, 1)
    backend.keep(np.array([0, 2, 3]))
    assert backend.places == 4
    backend.keep(np.array([1, 2]))
    assert backend.places == 2
    assert backend.values[0, backend.active, 0, 0, 0].tolist() == [2, 3]
    backend.admit(1, 64)
    assert sorted(backend.active.tolist()) == [0, 1, 2]
    assert backend.values[0, backend.active[:2], 0, 0, 0].tolist() == [2, 3]


def test_a_warm_start_needs_no_torch(folder: Path, pair: tuple[DiffusionLM, DiffusionLM]) -> None:
    code = (
        "import sys; from unmask import DiffusionLM\n"
        f"lm = DiffusionLM.from_pretrained({str(folder)!r}, backend='native')\n"
        "out = lm.generate([1, 2, 3], 8, mode='verify')\n"
        "assert len(out.token_ids) <= 8 and 'torch' not in sys.modules"
    )
    assert pair[1].backend is not None  # packed
    environment = {**os.environ, "UNMASK_CACHE": str(folder.parent / "cache")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr


def test_what_it_cannot_do_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnmaskError, match="on the CPU, not on 'cuda'"):
        DiffusionLM.from_pretrained(folder, device="cuda", backend="native")
    with pytest.raises(UnmaskError, match="does not compute in bfloat16"):
        DiffusionLM.from_pretrained(folder, dtype="bfloat16", backend="native")
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(UnmaskError, match="without a C compiler"):
        DiffusionLM.from_pretrained(folder, backend="native")


def test_costs_beyond_what_was_measured_go_up_in_the_same_stairs() -> None:
    times = {w: 1.0 + (w - 1) // 4 for w in MEASURED[:-1]} | {MEASURED[-1]: 9.0}  # a step each four columns
    costs = stairs(times)
    assert all(costs[w] == pytest.approx(times[w]) for w in MEASURED)
    for width in range(17, 32 * TOGETHER + 1):
        assert costs[width] == pytest.approx(costs[width - TOGETHER] + 2.5)
        assert (costs[width] == pytest.approx(costs[width - 1])) == (width % 4 != 1)
    few = {1: 0.1, 2: 0.2}
    assert stairs(few) == few


def test_costs_of_passes_are_measured_once(
    pair: tuple[DiffusionLM, DiffusionLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lm = pair
    costs = lm.new_backend().pass_costs()
    assert costs is not None
    assert costs[1] > 0
    assert max(costs) > 4
    monkeypatch.setattr("unmask.backends.native.backend.passes", lambda *args, **options: pytest.fail("measured again"))
    assert lm.new_backend().pass_costs() == costs
