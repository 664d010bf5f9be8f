"""The predicate itself: drafts against plain Python, numpy against torch, groups against the dense mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from unmask.attention import GroupMask, attend
from unmask.layout import CLEAN, EMPTY, GROUPED, LAYOUT_KINDS, NOISED, PADDING, Coordinates, Layout, LayoutKind


@dataclass(frozen=True)
class Token:
    """Where a token stands, in words: text of a document, or a slot of the group that hangs on an anchor."""

    document: int
    position: int
    anchor: int | None = None  # of a slot

    def sees(self, other: Token) -> bool:
        """Text reads the text before it; a slot reads the text up to its anchor and its own group."""
        if self.document != other.document:
            return False
        if other.anchor is not None:
            return self.anchor == other.anchor
        return other.position <= (self.position if self.anchor is None else self.anchor)


@st.composite
def rows_with_drafts(draw: st.DrawFn) -> list[Token]:
    """Documents of text in a row, padding and empty slots, and groups of slots anywhere between."""
    tokens = []
    for document in range(draw(st.integers(1, 3))):
        length = draw(st.integers(1, 6))
        tokens += [Token(document, i) for i in range(length)]
        for anchor in draw(st.sets(st.integers(0, length - 1), max_size=3)):
            slots = draw(st.integers(1, 4))
            tokens += [Token(document, anchor + 1 + i, anchor) for i in range(slots)]
    tokens += [Token(PADDING, i) for i in range(draw(st.integers(0, 2)))]
    tokens += [Token(EMPTY, i) for i in range(draw(st.integers(0, 2)))]
    return draw(st.permutations(tokens))


def coordinates(tokens: list[Token]) -> Coordinates:
    position, document = (np.array([getattr(t, f) for t in tokens]) for f in ("position", "document"))
    return Coordinates.drafts(position, np.array([-1 if t.anchor is None else t.anchor for t in tokens]), document)


@given(rows_with_drafts())
def test_drafts_see_what_is_written_out_pair_by_pair(tokens: list[Token]) -> None:
    row = coordinates(tokens)
    expected = np.array([[q.sees(k) for k in tokens] for q in tokens])
    mask = Layout("drafts").dense(row, row)
    assert mask.shape == (1, 1, len(tokens), len(tokens))
    assert mask.dtype == np.bool_
    assert (mask[0, 0] == expected).all()
    assert mask.any(-1).all()  # every token sees itself


@given(rows_with_drafts())
def test_text_of_the_drafts_layout_is_causal(tokens: list[Token]) -> None:
    text = [t for t in tokens if t.anchor is None]
    row = coordinates(text)
    assert (row.copy == CLEAN).all()
    assert (Layout("drafts").dense(row, row) == Layout("causal").dense(row, row)).all()
    assert (Layout("canvas", window=2).dense(row, row) == Layout("causal", window=2).dense(row, row)).all()


def in_torch(row: Coordinates) -> Coordinates:
    return Coordinates(*(torch.from_numpy(np.asarray(field)) for field in row))


@given(
    st.sampled_from(LAYOUT_KINDS),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 9), st.integers(-2, 1), st.integers(-4, 1)), min_size=2, max_size=20),
    st.integers(1, 19),
)
def test_numpy_and_torch_give_one_mask(
    kind: LayoutKind, block_length: int, tokens: list[tuple[int, int, int]], cut: int
) -> None:
    """For any coordinates, one row and a batch; keys may be others than the queries."""
    position, document, copy = (np.array(values) for values in zip(*tokens, strict=True))
    copy = copy if kind in GROUPED else np.where(copy == CLEAN, CLEAN, NOISED)
    window = block_length if kind in ("causal", *GROUPED) else 0
    row, layout = Coordinates(position, document, copy), Layout(kind, block_length, window)
    queries = Coordinates(*(field[: min(cut, len(tokens) - 1)] for field in row))
    batch = Coordinates(*(np.stack([field, field[::-1]]) for field in row))
    for q, k in ((row, row), (queries, row), (batch, batch)):
        found, expected = layout.dense(q, k), layout.dense(in_torch(q), in_torch(k))
        assert isinstance(expected, torch.Tensor)
        assert expected.dtype == torch.bool
        assert found.shape == tuple(expected.shape)
        assert (found == expected.numpy()).all()


@pytest.mark.parametrize("kind", LAYOUT_KINDS)
def test_a_batch_is_its_rows(kind: LayoutKind) -> None:
    generator = np.random.default_rng(0)
    rows = Coordinates(*(generator.integers(low, 2, (3, 7)) for low in (0, -1, 0)))
    mask = Layout(kind, 2).dense(rows, rows)
    for b in range(3):
        row = Coordinates(*(field[b] for field in rows))
        assert (mask[b] == Layout(kind, 2).dense(row, row)[0]).all()


def test_coordinates_of_drafts_keep_the_kind_of_their_arrays() -> None:
    for make in (np.array, torch.tensor):
        row = Coordinates.drafts(make([0, 1, 1, 2]), make([-1, -1, 0, 0]))
        assert type(row.copy) is type(make([0]))
        assert row.copy.tolist() == [CLEAN, CLEAN, -1, -1]
        assert row.document.tolist() == [0, 0, 0, 0]


# --- groups -------------------------------------------------------------------------------------------------


def grouped(seed: int, length: int, groups: int) -> tuple[Coordinates, Coordinates]:
    """Coordinates of slots and of text for two rows of packed documents and padding, in torch."""
    generator = np.random.default_rng(seed)
    texts: list[list[Any]] = [[], [], []]
    owns: list[list[Any]] = [[], [], []]
    for _ in range(2):
        document = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, PADDING])
        position = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 0])
        at = generator.choice(11, groups, replace=False).repeat(length)
        own = position[at] + np.tile(np.arange(1, length + 1), groups)
        for store, value in zip(texts, (position, np.full(12, -1), document), strict=True):
            store.append(value)
        for store, value in zip(owns, (own, position[at], document[at]), strict=True):
            store.append(value)
    text, slots = (Coordinates.drafts(*(torch.tensor(np.stack(x)) for x in stores)) for stores in (texts, owns))
    return slots, text


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(("length", "groups"), [(1, 5), (4, 1), (3, 4)])
def test_groups_attend_as_the_dense_mask_does(heads: int, kv: int, length: int, groups: int) -> None:
    """Outputs and gradients, for grouped heads too."""
    own, text = grouped(length, length, groups)
    keys = Coordinates(*(torch.cat(pair, 1) for pair in zip(text, own, strict=True)))
    generator = torch.Generator().manual_seed(0)
    slots, width = length * groups, 8
    shapes = [(2, heads, slots, width), (2, kv, 12 + slots, width), (2, kv, 12 + slots, width)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    weigh = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    mask = Layout("drafts").dense(own, keys)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=heads != kv)
    expected_grads = torch.autograd.grad((expected * weigh).sum(), inputs)
    found = attend(*inputs, GroupMask.of(own, text, length))
    grads = torch.autograd.grad((found * weigh).sum(), inputs)
    torch.testing.assert_close(found, expected)
    for grad, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, other)


def test_groups_of_one_anchor_in_two_documents_are_two_groups() -> None:
    row = Coordinates.drafts(np.array([1, 1]), np.array([0, 0]), np.array([0, 1]))
    assert Layout("drafts").dense(row, row)[0, 0].tolist() == [[True, False], [False, True]]
