from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.layout import PADDING, Layout
from unmask.models.transformer import Transformer
from unmask.objectives.draws import Draws
from unmask.objectives.masked import AR, BD3LM, MDLM, Curriculum
from unmask.objectives.objective import MaskedCrossEntropy, Noised, Objective, Rows, training_mask

Tiny = Callable[..., Transformer]
MASK = 12
EVERYTHING = (1.0, 1.0)  # clip that masks every token


def some_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(MASK, (rows, length), generator=torch.Generator().manual_seed(seed))


def all_draws(rows: int, seed: int = 0, step: int = 0) -> Draws:
    return Draws(seed, step, rows, 0, rows)


# --- the likelihood bound ---------------------------------------------------------------------------------


class Memo:
    """A network that runs each distinct canvas once: a Monte-Carlo estimate of a toy visits few."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config, self.head, self.unshift = model, model.config, model.head, model.unshift

    def hidden(self, ids: Tensor, positions: Tensor, mask: Any, *, time_B: Tensor | None) -> Tensor:
        canvas, where = ids.unique(dim=0, return_inverse=True)
        return self.model.hidden(canvas, positions[: len(canvas)], mask)[where]


def bound_by_enumeration(model: Transformer, x0: Tensor, block_length: int) -> float:
    """The continuous-time NELBO of one text under the linear schedule: for every block and every set M of
    its n tokens being masked, integral of t^(|M|-1) (1-t)^(n-|M|) = B(|M|, n-|M|+1), times the set's
    summed cross-entropy given the clean tokens of earlier blocks."""
    total, length = 0.0, len(x0)
    for start in range(0, length, block_length):
        block = range(start, min(start + block_length, length))
        for size in range(1, len(block) + 1):
            beta = math.gamma(size) * math.gamma(len(block) - size + 1) / math.gamma(len(block) + 1)
            for masked in combinations(block, size):
                canvas = x0[: block.stop].clone()
                canvas[list(masked)] = MASK
                mask = training_mask(Layout("block_causal", block_length), Rows.of(canvas[None]))
                logits = model(canvas[None], mask=mask)[0]
                logits[:, MASK] = -torch.inf
                total += beta * F.cross_entropy(logits[list(masked)], x0[list(masked)], reduction="sum").item()
    return total


@torch.no_grad()
@pytest.mark.parametrize(
    "objective",
    [
        MDLM(clip=(1e-5, 1.0)),
        MDLM(clip=(1e-5, 1.0), complementary=True),
        MDLM(clip=(1e-5, 1.0), schedule="cosine"),  # the bound does not depend on the schedule
        BD3LM(clip=(1e-5, 1.0), block_length=2),
        BD3LM(clip=(1e-5, 1.0), block_length=3),
    ],
    ids=["mdlm", "complementary", "cosine", "blocks of 2", "blocks of 3"],
)
def test_nelbo_is_unbiased(objective: MDLM, tiny: Tiny) -> None:
    model, steps, count = tiny(std=0.15), 12, 8000
    x0 = some_ids(1, 5, seed=4)
    block_length = objective.block_length if isinstance(objective, BD3LM) else 5
    exact = bound_by_enumeration(model, x0[0], block_length)
    rows = Rows.of(x0.expand(count, -1).contiguous())
    estimates = []
    for step in range(steps):
        noised = objective.corrupt(rows, all_draws(count, step=step), MASK)
        estimates.append(objective.loss(Memo(model), noised).item() / noised.normaliser * x0.numel())
    sample = torch.tensor(estimates, dtype=torch.float64)
    error = sample.std().item() / math.sqrt(steps)
    assert error < 0.01 * exact
    assert abs(sample.mean().item() - exact) < min(3.5 * error, 0.01 * exact)


# --- one family: AR, blocks, whole canvas ------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("block_length", [9, 32])
def test_one_block_is_mdlm(block_length: int, shift: bool, tiny: Tiny) -> None:
    model, rows, draws = tiny(shift=shift), Rows.of(some_ids(4, 9)), all_draws(4, seed=1)
    blocks, whole = BD3LM(block_length=block_length, shift=shift), MDLM(shift=shift)
    ours, theirs = blocks.corrupt(rows, draws, MASK), whole.corrupt(rows, draws, MASK)
    assert torch.equal(ours.inputs[:, :9], theirs.inputs)
    assert torch.equal(ours.weights, theirs.weights)
    torch.testing.assert_close(blocks.loss(model, ours), whole.loss(model, theirs), rtol=1e-6, atol=1e-6)


def packed_rows() -> Rows:
    """Two rows of documents of lengths 5, 3 and 2 (padding), and 10."""
    document = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, PADDING, PADDING], [0] * 10])
    return Rows.of(some_ids(2, 10, seed=5), document)


@torch.no_grad()
def test_blocks_of_one_with_a_shifted_head_are_ar(tiny: Tiny) -> None:
    model, rows = tiny(shift=True), packed_rows()
    rows = replace(rows, supervised=rows.supervised & (rows.position > 0))  # AR can't score first tokens
    ar, blocks = AR(), BD3LM(block_length=1, shift=True, clip=EVERYTHING)
    ours, theirs = blocks.corrupt(rows, all_draws(2), MASK), ar.corrupt(rows, all_draws(2), MASK)
    assert ours.normaliser == theirs.normaliser
    assert torch.equal(ours.weights, theirs.weights)
    torch.testing.assert_close(blocks.loss(model, ours), ar.loss(model, theirs), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_blocks_of_one_score_each_token_from_its_prefix_and_a_mask(tiny: Tiny) -> None:
    model, ids = tiny(), some_ids(1, 7)
    blocks = BD3LM(block_length=1, clip=EVERYTHING)
    expected = 0.0
    for i in range(7):
        canvas = torch.cat([ids[:, :i], torch.tensor([[MASK]])], 1)
        logits = model(canvas, mask=training_mask(Layout("causal"), Rows.of(canvas)))[0, -1]
        logits[MASK] = -torch.inf
        expected += F.cross_entropy(logits, ids[0, i]).item()
    noised = blocks.corrupt(Rows.of(ids), all_draws(1), MASK)
    assert blocks.loss(model, noised).item() == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("block_length", [1, 3, 12])
def test_no_token_is_scored_with_a_view_of_itself(shift: bool, block_length: int, tiny: Tiny) -> None:
    """Changing the clean copy from a token's block on must not change how that token is scored."""
    model, ids = tiny(shift=shift), some_ids(1, 12)
    objective = BD3LM(block_length=block_length, shift=shift, clip=EVERYTHING)
    noised = objective.corrupt(Rows.of(ids), all_draws(1), MASK)
    for i in noised.weights[0].nonzero().flatten().tolist():
        start = i // block_length * block_length
        weights = torch.zeros_like(noised.weights)
        weights[0, i] = 1
        other = noised.inputs.clone()
        other[:, 12 + start :] = (other[:, 12 + start :] + 1) % MASK
        losses = [objective.loss(model, replace(noised, inputs=x, weights=weights)) for x in (noised.inputs, other)]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5), f"token {i}"


# --- cross-entropy ------------------------------------------------------------------------------------------


@given(n=st.integers(0, 9), chunk=st.integers(1, 10), banned=st.sampled_from([None, 4]), seed=st.integers(0, 2**31 - 1))
def test_chunked_cross_entropy_is_the_dense_one(n: int, chunk: int, banned: int | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, head = torch.randn(n, 6, generator=generator), torch.randn(5, 6, generator=generator)
    target, weight = torch.randint(4, (n,), generator=generator), torch.rand(n, generator=generator) * 3
    ours = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    dense = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    found = MaskedCrossEntropy.apply(ours[0], ours[1], target, weight, banned, chunk)  # type: ignore[no-untyped-call]
    logits = dense[0] @ dense[1].T
    if banned is not None:
        logits = logits.index_fill(1, torch.tensor(banned), -torch.inf)
    expected = (weight * F.cross_entropy(logits, target, reduction="none")).sum()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    (found * 0.7).backward()
    (expected * 0.7).backward()
    for mine, theirs in zip(ours, dense, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("objective", [AR, MDLM, BD3LM])
def test_loss_has_the_gradient_of_dense_cross_entropy(objective: type[Objective], shift: bool, tiny: Tiny) -> None:
    """Through the whole network, tied head included: only scored rows reach the head."""
    model, rows = tiny(shift=shift), packed_rows()
    profile = objective(shift=shift)
    noised = profile.corrupt(rows, all_draws(2, seed=3), MASK)
    gradients = []
    for loss in (profile.loss(model, noised), dense_loss(profile, model, noised)):
        model.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == len(list(model.parameters()))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-4)


def dense_loss(objective: Objective, model: Transformer, noised: Noised) -> Tensor:
    """The loss by PyTorch's own cross-entropy and autograd."""

    def dense(hidden: Tensor, head: Tensor, target: Tensor, weight: Tensor, banned: int | None, chunk: int) -> Tensor:
        logits = hidden @ head.T
        if banned is not None:
            logits = logits.index_fill(1, torch.tensor(banned), -torch.inf)
        return (weight * F.cross_entropy(logits, target, reduction="none")).sum()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedCrossEntropy, "apply", dense)
        return objective.loss(model, noised)


# --- who is corrupted, who is scored, what it is divided by -------------------------------------------------

profiles = st.sampled_from(
    [
        MDLM(),
        MDLM(schedule="cosine"),
        MDLM(weight="none", complementary=True),
        BD3LM(block_length=3, clip=(0.3, 0.8)),
        BD3LM(block_length=1),
    ]
)


@given(profiles, st.integers(0, 2**31), st.integers(0, 10))
def test_prompts_and_padding_are_never_corrupted_nor_scored(profile: MDLM, seed: int, prompt: int) -> None:
    rows = packed_rows()
    rows = replace(rows, supervised=rows.supervised & (torch.arange(10) >= prompt))
    noised = profile.corrupt(rows, all_draws(2, seed), MASK)
    canvas, left_alone = noised.inputs[:, :10], ~noised.rows.supervised
    assert torch.equal(canvas[left_alone], noised.rows.ids[left_alone])
    assert (noised.weights[left_alone] == 0).all()
    # scored exactly where masked
    assert torch.equal(noised.weights > 0, canvas == MASK)
    assert torch.equal(noised.targets, noised.rows.ids)


@given(st.integers(0, 2**31), st.sampled_from([MDLM(complementary=True), BD3LM(complementary=True, block_length=3)]))
def test_complementary_copies_mask_each_token_once(seed: int, profile: MDLM) -> None:
    noised = profile.corrupt(packed_rows(), all_draws(2, seed), MASK)
    first, second = (noised.inputs[:, :10] == MASK).chunk(2)
    supervised = packed_rows().supervised
    assert torch.equal(first ^ second, supervised)
    assert noised.normaliser == 2 * supervised.sum()
    # one time t gives both weights: 1/t here, 1/(1-t) in the other copy
    one, other = noised.weights.chunk(2)
    t = torch.where(first, 1 / one, 1 - 1 / other)[supervised]
    drawn = profile.times(packed_rows(), all_draws(2, seed))[supervised]
    torch.testing.assert_close(t, drawn, atol=2e-3, rtol=0)  # 1-t is clipped from below


def test_complementary_nelbo_needs_the_linear_schedule() -> None:
    with pytest.raises(ValueError, match="linear"):
        MDLM(complementary=True, schedule="cosine")


@pytest.mark.parametrize("clip", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.5), (-1.0, 0.5)])
def test_impossible_clips_are_refused(clip: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="clip"):
        MDLM(clip=clip)


def test_masked_diffusion_needs_a_mask_token() -> None:
    with pytest.raises(ValueError, match="mask_token_id"):
        MDLM().corrupt(packed_rows(), all_draws(2), None)


def test_blocks_have_their_own_time_and_their_share_of_masks() -> None:
    profile = BD3LM(block_length=5)
    rows = Rows.of(some_ids(400, 10))
    noised = profile.corrupt(rows, all_draws(400), MASK)
    t = profile.times(rows, all_draws(400))
    assert (t[:, :5] == t[:, :1]).all()
    assert (t[:, 5:] == t[:, 5:6]).all()
    assert (t[:, 0] != t[:, 5]).all()
    masked = (noised.inputs[:, :10] == MASK).float()
    torch.testing.assert_close(masked.mean(), t.mean(), atol=0.02, rtol=0)
    weights = torch.where(masked.bool(), 1 / t, 0)
    torch.testing.assert_close(noised.weights, weights)


def test_blocks_count_from_the_start_of_each_document() -> None:
    rows = Rows.of(some_ids(1, 10), torch.tensor([[0] * 5 + [1] * 5]))
    t = BD3LM(block_length=3).times(rows, all_draws(1))[0]
    assert [t[i] == t[i + 1] for i in range(9)] == [True, True, False, True, False, True, True, False, True]


def test_rows_know_their_documents() -> None:
    rows = packed_rows()
    assert rows.position.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1], list(range(10))]
    assert rows.supervised.tolist() == [[True] * 8 + [False] * 2, [True] * 10]


def test_normalisers() -> None:
    rows = packed_rows()
    rows = replace(rows, supervised=rows.supervised & (torch.arange(10) >= 4))  # 4 and 6 tokens
    answer = torch.tensor([[4.0], [6.0]])
    plain = BD3LM(block_length=2).corrupt(rows, all_draws(2), MASK)
    assert plain.normaliser == 10
    masked = BD3LM(block_length=2, normaliser="masked").corrupt(rows, all_draws(2), MASK)
    assert masked.normaliser == (plain.weights > 0).sum()
    per_answer = BD3LM(block_length=2, normaliser="answer").corrupt(rows, all_draws(2), MASK)
    assert per_answer.normaliser == 2
    torch.testing.assert_close(per_answer.weights, plain.weights / answer)
    assert torch.equal(masked.weights, plain.weights)


@torch.no_grad()
def test_ar_scores_all_but_first_tokens(tiny: Tiny) -> None:
    model, rows = tiny(shift=True), packed_rows()
    noised = AR().corrupt(rows, all_draws(2), None)
    assert torch.equal(noised.inputs, rows.ids)
    assert torch.equal(noised.weights > 0, rows.supervised & (rows.position > 0))
    assert noised.normaliser == 4 + 2 + 9
    expected = 0.0
    for row, start, stop in [(0, 0, 5), (0, 5, 8), (1, 0, 10)]:
        text = rows.ids[row : row + 1, start:stop]
        raw = model.head(model.hidden(text, mask=training_mask(Layout("causal"), Rows.of(text))))[0]
        raw[:, MASK] = -torch.inf
        expected += F.cross_entropy(raw[:-1], text[0, 1:], reduction="sum").item()
    assert AR().loss(model, noised).item() == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("objective", [AR(shift=True), MDLM(), BD3LM(block_length=3)])
def test_two_ranks_make_the_loss_of_one(objective: Objective, tiny: Tiny) -> None:
    model, rows = tiny(shift=objective.shift), Rows.of(some_ids(6, 9))
    whole = objective.corrupt(rows, Draws(1, 2, 6, 0, 6), MASK)
    parts = [objective.corrupt(rows.slice(s, s + 2), Draws(1, 2, 6, s, 2), MASK) for s in (0, 2, 4)]
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert sum(part.normaliser for part in parts) == whole.normaliser
    loss = sum(objective.loss(model, part).item() for part in parts)
    assert loss == pytest.approx(objective.loss(model, whole).item(), rel=1e-6)
    # micro-batches of one corrupted batch as well
    slices = sum(objective.loss(model, whole.slice(s, s + 3)).item() for s in (0, 3))
    assert slices == pytest.approx(objective.loss(model, whole).item(), rel=1e-6)


def test_a_curriculum_ends_with_the_objective_s_own_blocks() -> None:
    own = BD3LM(block_length=16, clip=(0.3, 1.0))
    objective = replace(own, curriculum=Curriculum(every=10, block_length=(4, 8), clip=((0.1, 0.5),)))
    seen = [(objective.at(step).block_length, objective.at(step).clip) for step in (0, 9, 10, 19)]
    assert seen == [(4, (0.1, 0.5)), (4, (0.1, 0.5)), (8, (0.3, 1.0)), (8, (0.3, 1.0))]
    assert objective.at(20) == objective.at(5000) == objective.held_out() == own
    assert objective.network({}) == own.network({})


@pytest.mark.parametrize(
    "values", [{"every": 0}, {"block_length": (4, 0)}, {"clip": ((0.5, 0.1),)}, {"clip": ((0.5,),)}]
)
def test_an_impossible_curriculum_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"clip|curriculum"):
        BD3LM(curriculum=Curriculum(**values))
