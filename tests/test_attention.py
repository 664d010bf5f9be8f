from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.attention import CausalMask, attend, doubled, flex_mask, plain_mask
from unmask.layout import GROUPED, LAYOUT_KINDS, NOISED, PADDING, Coordinates, Layout, LayoutKind
from unmask.models.transformer import Transformer
from unmask.objectives.objective import Rows, training_mask

Tiny = Callable[..., Transformer]
PLAIN: tuple[LayoutKind, ...] = ("bidirectional", "causal", "block_causal")
# drafts and canvases stand beside their text, so no plain row is of those layouts; see test_layout
WHOLE: tuple[LayoutKind, ...] = (*PLAIN, "block_diffusion")


def coordinates(lengths: list[int], padding: int, kind: LayoutKind) -> Coordinates:
    """One row of packed documents and padding at its end."""
    pieces = [*lengths, padding]
    position = torch.cat([torch.arange(n) for n in pieces])
    numbers = torch.tensor([*range(len(lengths)), PADDING])
    document = numbers.repeat_interleave(torch.tensor(pieces))
    if kind in GROUPED:  # two groups of two slots hang on every document
        anchors = torch.tensor([[n // 2, n - 1] for n in lengths]).flatten().repeat_interleave(2)
        own = anchors + torch.tensor([1, 2]).repeat(2 * len(lengths))
        anchor = torch.cat([torch.full_like(position, -1), anchors])
        document = torch.cat([document, torch.arange(len(lengths)).repeat_interleave(4)])
        return Coordinates.drafts(torch.cat([position, own]), anchor, document)
    row = Coordinates.of(position, document)
    return doubled(row) if kind == "block_diffusion" else row


def may_see(layout: Layout, q: tuple[int, int, int], k: tuple[int, int, int]) -> bool:
    """The rules of the six layouts, written out for one pair (position, document, copy)."""
    kind, length, window = layout.kind, layout.block_length, layout.window or 1000
    (q_position, q_document, q_copy), (k_position, k_document, k_copy) = q, k
    if q_document != k_document:
        return False
    q_block, k_block = q_position // length, k_position // length
    if kind == "bidirectional":
        return True
    if kind == "causal":
        return q_position - window < k_position <= q_position
    if kind == "block_causal":
        return k_block <= q_block
    if kind in GROUPED:  # copy 1 is text, -1 - a the group that sees the text up to position a
        if k_copy != 1:  # in the window's order, a group sees those before it too
            return q_copy != 1 and (k_copy >= q_copy if kind == "causal_window" else k_copy == q_copy)
        if q_copy == 1:
            return q_position - window < k_position <= q_position
        return -q_copy - window < k_position <= -1 - q_copy  # as the token after a, but not itself
    if k_copy == NOISED:  # nobody but its own block reads a noised token
        return q_copy == NOISED and q_block == k_block
    return k_block < q_block if q_copy == NOISED else k_block <= q_block


layouts = st.builds(Layout, st.sampled_from(LAYOUT_KINDS), st.integers(1, 6)) | st.builds(
    Layout, st.sampled_from(("causal", *GROUPED)), window=st.integers(1, 7)
)
packed = {
    "layout": layouts,
    "lengths": st.lists(st.integers(1, 6), min_size=1, max_size=3),
    "padding": st.integers(0, 3),
}


@given(**packed)
def test_dense_mask_is_the_predicate_pair_by_pair(layout: Layout, lengths: list[int], padding: int) -> None:
    row = coordinates(lengths, padding, layout.kind)
    tokens = list(zip(*(field.tolist() for field in row), strict=True))
    expected = torch.tensor([[may_see(layout, q, k) for k in tokens] for q in tokens])
    assert torch.equal(layout.dense(row, row)[0, 0], expected)


@settings(max_examples=12)
@given(**packed)
def test_flex_mask_is_the_dense_one(layout: Layout, lengths: list[int], padding: int) -> None:
    one = coordinates(lengths, padding, layout.kind)
    # a second row, of one document where rows of one and of many are as long
    other = coordinates(lengths[::-1] if layout.kind in GROUPED else [sum(lengths)], padding, layout.kind)
    for row in (one, Coordinates(*(torch.stack(pair) for pair in zip(one, other, strict=True)))):
        dense, mask = layout.dense(row, row), flex_mask(layout, row, row)
        b, i, j = torch.meshgrid(*(torch.arange(dense.shape[n]) for n in (0, 2, 3)), indexing="ij")
        assert torch.equal(mask.mask_mod(b, torch.zeros_like(b), i, j), dense[:, 0])


@pytest.mark.parametrize("kind", LAYOUT_KINDS)
def test_padding_and_text_never_meet(kind: LayoutKind) -> None:
    row = coordinates([3, 4], 3, kind)
    mask, pad = Layout(kind, 2).dense(row, row)[0, 0], row.document == PADDING
    assert not mask[~pad][:, pad].any()
    assert not mask[pad][:, ~pad].any()
    assert mask.any(1).all()  # a row that sees nothing would be NaN


@pytest.mark.parametrize("kind", WHOLE)
def test_plain_mask_is_the_mask_of_one_document(kind: LayoutKind) -> None:
    """The fast paths (no mask, the kernel's causal one) give what the dense mask gives."""
    row = coordinates([8], 0, kind)
    length, layout = len(row.position), Layout(kind, 3)
    q, k, v = torch.randn(3, 2, 2, length, 8, generator=torch.Generator().manual_seed(0))
    found = attend(q, k, v, plain_mask(layout, length, torch.device("cpu")))
    torch.testing.assert_close(found, attend(q, k, v, layout.dense(row, row)))


def test_block_length_one_is_causal_and_a_long_block_is_bidirectional() -> None:
    row = coordinates([5, 3], 2, "causal")
    assert torch.equal(Layout("block_causal", 1).dense(row, row), Layout("causal").dense(row, row))
    assert torch.equal(Layout("block_causal", 5).dense(row, row), Layout("bidirectional").dense(row, row))


@pytest.mark.parametrize(
    ("kind", "length", "window"),
    [("sideways", 1, 0), ("block_causal", 0, 0), ("bidirectional", 1, 4), ("block_causal", 2, 4), ("causal", 1, -1)],
)
def test_impossible_layouts_are_refused(kind: LayoutKind, length: int, window: int) -> None:
    with pytest.raises(ValueError, match=r"unknown|at least 1|no window"):
        Layout(kind, length, window)


def logits(model: Transformer, layout: Layout, rows: Rows, ids: Tensor | None = None) -> Tensor:
    ids, positions = rows.ids if ids is None else ids, rows.position
    if layout.kind == "block_diffusion":
        positions = torch.cat([positions, positions], 1)
    return model(ids, positions, training_mask(layout, rows))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "shift"),
    # the two copies of a block-diffusion row are un-shifted by its objective, not by the network
    [(kind, False) for kind in WHOLE] + [(kind, True) for kind in PLAIN],
)
def test_packed_documents_give_the_logits_they_give_alone(kind: LayoutKind, shift: bool, tiny: Tiny) -> None:
    model, layout = tiny(shift=shift, std=0.15), Layout(kind, 3)
    lengths, padding = [7, 4, 1], 2
    edges = [0, 7, 11, 12]
    ids = torch.randint(12, (1, 14), generator=torch.Generator().manual_seed(1))
    document = torch.tensor([0, 1, 2, PADDING]).repeat_interleave(torch.tensor([*lengths, padding]))[None]
    rows = Rows.of(ids, document)

    def copies(part: Tensor) -> Tensor:
        """The network's input for a row: itself, or [x_t ; x_0] with every third token noised."""
        noised = torch.where(part % 3 == 0, 12, part)
        return torch.cat([noised, part], 1) if kind == "block_diffusion" else part

    together = logits(model, layout, rows, copies(ids))
    for start, stop in pairwise(edges):
        part = ids[:, start:stop]
        alone = logits(model, layout, Rows.of(part), copies(part))
        for copy in range(alone.shape[1] // part.shape[1]):
            found = together[:, copy * 14 + start : copy * 14 + stop]
            expected = alone[:, copy * part.shape[1] : (copy + 1) * part.shape[1]]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("block_length", [1, 3, 4, 16])
def test_single_pass_over_both_copies_equals_block_by_block(block_length: int, tiny: Tiny) -> None:
    model, length = tiny(std=0.15), 11
    generator = torch.Generator().manual_seed(2)
    clean = torch.randint(12, (2, length), generator=generator)
    noised = torch.where(torch.rand(2, length, generator=generator) < 0.5, 12, clean)
    single = logits(model, Layout("block_diffusion", block_length), Rows.of(clean), torch.cat([noised, clean], 1))
    for start in range(0, length, block_length):
        stop = min(start + block_length, length)
        canvas = torch.cat([clean[:, :start], noised[:, start:stop]], 1)
        two_pass = logits(model, Layout("block_causal", block_length), Rows.of(canvas))
        torch.testing.assert_close(single[:, start:stop], two_pass[:, start:], atol=2e-6, rtol=2e-6)
    # the clean copy is what decoding caches
    cached = logits(model, Layout("block_causal", block_length), Rows.of(clean))
    torch.testing.assert_close(single[:, length:], cached, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("kind", ["none", "causal", "allowed", "bias"])
def test_short_rows_in_training_are_what_the_kernel_computes(kind: str, heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, count, 12, 8, generator=generator).requires_grad_() for count in (heads[0], heads[1], heads[1])
    )
    allowed = torch.rand(2, 1, 12, 12, generator=generator) < 0.5
    allowed |= torch.eye(12, dtype=torch.bool)
    bias = torch.randn(1, heads[0], 12, 12, generator=generator)
    mask = {"none": None, "causal": CausalMask(), "allowed": allowed, "bias": bias}[kind]
    dense = mask if isinstance(mask, Tensor) else None
    kernel = torch.nn.functional.scaled_dot_product_attention
    expected = kernel(q, k, v, attn_mask=dense, is_causal=kind == "causal", enable_gqa=heads[0] != heads[1])
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    got = attend(q, k, v, mask)
    assert torch.allclose(got, expected, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(got.square().sum(), (q, k, v)), wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
