"""The filters against the slow way that they stand for: sort the whole vocabulary, then look."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unmask.decoding import sampling
from unmask.decoding.sampling import keep_top, propose, survivors

Array = NDArray[Any]


def by_full_sort(logits: Array, top_k: Array, top_p: Array) -> Array:
    order = (-logits).argsort(-1, kind="stable")
    ranked = np.take_along_axis(logits, order, -1)
    rank = np.arange(logits.shape[-1])
    k = np.where(top_k > 0, top_k, logits.shape[-1])
    ranked = np.where(rank >= k[:, None], -np.inf, ranked)
    p = np.exp(ranked - ranked[:, :1])
    p /= p.sum(-1, keepdims=True)
    outside = (p.cumsum(-1) - p >= top_p[:, None]) & (top_p[:, None] < 1.0) & (rank > 0)
    kept = np.full_like(logits, -np.inf)
    np.put_along_axis(kept, order, np.where(outside, -np.inf, ranked), -1)
    return kept


def edges(row: Array, k: int) -> list[float]:
    """The values of p at which one more token is kept: where rounding decides."""
    ranked = np.sort(row)[::-1][: k or len(row)]
    share = np.exp(ranked - ranked[0])
    return [float(x) for x in (share / share.sum()).cumsum() if 0 < x < 1]


@given(
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.3, 1.0, 5.0, 40.0]),
    st.sampled_from(["none", "few values", "all equal", "some at -inf"]),
    st.data(),
)
@settings(max_examples=300)
def test_the_same_tokens_survive_as_after_a_full_sort(
    seed: int, rows: int, size: int, spread: float, ties: str, data: st.DataObject
) -> None:
    logits = np.random.default_rng(seed).normal(size=(rows, size)) * spread
    if ties == "few values":
        logits = np.round(logits)
    elif ties == "all equal":
        logits[:] = logits[:, :1]
    elif ties == "some at -inf":
        logits[:, 1::3] = -np.inf
    k = np.array([data.draw(st.sampled_from([0, 1, 2, 7, size - 1, size, size + 3])) for _ in range(rows)]).clip(0)
    at_edge = [st.sampled_from([1.0, *edges(row, n)]) for row, n in zip(logits, k.tolist(), strict=True)]
    p = np.array([data.draw(choice | st.floats(0, 1)) for choice in at_edge])
    before, expected = logits.copy(), by_full_sort(logits, k, p)
    assert (keep_top(logits, k, p) == expected).all()
    assert (logits == before).all()


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 60), st.booleans(), st.data())
@settings(max_examples=300)
def test_a_nucleus_is_found_among_few_or_in_all(
    seed: int, size: int, most: int, level: bool, data: st.DataObject
) -> None:
    """However few are sorted at first, also where p falls on the edge of a token to the bit."""
    row = np.random.default_rng(seed).normal(size=size) * 2
    row = np.round(row) if level else row
    p = data.draw(st.sampled_from([0.5, *edges(row, 0)]) | st.floats(0, 1, exclude_max=True))
    expected = np.isfinite(by_full_sort(row[None], np.zeros(1, np.int64), np.array([p]))[0]).nonzero()[0]
    assert survivors(row, 0, p, most).tolist() == expected.tolist()


@pytest.mark.parametrize("spread", [0.5, 8.0])
@pytest.mark.parametrize(("k", "p"), [(64, 1.0), (0, 0.9), (0, 0.999999), (1000, 0.95), (5000, 1.0)])
def test_a_vocabulary_of_real_size(spread: float, k: int, p: float) -> None:
    """Flat logits need all of them sorted, peaked ones do not."""
    logits = np.random.default_rng(0).normal(size=(2, 49_152)).astype(np.float32).astype(np.float64) * spread
    logits[0, 40_000:] = logits[0, 0]
    options = np.full(2, k), np.full(2, p)
    assert (keep_top(logits, *options) == by_full_sort(logits, *options)).all()


def test_top_k_alone_never_sorts_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Array:
        raise AssertionError("sorted all of it")

    monkeypatch.setattr(sampling, "_sorted_survivors", refuse)
    logits = np.random.default_rng(0).normal(size=(3, 10_000)) * 3
    kept = keep_top(logits, np.full(3, 50), np.ones(3))
    assert np.isfinite(kept).sum(-1).tolist() == [50, 50, 50]
    assert np.isfinite(keep_top(logits, np.full(3, 50), np.full(3, 0.9))).any(-1).all()
    assert np.isfinite(keep_top(logits, np.zeros(3, np.int64), np.full(3, 0.5))).any(-1).all()


def test_logits_that_are_not_numbers_give_some_token() -> None:
    for logits in (np.full((1, 9), np.nan), np.array([[1.0, np.nan, 2.0, 3.0, 0.0, 0.5, 0.25, 0.1, 0.0]])):
        for k, p in ((3, 1.0), (0, 0.5), (3, 0.5)):
            half = np.full(1, 0.5)
            with np.errstate(invalid="ignore"):
                token = propose(logits, np.ones(1), np.full(1, k), np.full(1, p), half, half, None).token
            assert 0 <= token.item() < 9


@given(st.integers(0, 2**32), st.integers(2, 200), st.integers(0, 40), st.sampled_from([1.0, 0.9, 0.3]))
def test_what_is_scored_is_the_filtered_distribution(seed: int, size: int, k: int, p: float) -> None:
    """Scoring only the survivors gives what scoring the whole vocabulary gives."""
    generator = np.random.default_rng(seed)
    logits, n = (generator.normal(size=(3, size)) * 3).astype(np.float32), 3
    warm, draws = np.full(n, 0.7), generator.random((2, n))
    scores = propose(logits, warm, np.full(n, k), np.full(n, p), *draws, None)
    kept = by_full_sort(logits / warm[:, None], np.full(n, k), np.full(n, p))
    q = np.exp(kept - kept.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    best = np.sort(np.concatenate([np.zeros((n, 1)), q], 1), -1)
    drawn = [int(np.searchsorted(row.cumsum(), u, "right")) for row, u in zip(q, draws[0], strict=True)]
    assert scores.token.tolist() == drawn
    np.testing.assert_allclose(scores.confidence, q[np.arange(n), scores.token], rtol=1e-9)
    np.testing.assert_allclose(scores.margin, best[:, -1] - best[:, -2], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scores.entropy, -(q * np.log(np.where(q > 0, q, 1))).sum(-1), rtol=1e-9, atol=1e-12)
