"""Likelihoods against enumeration and against each other, on toy vocabularies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import DiffusionLM, UnmaskError
from unmask.attention import plain_mask
from unmask.layout import Layout
from unmask.models.transformer import Transformer
from unmask.objectives.likelihood import (
    Estimation,
    blockwise,
    exact_causal,
    exact_k_masks,
    exact_sequential,
    is_greedy,
    nelbo,
    systematic_masks,
    windows,
)

Tiny = Callable[..., Transformer]
SUBS = -torch.inf
GIVEN = torch.tensor([[True, True, False, True, False, False]] * 2)  # not only before
WINDOW = torch.tensor([[0, 3, 1, 4, 1, 5], [2, 2, 7, 1, 8, 2]])
REST = torch.arange(WINDOW.shape[1]).expand_as(WINDOW) > 0  # all but the first token


def silent(share: float) -> None:
    """No progress shown."""


@torch.inference_mode()
def enumerated_bound(model: Transformer, window: torch.Tensor) -> float:
    """The continuous-time NELBO, every mask pattern weighed by its beta integral: B(k, n - k + 1)."""
    return enumerated(model, window, range(1, len(window)), SUBS)


def enumerated(model: Transformer, window: torch.Tensor, places: Sequence[int], mask_logit: float | None) -> float:
    """The same of the tokens in these places given all others; mask_logit None leaves the mask its share."""
    n, mask_id = len(places), model.config.mask_token_id
    assert mask_id is not None
    total = 0.0
    for k in range(1, n + 1):
        weight = math.gamma(k) * math.gamma(n - k + 1) / math.gamma(n + 1)
        for chosen in itertools.combinations(places, k):
            ids = window.clone()
            ids[list(chosen)] = mask_id
            logits = model(ids[None])[0].double()
            if mask_logit is not None:
                logits[:, mask_id] = mask_logit
            log_p = logits.log_softmax(-1)
            total -= weight * sum(float(log_p[i, window[i]]) for i in chosen)
    return total


@torch.inference_mode()
def test_bound_agrees_with_enumeration(tiny: Tiny) -> None:
    """Law 1: unbiased within its standard error, and within 1% of the bound."""
    model = tiny()
    mean, error = nelbo(model, WINDOW, Estimation(4000, 1, 500, silent), REST)
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
    mean, error = nelbo(model, WINDOW, Estimation(64, 0, 64, silent), REST)
    # every draw has weight n/k on k equal-in-law terms; the mean over all draws is what must agree
    exact = exact_sequential(model, WINDOW, REST)[0]
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
        exact_causal(model, WINDOW, REST)[0], torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-5
    )


@torch.inference_mode()
def test_blocks_of_one_are_exact(tiny: Tiny) -> None:
    """Block length 1: every block has one mask pattern, so there is no error and it is the chain rule."""
    model = tiny(layout="block_causal", block_length=1)
    mean, error = blockwise(model, WINDOW, 1, Estimation(3, 0, 4, silent), REST)
    assert float(error.max()) < 1e-6
    shifted = tiny(layout="block_causal", block_length=1, shift=True)
    mean, _ = blockwise(shifted, WINDOW, 1, Estimation(2, 0, 4, silent), REST)
    torch.testing.assert_close(mean, exact_causal(shifted, WINDOW, REST)[0], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_one_block_is_the_full_canvas_bound(tiny: Tiny) -> None:
    model = tiny(layout="block_causal", block_length=16)
    whole, error_whole = nelbo(model, WINDOW, Estimation(3000, 3, 500, silent), REST)
    block, error_block = blockwise(model, WINDOW, 16, Estimation(3000, 4, 500, silent), REST)
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
    cut = windows(ids, [99], length)
    assert [token for window in cut for token, own in zip(*window, strict=True) if own] == ids
    assert all(2 <= len(window.ids) <= length and not window.scored[0] for window in cut)
    assert cut[0].ids[0] == 99
    assert all(after.ids[0] == before.ids[-1] for before, after in itertools.pairwise(cut))


def test_more_samples_mean_a_smaller_error(tiny: Tiny) -> None:
    with torch.inference_mode():
        errors = [float(nelbo(tiny(), WINDOW[:1], Estimation(n, 0, 500, silent), REST[:1])[1]) for n in (50, 2000)]
    assert errors[1] < 0.3 * errors[0]


def test_one_sample_has_no_error_estimate(tiny: Tiny) -> None:
    with torch.inference_mode():
        assert math.isinf(float(nelbo(tiny(), WINDOW[:1], Estimation(1, 0, 8, silent), REST[:1])[1]))


@torch.inference_mode()
def test_conditional_bound_and_llada_protocol_agree_with_enumeration(tiny: Tiny) -> None:
    """Law 1 given any tokens: LLaDA's protocol leaves the mask its share of the softmax, ours does not."""
    model = tiny()
    places = (~GIVEN[0]).nonzero()[:, 0].tolist()
    for guidance, mask_logit in ((None, SUBS), (0.0, None)):
        mean, error = nelbo(model, WINDOW, Estimation(3000, 1, 500, silent), ~GIVEN, guidance)
        for row in range(2):
            exact = enumerated(model, WINDOW[row], places, mask_logit)
            assert abs(float(mean[row]) - exact) < min(3 * float(error[row]), 0.01 * exact)


@given(st.integers(1, 12), st.integers(0, 5))
def test_systematic_masks_meet_every_number_once(count: int, seed: int) -> None:
    sizes = systematic_masks(count, count, torch.Generator().manual_seed(seed)).sum(1)
    assert sorted(sizes.tolist()) == list(range(1, count + 1))


@torch.inference_mode()
def test_conditional_causal_likelihood_is_a_difference(tiny: Tiny) -> None:
    """log p(b | a) = log p(a b) - log p(a), and padding behind a row changes nothing."""
    model = tiny(layout="causal", shift=True)
    scored = torch.arange(6).expand(2, 6) >= 3
    both, given = exact_causal(model, WINDOW, REST)[0], exact_causal(model, WINDOW[:, :3], REST[:, :3])[0]
    torch.testing.assert_close(exact_causal(model, WINDOW, scored, rows=2)[0], both - given, rtol=0, atol=1e-5)
    padded = torch.nn.functional.pad(WINDOW, (0, 3)), torch.nn.functional.pad(scored, (0, 3))
    torch.testing.assert_close(exact_causal(model, *padded)[0], both - given, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_conditional_blocks_of_one_are_exact(tiny: Tiny) -> None:
    model = tiny(layout="block_causal", block_length=1, shift=True)
    scored = torch.arange(6).expand(2, 6) >= 3
    mean, error = blockwise(model, WINDOW, 1, Estimation(2, 0, 4, silent), scored)
    assert float(error.max()) < 1e-6
    torch.testing.assert_close(mean, exact_causal(model, WINDOW, scored)[0], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_block_sees_what_is_given_in_it(tiny: Tiny) -> None:
    """One block of the whole row, part of it given: the bound of a full canvas."""
    model = tiny(layout="block_causal", block_length=8)
    places = (~GIVEN[0]).nonzero()[:, 0].tolist()
    mean, error = blockwise(model, WINDOW, 8, Estimation(3000, 0, 500, silent), ~GIVEN)
    for row in range(2):
        assert abs(float(mean[row]) - enumerated(model, WINDOW[row], places, SUBS)) < 3 * float(error[row])


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"layout": "block_causal", "block_length": 2}, {"layout": "causal"}])
def test_greedy_is_what_greedy_decoding_writes(tiny: Tiny, options: dict[str, Any]) -> None:
    """Against the decoder at temperature 0, one token a step; and one other token is not it."""
    lm = DiffusionLM(tiny(shift=options.get("layout") == "causal", **options), None)
    steps = {} if lm.config.layout == "causal" else {"rule": "quota", "max_denoising_steps": 8}
    given = [[2, 5, 1, 7], [3, 3]]
    outs = lm.generate(given, 6, temperature=0.0, **steps)
    wanted = [out.token_ids for out in outs]
    other = [[(ids[0] + 1) % 12, *ids[1:]] for ids in wanted]
    assert [one.greedy for one in lm.likelihood(ids=wanted, given=given, samples=1)] == [True, True]
    assert [one.greedy for one in lm.likelihood(ids=other, given=given, samples=1)] == [False, False]


@torch.inference_mode()
def test_a_masked_model_reads_what_is_given_behind(tiny: Tiny) -> None:
    model = tiny()
    canvas = WINDOW[0].clone()
    canvas[4] = 12
    canvas[4] = model(canvas[None])[0, 4, :12].argmax()
    assert is_greedy(model, canvas, torch.arange(6) == 4)
    canvas[4] = (canvas[4] + 1) % 12
    assert not is_greedy(model, canvas, torch.arange(6) == 4)


@pytest.mark.parametrize("layout", ["bidirectional", "causal"])
def test_a_text_costs_the_same_in_any_company(tiny: Tiny, layout: Any) -> None:
    lm = DiffusionLM(tiny(layout=layout, bos_token_id=0, max_length=8), None)
    texts, given = [[1, 2, 3], [4, 5], list(range(1, 12))], [[7, 7], [8], [2]]
    together = lm.likelihood(ids=texts, given=given, samples=4, batch=3)
    for text, before, one in zip(texts, given, together, strict=True):
        alone = lm.likelihood(ids=[text], given=[before], samples=4)[0]
        assert one.nats == pytest.approx(alone.nats, rel=1e-5)
        assert (one.tokens, one.greedy) == (len(text), alone.greedy)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ids": [[1]], "texts": ["a"]}, "texts or ids"),
        ({"ids": [[1], [2]], "given": [[1]]}, "2 texts have 1 prompts"),
        ({"ids": [[1]], "given": [[1] * 64]}, "leave no room"),
        ({"ids": [[99]]}, "outside the vocabulary"),
        ({"ids": [[1]], "guidance": 1.0}, "guidance"),
        ({"ids": [[1]], "samples": 0}, "samples"),
    ],
)
def test_bad_likelihood_input_is_named(tiny: Tiny, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UnmaskError, match=says):
        DiffusionLM(tiny(), None).likelihood(**options)
    with pytest.raises(UnmaskError, match="no start of text"):
        DiffusionLM(tiny(layout="causal"), None).likelihood(ids=[[1]])
