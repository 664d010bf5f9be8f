"""Weights as `forward.c` reads them: groups of 32 along the input with a scale each, 16 outputs interleaved.

Values that stand on a grid of 16 steps in every group, as Q4_1 stores them, take 4 bits and lose nothing; all
others take 8 as in Q8_0. Shapes: N outputs, K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.canvas import Array

LANES, GROUP = 16, 32


@dataclass(frozen=True)
class Packed:
    """blocks uint8 [tiles of 32 outputs, groups, bytes]: codes of 16 outputs, of the 16 after them, then float16
    scales of both; of 4 bits the minima stand after the scales of each 16."""

    rows: int
    columns: int
    bits: int
    blocks: Array


def _groups(weight_NK: Array) -> Array:
    rows, columns = weight_NK.shape
    if columns % GROUP:
        raise ValueError(f"{columns} inputs are not a multiple of {GROUP}")
    return weight_NK.astype(np.float32).reshape(rows, columns // GROUP, GROUP)


def four_bit(weight_NK: Array, rough: bool = False) -> tuple[Array, Array, Array] | None:
    """Codes [N, K] of 0..15, scales and minima float16 [N, K / 32] that give the weights back to the bit (up to the
    float32 rounding of scale * code + minimum); None where there are none, unless the nearest will do."""
    w = _groups(weight_NK)
    least = w.min(-1)
    scale = ((w.max(-1) - least) / 15).astype(np.float16)
    minimum = least.astype(np.float16)
    step = np.where(scale > 0, scale, 1).astype(np.float32)[..., None]
    codes = np.clip(np.rint((w - minimum.astype(np.float32)[..., None]) / step), 0, 15)
    back = codes * scale.astype(np.float32)[..., None] + minimum.astype(np.float32)[..., None]
    if not rough and (np.abs(back - w) > 1e-6 * np.abs(w).max(initial=0)).any():
        return None
    return codes.astype(np.uint8).reshape(weight_NK.shape), scale, minimum


def eight_bit(weight_NK: Array) -> tuple[Array, Array]:
    """Codes [N, K] of 1..255, 128 standing for 0, and scales float16 [N, K / 32]; half a step off at most."""
    w = _groups(weight_NK)
    most = np.abs(w).max(-1)
    scale = (most / 127).astype(np.float16)
    scale = np.where(scale.astype(np.float32) * 127.4 < most, np.nextafter(scale, np.float16(np.inf)), scale)
    step = np.where(scale > 0, scale, 1).astype(np.float32)[..., None]
    codes = np.clip(np.rint(w / step), -127, 127) + 128
    return codes.astype(np.uint8).reshape(weight_NK.shape), scale


def pack(weight_NK: Array, rough: bool = False) -> Packed:
    """Weights of one product, in 4 bits where that loses nothing or a rough copy will do. Values must be finite and
    below 6e4."""
    rows, columns = weight_NK.shape
    tiles, groups = -(-rows // GROUP), columns // GROUP
    small = four_bit(weight_NK, rough)
    bits = 8 if small is None else 4
    codes, *scales = eight_bit(weight_NK) if small is None else small
    padding = ((0, tiles * GROUP - rows), (0, 0))
    codes = np.pad(codes, padding, constant_values=128 if bits == 8 else 0)
    # [tiles, groups, halves of the tile, fours of inputs, outputs, 4]
    fours = codes.reshape(tiles, 2, LANES, groups, 8, 4).transpose(0, 3, 1, 4, 2, 5)
    if bits == 4:
        fours = fours[:, :, :, :4] | (fours[:, :, :, 4:] << 4)
    laid = [np.pad(s, padding).reshape(tiles, 2, LANES, groups).transpose(0, 3, 1, 2) for s in scales]
    ends = np.ascontiguousarray(np.concatenate(laid, -1)).view(np.uint8)
    blocks = np.concatenate([part.reshape(tiles, groups, -1) for part in (fours, ends)], -1)
    return Packed(rows, columns, bits, blocks)


def paired(gate_NK: Array, up_NK: Array) -> Array:
    """Rows of two projections whose outputs are multiplied, 32 of one and 32 of the other in turn."""
    rows, columns = gate_NK.shape
    both = np.stack([gate_NK.reshape(-1, GROUP, columns), up_NK.reshape(-1, GROUP, columns)], 1)
    return both.reshape(2 * rows, columns)
