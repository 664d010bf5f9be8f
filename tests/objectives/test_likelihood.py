"""Likelihoods against enumeration and against each other, on toy vocabularies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.attention import plain_mask
from unmask.layout import Layout
from unmask.models.transformer import Transformer
from unmask.objectives.likelihood import blockwise, exact_causal, exact_k_masks, exact_sequential, nelbo, windows

Tiny = Callable[..., Transformer]
WINDOW = torch.tensor([[0, 3, 1, 4, 1, 5], [2, 2, 7, 1, 8, 2]])


def silent(share: float) -> None:
    """No progress shown."""


@torch.inference_mode()
def enumerated_bound(model: Transformer, window: torch.Tensor) -> float:
    """The continuous-time NELBO, every mask pattern weighed by its beta integral: B(k, n - k + 1)."""
    n, mask_id = len(window) - 1, model.config.mask_token_id
    assert mask_id is not None
    total = 0.0
    for k in range(1, n + 1):
        weight = math.gamma(k) * math.gamma(n - k + 1) / math.gamma(n + 1)
        for chosen in itertools.combinations(range(1, n + 1), k):
            ids = window.clone()
            ids[list(chosen)] = mask_id
            logits = model(ids[None])[0].double()
            logits[:, mask_id] = -torch.inf
            log_p = logits.log_softmax(-1)
            total -= weight * sum(float(log_p[i, window[i]]) for i in chosen)
    return total


@torch.inference_mode()
def test_bound_agrees_with_enumeration(tiny: Tiny) -> None:
    """Law 1: unbiased within its standard error, and within 1% of the bound."""
    model = tiny()
    mean, error = nelbo(model, WINDOW, samples=4000, seed=1, batch=500, progress=silent)
    for row in range(2):
        exact = enumerated_bound(model, WINDOW[row])
        assert abs(float(mean[row]) - exact) < 3 * float(error[row])
        assert abs(float(mean[row]) - exact) < 0.01 * exact


@torch.inference_mode()
def test_bound_is_the_likelihood_of_a_model_that_ignores_its_input(tiny: Tiny) -> None:
    """With embeddings of zero every position has the same distribution, and the bound is tight."""
    model = tiny(tie_embeddings=False)
    model.embedding.weight.zero_()
    for block in model.blocks:
        block.mixer.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
    mean, error = nelbo(model, WINDOW, samples=64, seed=0, batch=64, progress=silent)
    # every draw has weight n/k on k equal-in-law terms; the mean over all draws is what must agree
    exact = exact_sequential(model, WINDOW)
    assert torch.all((mean - exact).abs() <= 4 * error + 1e-6)


@torch.inference_mode()
def test_causal_likelihood_is_the_sum_of_its_conditionals(tiny: Tiny) -> None:
    model = tiny(layout="causal", shift=True)
    by_hand = []
    for window in WINDOW:
        total = 0.0
        for i in range(1, len(window)):
            states = model.hidden(window[None, :i], None, plain_mask(Layout("causal"), i, window.device))
            logits = model.head(states)[0, -1].double()
            logits[model.config.mask_token_id] = -torch.inf
            total -= float(logits.log_softmax(-1)[window[i]])
        by_hand.append(total)
    torch.testing.assert_close(
        exact_causal(model, WINDOW), torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-5
    )


@torch.inference_mode()
def test_blocks_of_one_are_exact(tiny: Tiny) -> None:
    """Block length 1: every block has one mask pattern, so there is no error and it is the chain rule."""
    model = tiny(layout="block_causal", block_length=1)
    mean, error = blockwise(model, WINDOW, 1, samples=3, seed=0, batch=4, progress=silent)
    assert float(error.max()) < 1e-6
    shifted = tiny(layout="block_causal", block_length=1, shift=True)
    mean, _ = blockwise(shifted, WINDOW, 1, samples=2, seed=0, batch=4, progress=silent)
    torch.testing.assert_close(mean, exact_causal(shifted, WINDOW), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_one_block_is_the_full_canvas_bound(tiny: Tiny) -> None:
    model = tiny(layout="block_causal", block_length=16)
    whole, error_whole = nelbo(model, WINDOW, samples=3000, seed=3, batch=500, progress=silent)
    block, error_block = blockwise(model, WINDOW, 16, samples=3000, seed=4, batch=500, progress=silent)
    assert torch.all((whole - block).abs() < 3 * (error_whole**2 + error_block**2).sqrt())


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 10))
def test_masks_have_stratified_sizes(count: int, samples: int, seed: int) -> None:
    masks = exact_k_masks(count, samples, torch.Generator().manual_seed(seed))
    sizes = masks.sum(1)
    assert masks.shape == (samples, count)
    assert int(sizes.min()) >= 1
    assert int(sizes.max()) <= count
    assert bool((sizes.sort().values == sizes).all())  # strata in order


@given(st.lists(st.integers(0, 9), min_size=1, max_size=50), st.integers(2, 12))
def test_windows_score_every_id_once(ids: list[int], length: int) -> None:
    cut = windows(ids, 99, length)
    assert [token for window in cut for token in window[1:]] == ids
    assert all(2 <= len(window) <= length for window in cut)
    assert cut[0][0] == 99
    assert all(after[0] == before[-1] for before, after in itertools.pairwise(cut))


def test_more_samples_mean_a_smaller_error(tiny: Tiny) -> None:
    with torch.inference_mode():
        errors = [float(nelbo(tiny(), WINDOW[:1], n, 0, 500, silent)[1]) for n in (50, 2000)]
    assert errors[1] < 0.3 * errors[0]


def test_one_sample_has_no_error_estimate(tiny: Tiny) -> None:
    with torch.inference_mode():
        assert math.isinf(float(nelbo(tiny(), WINDOW[:1], 1, 0, 8, silent)[1]))
