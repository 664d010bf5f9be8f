"""Who may attend to whom: one predicate, rendered as a dense mask or as a FlexAttention block mask.

Shapes: B batch, H heads, T queries, S keys, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

LayoutKind = Literal["bidirectional", "causal", "block_causal", "block_diffusion"]
LAYOUT_KINDS: tuple[LayoutKind, ...] = ("bidirectional", "causal", "block_causal", "block_diffusion")

PADDING = -1  # document id of padding: it attends to padding only, and nothing else attends to it
EMPTY = -2  # document id of a cache slot that holds nothing yet
NOISED, CLEAN = 0, 1  # the two copies of a token in the training row [x_t ; x_0]


class Coordinates(NamedTuple):
    """Where tokens stand: LongTensors of one shape, [T] or [B, T]."""

    position: Tensor  # inside its document, from 0
    document: Tensor  # tokens of different documents never meet
    copy: Tensor  # NOISED or CLEAN; only the block-diffusion layout looks at it

    @staticmethod
    def of(position: Tensor, document: Tensor | None = None) -> Coordinates:
        """Coordinates of plain rows: one copy and, unless told, one document."""
        zeros = torch.zeros_like(position)
        return Coordinates(position, zeros if document is None else document, zeros)

    def doubled(self) -> Coordinates:
        """The same tokens twice, [x_t ; x_0], along the last axis (BD3-LM, arXiv 2503.09573)."""
        copies = [torch.full_like(self.copy, NOISED), torch.full_like(self.copy, CLEAN)]
        return Coordinates(
            torch.cat([self.position] * 2, -1), torch.cat([self.document] * 2, -1), torch.cat(copies, -1)
        )


@dataclass(frozen=True)
class Layout:
    """An attention pattern. `block_length` is read by the two block layouts only."""

    kind: LayoutKind
    block_length: int = 1

    def __post_init__(self) -> None:
        if self.kind not in LAYOUT_KINDS:
            raise ValueError(f"layout '{self.kind}' is unknown; use one of {', '.join(LAYOUT_KINDS)}")
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")

    def allows(self, q: Coordinates, k: Coordinates) -> Tensor:
        """THE predicate: may q see k? Broadcasts its arguments, bool out."""
        same_document = q.document == k.document
        if self.kind == "bidirectional":
            return same_document
        if self.kind == "causal":
            return same_document & (k.position <= q.position)
        q_block = q.position // self.block_length
        k_block = k.position // self.block_length
        if self.kind == "block_causal":
            return same_document & (k_block <= q_block)
        noised_to_itself = (q.copy == k.copy) & (q_block == k_block)
        noised_to_clean = (q.copy == NOISED) & (k.copy == CLEAN) & (k_block < q_block)
        clean_to_clean = (q.copy == CLEAN) & (k.copy == CLEAN) & (k_block <= q_block)
        return same_document & (noised_to_itself | noised_to_clean | clean_to_clean)

    def dense(self, q: Coordinates, k: Coordinates) -> Tensor:
        """Bool mask [1 or B, 1, T, S], true where attention is allowed."""
        q = Coordinates(*(field[..., :, None] for field in q))
        k = Coordinates(*(field[..., None, :] for field in k))
        mask = self.allows(q, k)
        return mask[None, None] if mask.dim() == 2 else mask[:, None]

    def flex(self, q: Coordinates, k: Coordinates) -> BlockMask:
        """The same predicate as a FlexAttention block mask (empty tiles are skipped on CUDA)."""
        q = Coordinates(*(field.view(-1, field.shape[-1]) for field in q))
        k = Coordinates(*(field.view(-1, field.shape[-1]) for field in k))

        def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            row_q = Coordinates(*(field[b % field.shape[0], i] for field in q))
            row_k = Coordinates(*(field[b % field.shape[0], j] for field in k))
            return self.allows(row_q, row_k)

        rows, (n_q, n_k) = q.position.shape[0], (q.position.shape[1], k.position.shape[1])
        device = str(q.position.device)
        return create_block_mask(mask_mod, rows if rows > 1 else None, None, n_q, n_k, device=device)

    def render(self, q: Coordinates, k: Coordinates | None = None) -> AttentionMask:
        """What `attend` takes: a block mask on CUDA, else a dense one."""
        k = q if k is None else k
        return self.flex(q, k) if q.position.is_cuda else self.dense(q, k)


class CausalMask:
    """Plain causal attention over one document: the kernel's own fast path, no mask tensor."""


AttentionMask = Tensor | BlockMask | CausalMask | None
_compiled_flex = torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=32)
def plain_mask(layout: Layout, length: int, device: torch.device) -> AttentionMask:
    """Mask of rows that are one document each, built once per shape.

    For the block-diffusion layout `length` counts [x_t ; x_0], so it is even.
    """
    if layout.kind == "bidirectional":
        return None
    if layout.kind == "causal":
        return CausalMask()
    if layout.kind == "block_diffusion":
        return layout.render(Coordinates.of(torch.arange(length // 2, device=device)).doubled())
    return layout.render(Coordinates.of(torch.arange(length, device=device)))


def attend(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask: AttentionMask) -> Tensor:
    """Scaled dot-product attention; G may divide H (grouped heads). Returns [B, H, T, D]."""
    grouped = q_BHTD.shape[1] != k_BGSD.shape[1]
    if isinstance(mask, BlockMask):
        out = _compiled_flex(q_BHTD, k_BGSD, v_BGSD, block_mask=mask, enable_gqa=grouped)
        assert isinstance(out, Tensor)
        return out
    causal = isinstance(mask, CausalMask)
    dense = mask if isinstance(mask, Tensor) else None
    return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, attn_mask=dense, is_causal=causal, enable_gqa=grouped)
