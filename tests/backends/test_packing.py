"""Packed weights: what 4 bits hold exactly, how far 8 bits are off, and where every code stands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.backends.native.packing import GROUP, LANES, Packed, eight_bit, four_bit, pack, paired


def unpacked(packed: Packed) -> np.ndarray:
    """The weights that a block stands for, read one by one."""
    out = np.zeros((packed.rows, packed.columns), np.float32)
    bits, ends = packed.bits, 2 * LANES * GROUP * packed.bits // 8
    for row in range(packed.rows):
        half, lane = divmod(row % GROUP, LANES)
        for group in range(packed.columns // GROUP):
            block = packed.blocks[row // GROUP, group]
            scales = block[ends:].view(np.float16).astype(np.float32).reshape(2, -1)[half]
            codes = block[half * ends // 2 : (half + 1) * ends // 2]
            for k in range(GROUP):
                four, place = k // 4, lane * 4 + k % 4
                code = (
                    int(codes[four * 64 + place]) if bits == 8 else int(codes[four % 4 * 64 + place]) >> four // 4 * 4
                )
                value = scales[lane] * (code - 128) if bits == 8 else scales[lane] * (code & 15) + scales[LANES + lane]
                out[row, group * GROUP + k] = value
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**31))
def test_sixteen_steps_are_kept_exactly(rows: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (rows, count, GROUP))
    codes[..., :2] = 0, 15  # as a quantiser leaves them: the least and the greatest are on the grid
    scale = rng.uniform(1e-3, 1, (rows, count, 1)).astype(np.float16).astype(np.float32)
    least = rng.normal(size=(rows, count, 1)).astype(np.float16).astype(np.float32)
    weight = (codes * scale + least).reshape(rows, -1).astype(np.float32)
    packed = pack(weight)
    assert packed.bits == 4
    np.testing.assert_allclose(unpacked(packed), weight, rtol=0, atol=1e-6 * np.abs(weight).max())


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**31), st.sampled_from([1e-4, 1.0, 1e3]))
def test_other_weights_are_within_half_a_step(rows: int, count: int, seed: int, size: float) -> None:
    weight = (np.random.default_rng(seed).normal(size=(rows, count * GROUP)) * size).astype(np.float32)
    assert four_bit(weight) is None
    packed = pack(weight)
    most = np.abs(weight).reshape(rows, count, GROUP).max(-1, keepdims=True)
    off = np.abs(unpacked(packed) - weight).reshape(rows, count, GROUP)
    assert packed.bits == 8
    assert (off <= most / 127 * 0.51 + 1e-7).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**31))
def test_rough_copies_are_within_half_a_step_of_sixteen(rows: int, count: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(rows, count * GROUP)).astype(np.float32)
    packed = pack(weight, rough=True)
    grouped = weight.reshape(rows, count, GROUP)
    step = (grouped.max(-1, keepdims=True) - grouped.min(-1, keepdims=True)) / 15
    off = np.abs(unpacked(packed) - weight).reshape(rows, count, GROUP)
    assert packed.bits == 4
    assert (off <= step * 0.53 + 1e-3).all()  # the ends of the scale are rounded to float16


def test_nothing_but_zeros_stays_zero() -> None:
    weight = np.zeros((5, GROUP), np.float32)
    assert (unpacked(pack(weight)) == 0).all()
    codes, scale = eight_bit(weight)
    assert (codes == 128).all()
    assert (scale == 0).all()


def test_rows_that_are_multiplied_stand_in_turn() -> None:
    gate, up = np.arange(64)[:, None] * np.ones((1, 32)), 100 + np.arange(64)[:, None] * np.ones((1, 32))
    rows = paired(gate, up)[:, 0]
    assert rows.tolist() == [*range(32), *range(100, 132), *range(32, 64), *range(132, 164)]


def test_widths_are_whole_groups() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        pack(np.zeros((4, 40), np.float32))
