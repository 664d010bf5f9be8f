"""Slots scored one token after another, for the tests of both compiled backends."""

from __future__ import annotations

from typing import Any

import numpy as np

from unmask import DiffusionLM
from unmask.decoding.feed import TEXT, Columns, Feed, Sampling
from unmask.layout import Layout


def after_tokens(backend: Any, rows: np.ndarray, mask_id: int) -> list[np.ndarray]:
    """Distributions of two slots of each of `rows` requests once the tokens before them are known, in one forward."""
    requests = []
    for b in rows.tolist():
        ids = np.concatenate([np.random.default_rng(b).integers(0, 60, 9 + b), np.full(2, mask_id)])
        place, text = np.arange(len(ids)), len(ids) - 2
        anchor, column = np.where(place < text, TEXT, text - 1), place[text - 2 : text]
        requests.append(Columns(ids, place, anchor, column, column + 1, slot=place[text:]))
    backend.open(Layout("drafts"), len(rows), 64, True)
    logits = backend.forward(Feed.of(requests, np.zeros(len(rows), np.int64)))
    n, out, before, row = len(rows), [], logits, 2 * np.arange(len(rows)) + 1
    sampling = Sampling(np.ones(n), np.zeros(n, int), np.ones(n), np.full(n, 0.5), np.full(n, 0.5))
    for j in range(2):
        before = logits.after_token(2 * np.arange(n) + j, before, row, 3 + rows + j)
        out.append(before.probabilities(np.arange(n), sampling))
        row = np.arange(n)
    return out


def compare_draft_head(pair: tuple[DiffusionLM, DiffusionLM], mask_id: int, near: float) -> None:
    """A compiled backend is near torch, a request is the same in company and alone, and one token is not another."""
    exact, compiled = (after_tokens(lm.new_backend(), np.arange(3), mask_id) for lm in pair)
    for p, q in zip(exact, compiled, strict=True):
        np.testing.assert_allclose(q.sum(-1), 1, atol=1e-9)
        assert 0.5 * np.abs(p - q).sum(-1).mean() < near  # total variation
        assert not np.allclose(p[0], p[1], atol=0.05)
    for b in range(3):
        alone = after_tokens(pair[1].new_backend(), np.array([b]), mask_id)
        for one, together in zip(alone, compiled, strict=True):
            np.testing.assert_allclose(one[0], together[b], rtol=1e-5, atol=1e-7)
