"""The objective that teaches drafts: its groups, its loss and its gradient against slow counterparts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.attention import CausalMask
from unmask.layout import PADDING, Coordinates, Layout
from unmask.models import adapter
from unmask.models.transformer import Transformer
from unmask.objectives.drafts import Distillation, Drafted, Drafts, chained, draft_head
from unmask.objectives.draws import Draws
from unmask.objectives.objective import Rows, training_mask

Drafting = Callable[..., tuple[Transformer, Transformer]]
MASK = 8


def some_rows(seed: int = 0, count: int = 3, padding: int = 2) -> Rows:
    """Rows of 20 tokens: two dialogues, the second with a long prompt, and padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, MASK, (count, 20), generator=generator)
    document = torch.tensor([4] * 9 + [7] * (11 - padding) + [PADDING] * padding).expand(count, -1)
    index = torch.arange(20)
    return Rows.of(ids, document, ((index >= 2) & (index < 9) | (index >= 13)).expand(count, -1))


def corrupt(objective: Drafts, rows: Rows, seed: int = 0, step: int = 0) -> Drafted:
    count = len(rows.ids)
    return objective.corrupt(rows, Draws(seed, step, count, 0, count), MASK)


def one_length(length: int, slots: int = 24, **options: Any) -> Drafts:
    return Drafts(slots=slots, lengths=(length,), shares=(1.0,), **options)


# --- the loss of one slot -----------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.3, 0.7, 1.0, 2.0]), st.integers(1, 8), st.integers(0, 99)
)
def test_distillation_is_the_dense_formula(
    slots: int, teachers: int, temperature: float, chunk: int, seed: int
) -> None:
    """Value and gradient: weight times cross-entropy against the sharpened teacher, whatever the chunks."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(slots, 6, generator=generator).requires_grad_()
    teacher = torch.randn(teachers, 6, generator=generator).requires_grad_()
    head = torch.randn(11, 6, generator=generator).requires_grad_()
    which = torch.randint(teachers, (slots,), generator=generator)
    weight = torch.rand(slots, generator=generator)
    p = (teacher.double() @ head.double().T / temperature).softmax(-1)[which].detach()
    dense = -(weight.double()[:, None] * p * (student.double() @ head.detach().double().T).log_softmax(-1)).sum()
    (expected,) = torch.autograd.grad(3 * dense, student)
    found = Distillation.apply(student, teacher, which, head, weight, temperature, chunk)
    gradients = torch.autograd.grad(3 * found, (student, teacher, head), allow_unused=True)
    torch.testing.assert_close(found.double(), dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], expected, rtol=1e-4, atol=1e-5)
    assert gradients[1:] == (None, None)  # teacher and head are the base's, which stays as it is


def test_distillation_is_least_where_the_student_is_the_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    states, head = torch.randn(5, 6, generator=generator), torch.randn(11, 6, generator=generator)
    student = states.clone().requires_grad_()
    which, weight = torch.arange(5), torch.ones(5)
    loss = Distillation.apply(student, states, which, head, weight, 1.0, 2)
    loss.backward()
    entropy = torch.distributions.Categorical(logits=states @ head.T).entropy().sum()
    torch.testing.assert_close(loss, entropy)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


# --- groups -------------------------------------------------------------------------------------------------


@st.composite
def packed_rows(draw: st.DrawFn) -> Rows:
    """Rows of dialogues of any length, each with a prompt that is given, and padding."""
    width, rows = draw(st.integers(3, 24)), []
    for _ in range(draw(st.integers(1, 3))):
        document, supervised = [PADDING] * width, [False] * width
        at = number = 0
        while at < width and draw(st.booleans() if number else st.just(True)):
            end = min(width, at + draw(st.integers(1, width)))
            answer = draw(st.integers(at, end))
            document[at:end] = [number] * (end - at)
            supervised[answer:end] = [True] * (end - answer)
            at, number = end, number + 1
        ids = draw(st.lists(st.integers(0, MASK - 1), min_size=width, max_size=width))
        rows.append((ids, document, supervised))
    return Rows.of(*(torch.tensor(values) for values in zip(*rows, strict=True)))


@settings(max_examples=40)
@given(
    packed_rows(),
    st.sampled_from([(2,), (4,), (1, 3), (2, 6)]),
    st.integers(6, 30),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 50),
)
def test_groups_are_what_they_are_said_to_be(
    rows: Rows, lengths: tuple[int, ...], slots: int, revealed: float, seed: int
) -> None:
    shares = (1.0,) if len(lengths) == 1 else (0.5, 0.5)
    objective = Drafts(slots=slots, lengths=lengths, shares=shares, decay=0.8, revealed=revealed)
    drafted = corrupt(objective, rows, seed)
    assert drafted.position is not None
    assert drafted.anchor is not None
    k = drafted.length
    assert k in lengths
    count, width = rows.ids.shape
    needed = 1  # as many groups as the row that needs most has
    assert drafted.normaliser == pytest.approx(float(drafted.weights.sum()))
    assert drafted.rows is rows
    if revealed == 0:
        assert (drafted.inputs == MASK).all()
    for b in range(count):
        document, supervised = rows.document[b].tolist(), rows.supervised[b].tolist()
        # an anchor is a token whose next but one, the first that its group scores, is to be learned
        fit = {a for a in range(width - 2) if supervised[a + 2] and document[a + 2] == document[a]}
        anchors = []
        for start in range(0, drafted.inputs.shape[1], k):
            part = slice(start, start + k)
            inputs, position = drafted.inputs[b, part].tolist(), drafted.position[b, part].tolist()
            targets, weights = drafted.targets[b, part].tolist(), drafted.weights[b, part].tolist()
            (anchor,) = set(drafted.anchor[b, part].tolist())
            assert position == [min(anchor + 1 + j, width - 1) for j in range(k)]
            assert targets == [min(anchor + 2 + j, width - 1) for j in range(k)]
            shown = [token != MASK for token in inputs]
            for j in range(k):
                place = anchor + 1 + j
                if shown[j]:  # its own token, of the anchor's own document
                    assert place < width
                    assert document[place] == document[anchor]
                    assert inputs[j] == rows.ids[b, place]
            if not any(weights) and (anchor not in fit or anchor in anchors):
                continue  # a group that was not needed
            anchors.append(anchor)
            for j in range(k):
                at = anchor + 2 + j
                learned = at < width and supervised[at] and document[at] == document[anchor]
                learned = learned and not (j + 1 < k and shown[j + 1])  # a slot beside it shows what it would guess
                assert weights[j] == pytest.approx(0.8**j if learned else 0.0)
        assert len(anchors) == len(set(anchors)) == min(slots // k, len(fit))
        assert set(anchors) <= fit
        needed = max(needed, len(anchors))
    assert drafted.inputs.shape == (count, needed * k)


def test_no_slot_sees_the_token_that_it_is_to_guess() -> None:
    """Not even at the end of a row, where the places of a group's last slots run out."""
    objective, scored = one_length(6, slots=12, revealed=1.0), 0
    for seed in range(20):
        drafted = corrupt(objective, some_rows(seed, padding=0), seed)
        assert drafted.position is not None
        shown = (drafted.inputs != MASK).view(3, 2, 6)
        position, targets = drafted.position.view(3, 2, 6), drafted.targets.view(3, 2, 6)
        learned = (drafted.weights > 0).view(3, 2, 6)
        seen = (position[..., None, :] == targets[..., None]) & shown[..., None, :]  # [row, group, slot, seen]
        assert not (seen.any(-1) & learned).any()
        scored += int(learned.sum())
    assert scored > 100


def test_some_groups_reveal_some_tokens() -> None:
    rows = some_rows(count=40)
    drafted = corrupt(one_length(6, slots=24, revealed=0.5), rows)
    shown = (drafted.inputs != MASK).view(40, 4, 6)
    inside = (drafted.weights > 0).view(40, 4, 6)
    share = shown.any(-1).double().mean()
    assert 0.2 < share < 0.5
    assert not shown.all()
    assert (inside & ~shown).any()
    assert (inside & shown).any()  # what a shown token says next is learned too


def test_lengths_come_by_their_shares() -> None:
    rows, objective = some_rows(count=1), Drafts(slots=8, lengths=(2, 4, 8), shares=(0.5, 0.3, 0.2))
    drawn = [corrupt(objective, rows, step=step).length for step in range(400)]
    for length, share in zip((2, 4, 8), (0.5, 0.3, 0.2), strict=True):
        assert drawn.count(length) / 400 == pytest.approx(share, abs=0.08)  # 3.2 standard deviations
    assert objective.held_out() == Drafts(slots=8, lengths=(8,), shares=(1.0,), revealed=0.0)
    assert corrupt(objective.held_out(), rows).length == 8


def test_two_ranks_see_the_groups_of_one() -> None:
    rows = some_rows(count=4)
    objective = Drafts(slots=12, lengths=(2, 3, 4), shares=(0.4, 0.3, 0.3), revealed=0.5)
    seen = set()
    for step in range(6):
        whole = objective.corrupt(rows, Draws(3, step, 4, 0, 4), MASK)
        halves = [objective.corrupt(rows.slice(at, at + 2), Draws(3, step, 4, at, 2), MASK) for at in (0, 2)]
        for half, at in zip(halves, (0, 2), strict=True):
            width = half.inputs.shape[1]  # a rank leaves out groups that none of its own rows needs
            assert not whole.weights[at : at + 2, width:].any()
            for name in ("inputs", "targets", "weights", "position", "anchor"):
                assert torch.equal(getattr(half, name), getattr(whole, name)[at : at + 2, :width]), name
        assert {half.length for half in halves} == {whole.length}
        assert sum(half.normaliser for half in halves) == pytest.approx(whole.normaliser)
        seen.add(whole.length)
    assert len(seen) > 1


# --- the loss -----------------------------------------------------------------------------------------------


def slow_loss(network: Transformer, drafted: Drafted, temperature: float) -> Tensor:
    """Group by group, in one pass over the row's text and that group under the dense drafts layout."""
    total = torch.zeros((), dtype=torch.float64)
    rows, layout, head = drafted.rows, Layout("drafts"), network.head.weight.double()
    assert drafted.position is not None
    assert drafted.anchor is not None
    assert network.draft_vocabulary is not None
    for b in range(len(rows.ids)):
        for start in range(0, drafted.inputs.shape[1], drafted.length):
            part = slice(start, start + drafted.length)
            anchor = int(drafted.anchor[b, start])
            here = rows.position[b, anchor] + drafted.position[b, part] - anchor
            position = torch.cat([rows.position[b], here])[None]
            document = torch.cat([rows.document[b], rows.document[b, anchor].expand(drafted.length)])[None]
            of_text = torch.full_like(rows.position[b], -1)
            anchors = torch.cat([of_text, rows.position[b, anchor].expand(drafted.length)])[None]
            row = Coordinates.drafts(position, anchors, document)
            ids = torch.cat([rows.ids[b], drafted.inputs[b, part]])[None]
            states = network.hidden(ids, position, layout.dense(row, row), gate_BT=anchors >= 0)[0].double()
            for slot in range(drafted.length):
                weight = drafted.weights[b, start + slot]
                if weight > 0:
                    own = states[rows.ids.shape[1] + slot] @ head[network.draft_vocabulary].T
                    base = states[drafted.position[b, start + slot]] @ head[network.draft_vocabulary].T
                    p = (base / temperature).softmax(-1).detach()
                    total = total - weight * (p * own.log_softmax(-1)).sum()
    return total


def slow_chain_loss(network: Transformer, drafted: Drafted, temperature: float) -> Tensor:
    """Slot by slot, each told the text's token at its own place and the state that this was chosen by."""
    objective = one_length(drafted.length, slots=12, temperature=temperature)
    clean, own = objective.hidden(network, drafted)
    head, total = draft_head(network).double(), torch.zeros((), dtype=torch.float64)
    assert drafted.position is not None
    assert drafted.anchor is not None
    assert network.chain is not None
    for b in range(len(own)):
        for start in range(0, own.shape[1], drafted.length):
            before = clean[b, drafted.anchor[b, start]]
            for slot in range(start, start + drafted.length):
                place = drafted.position[b, slot]
                before = network.chain(own[b, slot], before, network.embedding.weight[drafted.rows.ids[b, place]])
                p = (clean[b, place].double() @ head.T / temperature).softmax(-1).detach()
                for state, share in ((before, 1.0), (own[b, slot], float(start // drafted.length % 4 == 0))):
                    log_q = (state.double() @ head.T).log_softmax(-1)
                    total = total - share * drafted.weights[b, slot] * (p * log_q).sum()
    return total


def trainable(network: Transformer) -> dict[str, torch.nn.Parameter]:
    own = adapter.own_parameters(network)
    for parameter in own.values():
        parameter.requires_grad_(True)
    return own


@pytest.mark.parametrize(("length", "revealed"), [(1, 0.0), (3, 0.0), (4, 1.0)])
def test_two_passes_give_the_loss_of_every_group_on_its_own(drafting: Drafting, length: int, revealed: float) -> None:
    """Packed rows with padding, a part of the vocabulary; the adapter's gradients too, and no other's."""
    _, network = drafting(1)
    network.draft_vocabulary = torch.tensor([0, 1, 3, 4, 7])
    own = trainable(network)
    objective = one_length(length, slots=12, temperature=0.6, revealed=revealed)
    drafted = corrupt(objective, some_rows(), seed=2)
    loss, slow = objective.loss(network, drafted), slow_loss(network, drafted, 0.6)
    torch.testing.assert_close(loss.double(), slow, rtol=1e-5, atol=1e-5)
    found, expected = (torch.autograd.grad(x, list(own.values()), allow_unused=True) for x in (loss, slow))
    for name, gradient, other in zip(own, found, expected, strict=True):
        if name == "mask_embedding" and gradient is None:
            continue
        assert gradient is not None, name
        assert other is not None, name
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5, msg=name)
    assert all(not p.requires_grad for name, p in network.named_parameters() if name not in own)


@pytest.mark.parametrize("length", [1, 3])
def test_a_chain_is_told_one_token_after_another(drafting: Drafting, length: int) -> None:
    """The loss and its gradients; a batch is the sum of its slices too."""
    _, network = drafting(1, chain=5)
    network.draft_vocabulary = torch.tensor([0, 1, 3, 4, 7])
    own = trainable(network)
    objective = one_length(length, slots=12, temperature=0.6, revealed=0.5)
    drafted = corrupt(objective, some_rows(), seed=2)
    loss, slow = objective.loss(network, drafted), slow_chain_loss(network, drafted, 0.6)
    torch.testing.assert_close(loss.double(), slow, rtol=1e-5, atol=1e-5)
    found, expected = (torch.autograd.grad(x, list(own.values())) for x in (loss, slow))
    for name, gradient, other in zip(own, found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5, msg=name)
    assert any(name.startswith("chain.") for name in own)
    parts = [objective.loss(network, drafted.slice(*at)) for at in ((0, 1), (1, 3))]
    torch.testing.assert_close(sum(parts), loss)
    clean, states = objective.hidden(network, drafted)
    assert not torch.equal(chained(network, drafted, clean, states), states)


def test_a_batch_is_the_sum_of_its_slices(drafting: Drafting) -> None:
    _, network = drafting(1)
    objective, rows = one_length(3), some_rows(count=4)
    drafted = corrupt(objective, rows)
    parts = [drafted.slice(0, 1), drafted.slice(1, 4)]
    assert [len(part.inputs) for part in parts] == [1, 3]
    losses = [float(objective.loss(network, part)) for part in (*parts, drafted)]
    assert losses[0] + losses[1] == pytest.approx(losses[2], rel=1e-5)
    assert all(part.normaliser == drafted.normaliser and part.length == 3 for part in parts)


@torch.no_grad()
def test_text_of_a_training_pass_is_the_bases(drafting: Drafting) -> None:
    base, network = drafting(1)
    objective, rows = one_length(4), some_rows()
    clean, own = objective.hidden(network, corrupt(objective, rows))
    assert own.shape == (3, 24, 32)
    assert torch.equal(clean, base.hidden(rows.ids, rows.position, training_mask(Layout("causal"), rows)))


def test_an_adapter_that_does_nothing_starts_where_the_base_is(drafting: Drafting) -> None:
    """A fresh adapter's share is zero, so its slots give what the base gives for a mean token."""
    base, network = drafting(1)
    adapter.put(network, adapter.initial(network, 0))
    ids = torch.tensor([[1, 2, MASK]])
    gate = torch.tensor([[False, False, True]])
    with torch.no_grad():
        found = network.hidden(ids, None, CausalMask(), gate_BT=gate)
        base.embedding.weight[MASK] = base.embedding.weight.mean(0)
        torch.testing.assert_close(found, base.hidden(ids, None, CausalMask()))


def test_training_an_adapter_lowers_the_loss(drafting: Drafting) -> None:
    _, network = drafting(1)
    adapter.put(network, adapter.initial(network, 0))
    own = trainable(network)
    before = {n: p.detach().clone() for n, p in network.named_parameters() if n not in own}
    objective, rows, losses = one_length(3, slots=24), some_rows(count=4), []
    optimizer = torch.optim.Adam(own.values(), lr=1e-2)
    for step in range(25):
        drafted = corrupt(objective, rows, step=step)
        loss = objective.loss(network, drafted) / drafted.normaliser
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(torch.equal(p, before[n]) for n, p in network.named_parameters() if n not in own)


@torch.no_grad()
def test_the_report_counts_agreement_with_the_base(drafting: Drafting) -> None:
    _, network = drafting(1)
    network.draft_vocabulary = torch.tensor([0, 1, 2, 3, 4, 7])
    objective, rows = one_length(3, slots=24), some_rows(count=6)
    drafted = corrupt(objective, rows)
    assert drafted.position is not None
    clean, own = objective.hidden(network, drafted)
    expected = {"agree_1": 0.0, "agree_2": 0.0, "agree_3": 0.0, "accepted": 0.0, "count": 0.0}
    for b in range(6):
        for start in range(0, 24, 3):
            if (drafted.weights[b, start : start + 3] > 0).all():
                best = [clean[b, drafted.position[b, start + j]] @ network.head.weight.T for j in range(3)]
                mine = [own[b, start + j] @ draft_head(network).T for j in range(3)]
                right = [
                    int(a.argmax()) == int(network.draft_vocabulary[m.argmax()])
                    for a, m in zip(best, mine, strict=True)
                ]
                for j in range(3):
                    expected[f"agree_{j + 1}"] += right[j]
                expected["accepted"] += next((j for j in range(3) if not right[j]), 3)
                expected["count"] += 1
    assert expected["count"] > 10
    assert expected["accepted"] > 0
    assert objective.report(network, drafted) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": (4,)},
        {"lengths": (0,), "shares": (1.0,)},
        {"lengths": (4, 8), "shares": (1.2, -0.2)},
        {"lengths": (4, 8), "shares": (0.5, 0.6)},
        {"slots": 16},
        {"decay": 0.0},
        {"decay": 1.1},
        {"revealed": -0.1},
        {"revealed": 1.1},
        {"temperature": 0.0},
        {"marginal": 0.0},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lengths|shares|decay|marginal"):
        Drafts(**options)


def test_a_model_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_token_id"):
        Drafts().corrupt(some_rows(), Draws(0, 0, 3, 0, 3), None)
