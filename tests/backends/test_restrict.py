"""Taking tokens out of logits: alike in torch and in the compiled backends, and seen by everything asked afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unmask.backends.native import network as native
from unmask.backends.native.logits import NativeLogits
from unmask.backends.torch import TorchLogits
from unmask.canvas import Array
from unmask.decoding.feed import Sampling
from unmask.decoding.sampling import Scores

pytestmark = pytest.mark.skipif(native.library() is None, reason="installed without a C compiler")

ROWS, SIZE, VOCABULARY = 8, 30, np.array([1, 4, 5, 9, 12, 20])
OF_DRAFT = np.array([False, True, False, False, True, True, False, True])


def made(seed: int) -> tuple[NativeLogits, TorchLogits, Array, Array]:
    """The same logits twice, rows to restrict and what they may write; draft row 4 may write nothing it knows."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(int((~OF_DRAFT).sum()), SIZE)).astype(np.float32) * 3
    drafts = rng.normal(size=(int(OF_DRAFT.sum()), len(VOCABULARY))).astype(np.float32) * 3
    whole = np.full((ROWS, SIZE), -np.inf, np.float32)
    whole[~OF_DRAFT] = text
    whole[np.ix_(OF_DRAFT, VOCABULARY)] = drafts
    index = np.array([0, 1, 3, 4, 7])
    allowed = rng.random((len(index), SIZE)) < 0.3
    allowed[:, 5] = True
    allowed[3, VOCABULARY] = False
    network: Any = SimpleNamespace(vocabulary=VOCABULARY, threads=1, config=SimpleNamespace(vocab_size=SIZE))
    states = np.zeros((ROWS, 2), np.float32)
    compiled = NativeLogits(network, text.copy(), drafts.copy(), OF_DRAFT, states, states[:0])
    return compiled, TorchLogits(torch.from_numpy(whole)), index, allowed


def sampled(seed: int, temperature: float) -> Sampling:
    rng = np.random.default_rng(seed)
    options = np.full(ROWS, temperature), np.full(ROWS, 4), np.full(ROWS, 0.9)
    return Sampling(*options, rng.random(ROWS), rng.random(ROWS))


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_both_kinds_of_logits_propose_only_what_is_allowed(temperature: float) -> None:
    for seed in range(10):
        compiled, tensor, index, allowed = made(seed)
        for logits in (compiled, tensor):
            assert logits.restrict(index, allowed).tolist() == [True, True, True, False, True]
        scores: list[Scores] = [logits.propose(sampled(seed, temperature)) for logits in (compiled, tensor)]
        np.testing.assert_array_equal(scores[0].token, scores[1].token)
        np.testing.assert_allclose(scores[0].confidence, scores[1].confidence, rtol=1e-5)
        for n, row in enumerate(index):
            assert row == 4 or allowed[n, scores[0].token[row]]
        options = Sampling(np.ones(ROWS), np.zeros(ROWS, int), *[np.ones(ROWS)] * 3)
        after = [logits.probabilities(np.arange(ROWS), options) for logits in (compiled, tensor)]
        np.testing.assert_allclose(after[0], after[1], atol=1e-6)
        unfiltered = made(seed)[0].probabilities(np.arange(ROWS), options)
        for n, row in enumerate(index):
            if row != 4:
                left = np.where(allowed[n], unfiltered[row], 0.0)
                np.testing.assert_allclose(after[0][row], left / left.sum(), atol=1e-6)
        untouched = [2, 4, 5, 6]
        np.testing.assert_allclose(after[0][untouched], unfiltered[untouched], atol=1e-6)


def test_a_mask_shares_the_softmax_of_restricted_rows_no_more() -> None:
    logits = TorchLogits(torch.zeros(2, 4), torch.full((2,), 5.0))
    logits.restrict(np.array([1]), np.array([[True, False, False, False]]))
    none = np.zeros(2)
    scores = logits.propose(Sampling(none, none.astype(int), none + 1, none + 0.5, none + 0.5))
    assert scores.confidence[0] < 0.01
    assert scores.confidence[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 0), (1.0, 0), (1.3, 0), (1.3, 4)])
def test_a_mask_with_a_share_is_scored_as_in_torch(temperature: float, top_k: int) -> None:
    """Masks that are likely and unlikely, more than the second best and more than the best token."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(60, SIZE)).astype(np.float32) * 3
    excluded = text[:, 3] + rng.normal(size=60).astype(np.float32) * 5
    text[:, 3] = -np.inf
    network: Any = SimpleNamespace(vocabulary=None, threads=1, config=SimpleNamespace(vocab_size=SIZE))
    none = np.zeros((0, 2), np.float32)
    sides = [
        NativeLogits(network, text.copy(), none, np.zeros(60, bool), none, none, excluded.copy()),
        TorchLogits(torch.from_numpy(text.copy()), torch.from_numpy(excluded.copy())),
    ]
    how = (np.full(60, temperature), np.full(60, top_k), np.ones(60), rng.random(60), rng.random(60))
    for restricted in (False, True):
        if restricted:
            allowed = rng.random((20, SIZE)) < 0.5
            allowed[:, 7] = True
            for logits in sides:
                logits.restrict(np.arange(10, 30), allowed)
        one, other = (logits.propose(Sampling(*how)) for logits in sides)
        np.testing.assert_array_equal(one.token, other.token)
        for field in ("confidence", "entropy", "margin"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=0, atol=1e-5, err_msg=field)
