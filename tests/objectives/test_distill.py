"""Distillation objectives against closed forms, small enough to be written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from unmask.layout import Layout
from unmask.objectives.distill import CertaintyForcing, Distilled, certainty, over_chunks, top_k_cross_entropy
from unmask.objectives.draws import Draws
from unmask.objectives.masked import BD3LM
from unmask.objectives.objective import Rows, training_mask

Tiny = Callable[..., Any]


def test_top_k_cross_entropy_is_that_of_a_dense_teacher_and_its_gradient_that_of_kl() -> None:
    torch.manual_seed(0)
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 7, dtype=torch.float64).softmax(-1)
    best = teacher.topk(3)
    p = best.values / best.values.sum(-1, keepdim=True)
    dense = torch.zeros_like(teacher).scatter(-1, best.indices, p)
    loss = top_k_cross_entropy(student, best.indices, p)
    torch.testing.assert_close(loss, -(dense * student.log_softmax(-1)).sum(-1))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, student.softmax(-1) - dense)  # of KL(p || q) by the logits
    entropy = -(p * p.log()).sum(-1)
    assert (loss > entropy - 1e-12).all()  # least where the student is the teacher


def test_certainty_is_the_entropy_at_a_low_temperature_where_the_token_is_right() -> None:
    logits = torch.tensor([[0.0, math.log(3) / 2, -1e9], [0.0, math.log(3) / 2, -1e9], [0.0, 0.0, 0.0]])
    found = certainty(logits, torch.tensor([1, 0, 0]), 0.5)
    sharp = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # chances 3/4 and 1/4 at temperature 1/2
    assert found.tolist() == pytest.approx([sharp, 0.0, math.log(3)])


def test_chunks_give_the_same_sum_and_gradient(tiny: Tiny) -> None:
    model = tiny(0, 0.3, layout="block_causal", block_length=4, shift=True)
    size = model.config.hidden_size
    hidden = torch.randn(1300, size, requires_grad=True)
    target = torch.randint(model.config.vocab_size, (1300,))

    def score(logits: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, token, reduction="sum")

    whole = score(model.head(hidden), target)
    parts = over_chunks(score, hidden, model, None, target)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-3)
    for one, other in zip(*(torch.autograd.grad(x, [hidden, model.head.weight]) for x in (parts, whole)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture
def rows(tiny: Tiny) -> tuple[Any, Rows, Draws]:
    model = tiny(1, 0.3, layout="block_causal", block_length=4, shift=True)
    size = model.config.vocab_size
    ids = torch.randint(4, size - 1, (3, 12), generator=torch.Generator().manual_seed(2))
    return model, Rows.of(ids), Draws(seed=3, step=0, total_rows=3, first_row=0, rows=3)


@pytest.mark.parametrize("reads", ["clean", "noised"])
def test_a_teacher_of_one_token_is_hard_targets(rows: tuple[Any, Rows, Draws], reads: Any) -> None:
    """With K = 1 the soft loss is cross-entropy against what the teacher would write."""
    model, clean, draws = rows
    objective = Distilled(block_length=4, shift=True, top_k=1, hard=0.0, reads=reads)
    noised = objective.corrupt(clean, draws, model.config.mask_token_id)
    with torch.no_grad():
        taught = objective.teach(model, noised)
    assert (taught.soft_p[noised.weights > 0] == 1).all()
    plain = BD3LM(block_length=4, shift=True)
    hard = type(noised)(**{**vars(noised), "targets": taught.soft_ids[..., 0]})
    torch.testing.assert_close(objective.loss(model, taught), plain.loss(model, hard), rtol=1e-5, atol=1e-5)
    mixed = Distilled(block_length=4, shift=True, top_k=1, hard=1.0, reads=reads)
    torch.testing.assert_close(mixed.loss(model, taught), plain.loss(model, noised), rtol=1e-5, atol=1e-5)


def test_a_causal_teacher_scores_each_token_from_those_before_it(rows: tuple[Any, Rows, Draws]) -> None:
    model, clean, draws = rows
    objective = Distilled(block_length=4, shift=True, top_k=4)
    noised = objective.corrupt(clean, draws, model.config.mask_token_id)
    with torch.no_grad():
        taught = objective.teach(model, noised)
        row, column = (int(x) for x in (noised.weights > 0).nonzero()[-1])
        alone = Rows.of(clean.ids[row : row + 1, :column])  # nothing from the token on is seen
        hidden = model.hidden(alone.ids, alone.position, training_mask(Layout("causal"), alone), time_B=None)
        logits = model.head(hidden[0, -1])
        logits[model.config.mask_token_id] = -torch.inf
    assert taught.soft_ids[row, column].tolist() == logits.topk(4).indices.tolist()


def test_certainty_forcing_adds_entropy_to_cross_entropy(rows: tuple[Any, Rows, Draws]) -> None:
    model, clean, draws = rows
    plain = BD3LM(block_length=4, shift=True, weight="none", complementary=True)
    noised = plain.corrupt(clean, draws, model.config.mask_token_id)
    assert bool((noised.weights[:3] + noised.weights[3:] == 1).all())  # complementary: each token masked once
    with torch.no_grad():
        losses = [
            float(CertaintyForcing(block_length=4, shift=True, entropy=e).loss(model, noised)) for e in (0.0, 1.0, 2.0)
        ]
        assert losses[0] == pytest.approx(float(plain.loss(model, noised)), rel=1e-5)
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)
    assert losses[1] > losses[0]


def test_impossible_options_are_refused() -> None:
    for options in ({"top_k": 0}, {"hard": 2.0}, {"temperature": 0.0}, {"shift": False}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Distilled(**{"shift": True, **options})  # type: ignore[arg-type]
