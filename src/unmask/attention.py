"""Attention in torch: a layout rendered as a dense mask or a FlexAttention block mask, and the product itself.

Shapes: B batch, H heads, T queries, S keys, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.layout import CLEAN, NOISED, Coordinates, Layout

if TYPE_CHECKING:  # FlexAttention imports torch's compiler, for seconds; only CUDA masks need it
    from torch.nn.attention.flex_attention import BlockMask


def flex_mask(layout: Layout, q: Coordinates, k: Coordinates) -> BlockMask:
    """The layout as a FlexAttention block mask (empty tiles are skipped on CUDA)."""
    from torch.nn.attention.flex_attention import create_block_mask

    q = Coordinates(*(field.view(-1, field.shape[-1]) for field in q))
    k = Coordinates(*(field.view(-1, field.shape[-1]) for field in k))

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row_q = Coordinates(*(field[b % field.shape[0], i] for field in q))
        row_k = Coordinates(*(field[b % field.shape[0], j] for field in k))
        allowed: Tensor = layout.allows(row_q, row_k)
        return allowed

    rows, (n_q, n_k) = q.position.shape[0], (q.position.shape[1], k.position.shape[1])
    return create_block_mask(mask_mod, rows if rows > 1 else None, None, n_q, n_k, device=str(q.position.device))


def render(layout: Layout, q: Coordinates, k: Coordinates | None = None) -> AttentionMask:
    """What `attend` takes: a block mask on CUDA, else a dense one."""
    k = q if k is None else k
    return flex_mask(layout, q, k) if q.position.is_cuda else layout.dense(q, k)


def doubled(rows: Coordinates) -> Coordinates:
    """The same tokens twice, [x_t ; x_0], along the last axis (BD3-LM, arXiv 2503.09573)."""
    copies = [torch.full_like(rows.copy, NOISED), torch.full_like(rows.copy, CLEAN)]
    return Coordinates(torch.cat([rows.position] * 2, -1), torch.cat([rows.document] * 2, -1), torch.cat(copies, -1))


class CausalMask:
    """Plain causal attention over one document: the kernel's own fast path, no mask tensor."""


@dataclass(frozen=True)
class GroupMask:
    """The drafts layout while training: keys are the text, then the drafts' own, in groups of one length.

    Same predicate, but the many pairs of slots in different groups are never computed.
    text: bool [B, 1, M, T], which of the text each slot sees. length: slots of a group, a divisor of M.
    """

    text: Tensor
    length: int

    @staticmethod
    def of(own: Coordinates, text: Coordinates, length: int) -> GroupMask:
        return GroupMask(Layout("drafts").dense(own, text), length)


@dataclass(frozen=True)
class WindowMasks:
    """One mask for each window, for networks whose layers see differently far."""

    by_window: dict[int, AttentionMask]

    @staticmethod
    def of(layout: Layout, windows: Iterable[int], q: Coordinates, k: Coordinates | None = None) -> WindowMasks:
        return WindowMasks({w: render(replace(layout, window=w), q, k) for w in windows})


SHORT = 384  # keys up to which scores are formed at once in training on a CPU
AttentionMask: TypeAlias = "Tensor | BlockMask | CausalMask | GroupMask | WindowMasks | None"


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


@lru_cache(maxsize=32)
def plain_mask(layout: Layout, length: int, device: torch.device, windows: tuple[int, ...] = ()) -> AttentionMask:
    """Mask of rows that are one document each, built once per shape; one for each of `windows` where given.

    For the block-diffusion layout `length` counts [x_t ; x_0], so it is even.
    """
    if windows:
        return WindowMasks.of(layout, windows, Coordinates.of(torch.arange(length, device=device)))
    if layout.kind == "bidirectional":
        return None
    if layout.kind == "causal":
        return CausalMask()
    if layout.kind == "block_diffusion":
        return render(layout, doubled(Coordinates.of(torch.arange(length // 2, device=device))))
    return render(layout, Coordinates.of(torch.arange(length, device=device)))


def attend(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask: AttentionMask, scale: float | None = None) -> Tensor:
    """Scaled dot-product attention, by 1/sqrt(D) unless told; G may divide H (grouped heads). [B, H, T, D] out."""
    grouped = q_BHTD.shape[1] != k_BGSD.shape[1]
    if isinstance(mask, GroupMask):
        return _attend_groups(q_BHTD, k_BGSD, v_BGSD, mask)
    assert not isinstance(mask, WindowMasks), "a layer takes the mask of its own window"
    if not isinstance(mask, Tensor | CausalMask | None):
        return _compiled_flex()(q_BHTD, k_BGSD, v_BGSD, block_mask=mask, scale=scale, enable_gqa=grouped)
    if torch.is_grad_enabled() and q_BHTD.device.type == "cpu" and k_BGSD.shape[-2] <= SHORT:
        return _attend_short(q_BHTD, k_BGSD, v_BGSD, mask, scale)
    causal = isinstance(mask, CausalMask)
    dense = mask if isinstance(mask, Tensor) else None
    return F.scaled_dot_product_attention(
        q_BHTD, k_BGSD, v_BGSD, attn_mask=dense, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _attend_short(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask: Tensor | CausalMask | None, scale: float | None
) -> Tensor:
    """The same with all scores at once: on a CPU, forward and backward take a third to a half of the time of torch's
    blockwise kernel, whose blocks are larger than short rows."""
    share = q_BHTD.shape[1] // k_BGSD.shape[1]
    if share > 1:
        k_BGSD = k_BGSD.repeat_interleave(share, 1)
        v_BGSD = v_BGSD.repeat_interleave(share, 1)
    scores = (q_BHTD * (scale or q_BHTD.shape[-1] ** -0.5)) @ k_BGSD.transpose(-1, -2)
    if isinstance(mask, CausalMask):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).to(v_BGSD.dtype) @ v_BGSD


def _attend_groups(q: Tensor, k: Tensor, v: Tensor, mask: GroupMask) -> Tensor:
    """Attention of drafts [B, H, M, D] to the text and to their own group; keys [B, G, T + M, D]."""
    batch, heads, slots, width = q.shape
    kv, seen, length = k.shape[1], mask.text.shape[-1], mask.length
    share, count = heads // kv, slots // length
    # heads that share keys become rows of one small product for each group
    apart = (batch, kv, count, share, length)
    q = (q * width**-0.5).view(batch, kv, share, count, length, width).transpose(2, 3)
    rows = q.reshape(batch, kv, count, share * length, width)
    k_own, v_own = (t[:, :, seen:].reshape(batch, kv, count, length, width) for t in (k, v))
    to_text = (rows.flatten(2, 3) @ k[:, :, :seen].transpose(-1, -2)).view(*apart, seen)
    to_text = to_text.masked_fill(~mask.text.view(batch, 1, count, 1, length, seen), -torch.inf)
    to_own = (rows @ k_own.transpose(-1, -2)).view(*apart, length)
    p = torch.cat([to_text, to_own], -1).softmax(-1).to(v.dtype)
    from_text = p[..., :seen].reshape(batch, kv, -1, seen) @ v[:, :, :seen]
    from_own = p[..., seen:].reshape(*rows.shape[:-1], length) @ v_own
    out = (from_text.view(rows.shape) + from_own).view(*apart, width)
    return out.transpose(2, 3).reshape(batch, heads, slots, width)
