"""The objective of text and blocks behind it, against forwards of each block alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.layout import PADDING, Coordinates, Layout
from unmask.models.transformer import Transformer
from unmask.objectives.draws import Draws
from unmask.objectives.hybrid import Behind, Hybrid
from unmask.objectives.masked import AR
from unmask.objectives.objective import Rows

MASK = 12
BLOCK = 5


def some_rows(seed: int, padding: int = 3) -> Rows:
    """Rows of 24 tokens: two documents of a prompt and an answer, and padding with the token 0, that ends both."""
    ids = torch.randint(1, MASK, (3, 24), generator=torch.Generator().manual_seed(seed))
    document = torch.tensor([0] * 10 + [1] * (14 - padding) + [PADDING] * padding).expand(3, -1)
    ids[:, 9] = 0
    ids[:, 23 - padding :] = 0
    index = torch.arange(24)
    return Rows.of(ids, document, ((index >= 4) & (index < 10) | (index >= 13)).expand(3, -1))


def corrupt(objective: Hybrid, rows: Rows, step: int = 0) -> Behind:
    return objective.corrupt(rows, Draws(0, step, 3, 0, 3), MASK)


@pytest.fixture
def network(tiny: Callable[..., Transformer]) -> Transformer:
    return tiny(shift=True, in_place=True, layout="causal_blocks", block_length=BLOCK)


def alone(model: Transformer, text: list[int], block: list[int]) -> torch.Tensor:
    """Log-probabilities [K, V] of a block behind a text, in a forward of its own."""
    place = torch.arange(len(text) + len(block))[None]
    anchor = torch.where(place < len(text), -1, len(text) - 1)
    coordinates = Coordinates.drafts(place, anchor)
    mask = Layout("causal_blocks").dense(coordinates, coordinates)
    logits = model.head(model.hidden(torch.tensor([text + block]), place, mask))[0, len(text) :]
    logits[:, MASK] = -torch.inf
    return logits.log_softmax(-1)


@settings(max_examples=12)
@given(seed=st.integers(0, 99), full=st.sampled_from([0.0, 0.5, 1.0]), eos=st.sampled_from(["ignore", "learn"]))
def test_a_block_is_scored_as_in_a_forward_of_its_own(tiny: Any, seed: int, full: float, eos: Any) -> None:
    model = tiny(shift=True, in_place=True, layout="causal_blocks", block_length=BLOCK)
    rows = some_rows(seed, padding=seed % 4)
    objective = Hybrid(block_length=BLOCK, blocks=4, clip=(0.3, 0.9), full=full, ar=0.0, eos=eos)
    noised = corrupt(objective, rows, seed)
    expected = 0.0
    count = 0
    shape = (3, 4, BLOCK)
    size = noised.position.shape[1]
    parts = (noised.inputs, noised.targets, noised.weights, noised.anchor, noised.document)
    inputs, targets, weights, anchor, document = (part[:, :size].view(shape) for part in parts)
    for b in range(3):
        for g in range(4):
            own = rows.ids[b][rows.document[b] == document[b, g, 0]].tolist()
            text = own[: int(anchor[b, g, 0]) + 1]
            inside = min(len(own) - len(text), BLOCK)
            assert targets[b, g, :inside].tolist() == own[len(text) : len(text) + inside]
            learned = inputs[b, g] == MASK
            if eos == "ignore":
                assert bool(learned[inside:].all())
                learned[inside:] = False
            else:
                assert targets[b, g, inside:].tolist() == [0] * (BLOCK - inside)
            assert torch.equal(weights[b, g] > 0, learned)
            log_p = alone(model, text, inputs[b, g].tolist()).detach()
            expected -= float(log_p[torch.arange(BLOCK), targets[b, g]][learned].sum())
            count += int(learned.sum())
    assert noised.normaliser == count
    assert objective.loss(model, noised).item() == pytest.approx(expected, rel=1e-4)


def test_the_share_of_the_text_is_that_of_ar(network: Transformer) -> None:
    """With blocks of no weight the loss is `ar` times that of objective ar, a token."""
    rows = some_rows(3)
    noised = corrupt(Hybrid(block_length=BLOCK, ar=0.7), rows)
    plain = AR().corrupt(rows, Draws(0, 0, 3, 0, 3), MASK)
    expected = 0.7 * float(AR().loss(network, plain)) / float((plain.weights > 0).sum())
    noised.weights[:, : noised.position.shape[1]] = 0
    assert float(Hybrid().loss(network, noised)) / noised.normaliser == pytest.approx(expected, rel=1e-4)


def test_answers_begin_blocks_and_no_block_hangs_on_a_prompt() -> None:
    rows = some_rows(5)
    for step in range(20):
        noised = corrupt(Hybrid(block_length=BLOCK, blocks=4), rows, step)
        begins = (noised.anchor + 1).view(3, 4, BLOCK)[..., 0]
        document = noised.document.view(3, 4, BLOCK)[..., 0]
        for b in range(3):
            places = list(zip(document[b].tolist(), begins[b].tolist(), strict=True))
            assert {(0, 4), (1, 3)} <= set(places)
            assert len(set(places)) == 4
            assert all(place >= (4, 3)[number] for number, place in places)


def test_a_row_with_nothing_to_learn_has_no_blocks(network: Transformer) -> None:
    rows = some_rows(1)
    rows = Rows(rows.ids, rows.document, rows.position, rows.supervised & (torch.arange(3) < 1)[:, None])
    noised = corrupt(Hybrid(block_length=BLOCK), rows)
    assert not noised.weights[1:].any()
    assert noised.weights[0].any()
    assert torch.isfinite(Hybrid().loss(network, noised))


def test_tokens_right_in_a_row_are_counted(network: Transformer) -> None:
    """Against counting by hand from the forwards of each block alone."""
    rows = some_rows(2)
    objective = Hybrid(block_length=BLOCK, blocks=2, full=1.0)
    noised = corrupt(objective, rows)
    by_hand = 0
    anchor, document = (part.view(3, 2, BLOCK)[..., 0] for part in (noised.anchor, noised.document))
    for b in range(3):
        for g in range(2):
            own = rows.ids[b][rows.document[b] == document[b, g]].tolist()
            text = own[: int(anchor[b, g]) + 1]
            best = alone(network, text, [MASK] * BLOCK).argmax(-1).tolist()
            for mine, true in zip(best, own[len(text) :], strict=False):
                if mine != true:
                    break
                by_hand += 1
    told = objective.report(network, noised)
    assert told["count"] == 6
    assert told["accepted"] == by_hand


def test_rows_shorter_than_their_blocks_have_fewer() -> None:
    rows = Rows.of(torch.randint(1, MASK, (3, 4)))
    noised = corrupt(Hybrid(block_length=BLOCK, blocks=6), rows)
    assert noised.position.shape == (3, 4 * BLOCK)
    begins = (noised.anchor + 1).view(3, 4, BLOCK)[..., 0]
    assert {tuple(sorted(row)) for row in begins.tolist()} == {(0, 1, 2, 3)}
    assert not noised.weights.view(3, -1)[:, : 4 * BLOCK].view(3, 4, BLOCK)[begins == 0].any()  # nothing is before it
