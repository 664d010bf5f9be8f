"""Packed weights: what 4 bits hold exactly, how far 8 bits are off, and where every code stands."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.backends.native.packed_file import LINE, PackedFile, mapped, unnamed
from unmask.backends.native.packing import (
    CHUNK,
    LANES,
    STEP,
    WIDEST,
    Product,
    blocks,
    by_row,
    eight_bit,
    exact_blocks,
    four_bit,
    interleaved,
    row_blocks,
    stored_bits,
)
from unmask.checkpoints.rows import GROUP, NATIVE_BITS, Groups, Held, Rows, native_groups
from unmask.checkpoints.safetensors import Stored


def unpacked(groups: Groups) -> np.ndarray:
    """The weights that blocks stand for, read one by one."""
    laid, (rows, columns) = blocks(groups), groups.codes.shape
    out = np.zeros((rows, columns), np.float32)
    bits = 8 if groups.minimum is None else 4
    ends = 2 * LANES * GROUP * bits // 8
    for row in range(rows):
        half, lane = divmod(row % GROUP, LANES)
        for group in range(columns // GROUP):
            block = laid[row // GROUP, group]
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


def quantised(weight: np.ndarray, rough: bool = False) -> Groups:
    return four_bit(weight, rough) or eight_bit(weight)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**31))
def test_sixteen_steps_are_kept_exactly(rows: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (rows, count, GROUP))
    codes[..., :2] = 0, 15  # as a quantiser leaves them: the least and the greatest are on the grid
    scale = rng.uniform(1e-3, 1, (rows, count, 1)).astype(np.float16).astype(np.float32)
    least = rng.normal(size=(rows, count, 1)).astype(np.float16).astype(np.float32)
    weight = (codes * scale + least).reshape(rows, -1).astype(np.float32)
    packed = quantised(weight)
    assert packed.minimum is not None
    assert stored_bits(Held(weight)) == 4
    np.testing.assert_allclose(unpacked(packed), weight, rtol=0, atol=1e-6 * np.abs(weight).max())


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**31), st.sampled_from([1e-4, 1.0, 1e3]))
def test_other_weights_are_within_half_a_step(rows: int, count: int, seed: int, size: float) -> None:
    weight = (np.random.default_rng(seed).normal(size=(rows, count * GROUP)) * size).astype(np.float32)
    assert four_bit(weight) is None
    packed = quantised(weight)
    most = np.abs(weight).reshape(rows, count, GROUP).max(-1, keepdims=True)
    off = np.abs(unpacked(packed) - weight).reshape(rows, count, GROUP)
    assert packed.minimum is None
    assert stored_bits(Held(weight)) == 8
    assert (off <= most / 127 * 0.51 + 1e-7).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**31))
def test_rough_copies_are_within_half_a_step_of_sixteen(rows: int, count: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(rows, count * GROUP)).astype(np.float32)
    packed = quantised(weight, rough=True)
    grouped = weight.reshape(rows, count, GROUP)
    step = (grouped.max(-1, keepdims=True) - grouped.min(-1, keepdims=True)) / 15
    off = np.abs(unpacked(packed) - weight).reshape(rows, count, GROUP)
    assert packed.minimum is not None
    assert (off <= step * 0.53 + 1e-3).all()  # the ends of the scale are rounded to float16


def test_nothing_but_zeros_stays_zero() -> None:
    weight = np.zeros((5, GROUP), np.float32)
    assert (unpacked(quantised(weight)) == 0).all()
    codes, scale, _ = eight_bit(weight)
    assert (codes == 128).all()
    assert (scale == 0).all()


def test_rows_that_are_multiplied_stand_in_turn() -> None:
    gate, up = np.arange(64)[:, None] * np.ones((1, 32)), 100 + np.arange(64)[:, None] * np.ones((1, 32))
    rows = interleaved([gate, up])[:, 0]
    assert rows.tolist() == [*range(32), *range(100, 132), *range(32, 64), *range(132, 164)]


def row_values(packed: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The weights that `row_blocks` stands for."""
    wide = -(-columns // STEP) * STEP
    codes = packed[:, : wide * GROUP].view(np.int8).reshape(len(packed), -1, 2, STEP // 4, LANES, 4)
    scale, sums = packed[:, wide * GROUP :].reshape(len(packed), 2, -1).transpose(1, 0, 2)
    whole = codes.transpose(0, 2, 4, 1, 3, 5).reshape(-1, wide)
    np.testing.assert_array_equal(np.ascontiguousarray(sums).view(np.int32).ravel(), whole.sum(-1, dtype=int))
    assert not whole[:, columns:].any()
    assert not whole[rows:].any()
    return (whole * np.ascontiguousarray(scale).view(np.float32).reshape(-1, 1))[:rows, :columns]


@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (40, 96), (1, 32)])
def test_a_scale_for_each_output_is_within_half_a_step(rows: int, columns: int) -> None:
    weight = np.random.default_rng(2).normal(size=(rows, columns)).astype(np.float32)
    weight[0] = 0
    off = np.abs(row_values(row_blocks(weight), rows, columns) - weight)
    assert (off <= np.abs(weight).max(-1, keepdims=True) / 127 * 0.501).all()


def test_small_networks_of_floats_take_a_scale_for_each_output() -> None:
    weight = np.random.default_rng(2).normal(size=(64, 64)).astype(np.float32)
    assert by_row({"a": Held(weight), "norm": Held(weight[0])})
    on_grid = np.clip(np.rint(weight * 4), -7, 8)
    on_grid[:, ::GROUP], on_grid[:, 1::GROUP] = -7, 8
    assert not by_row({"a": Held(weight), "b": Held(on_grid)})
    assert not by_row({"a": Held(np.zeros((1, WIDEST + 32), np.float32))})
    assert not by_row({"a": Held(weight, "Q8_0")})


def test_widths_are_whole_groups() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        quantised(np.zeros((4, 40), np.float32))


# --- from files ---------------------------------------------------------------------------------------------

BLOCKS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


def random_blocks(kind: str, rows: int, columns: int, seed: int) -> np.ndarray:
    """Stored rows of any bytes but for scales that are sound."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows * columns // values, size), np.uint8)
    scales = {"Q6_K": [208], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q4_1": [0, 2], "Q5_1": [0, 2]}.get(kind, [0])
    for at in scales:
        raw[:, at : at + 2] = rng.normal(size=(len(raw), 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_gguf_are_kept_or_near(kind: str, tmp_path: Path) -> None:
    """Rows of a file give what the package's reference gives; blocks that are groups of ours stand for the same."""
    rows, columns = 40, 512
    raw = random_blocks(kind, rows, columns, 3)
    (tmp_path / "x").write_bytes(b"before" + raw.tobytes())
    part = Rows(Stored(tmp_path / "x", "x", kind, (rows, columns), 6, raw.nbytes))
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(part.values(), expected)
    np.testing.assert_array_equal(part.values(7, 9), expected[7:9])
    bits = stored_bits(part)
    assert bits == NATIVE_BITS.get(kind, 8)
    made = native_groups(kind, raw, columns) if kind in NATIVE_BITS else eight_bit(expected)
    most = np.abs(expected).reshape(rows, -1, GROUP).max(-1).repeat(GROUP, -1)
    off = np.abs(unpacked(made) - expected)
    share = {"Q4_K": 2**-9, "Q5_1": 1 / 250, "Q5_K": 1 / 250, "Q6_K": 1 / 250}.get(kind, 1e-6)
    assert (off <= share * most + 1e-6).all()
    np.testing.assert_array_equal(np.concatenate(list(Product("x", [part], bits, []).packed())), blocks(made))


def test_rows_of_heads_are_moved_back_and_parts_are_joined(tmp_path: Path) -> None:
    """Of a joined tensor, its second half; heads of 4 whose neighbours are rotated."""
    values = np.arange(16 * 32, dtype=np.float32).reshape(16, 32)
    (tmp_path / "x").write_bytes(values.tobytes())
    stored = Stored(tmp_path / "x", "x", "F32", (16, 32), 0, values.nbytes)
    np.testing.assert_array_equal(Rows(stored, first=8, count=8).values(2, 5), values[10:13])
    np.testing.assert_array_equal(Rows(stored, heads=4).values()[:8, 0] // 32, [0, 2, 1, 3, 4, 6, 5, 7])
    np.testing.assert_array_equal(Rows(stored, transposed=True).values(1, 3), values.T[1:3])


@pytest.mark.parametrize(("bits", "one_scale"), [(4, False), (8, False), (8, True), (32, False)])
def test_pieces_are_the_whole(bits: int, one_scale: bool) -> None:
    """A matrix that is packed piece by piece, and one that is joined of two."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(3 * CHUNK // 1024 + 40, 1024)).astype(np.float32)
    whole = exact_blocks(weight) if bits == 32 else blocks(four_bit(weight, True) if bits == 4 else eight_bit(weight))
    if one_scale:
        whole = row_blocks(weight)
    one = Product("x", [Held(weight)], bits, [], by_row=one_scale)
    two = Product("x", [Held(weight[:100]), Held(weight[100:])], bits, [], by_row=one_scale)
    for product in (one, two):
        made = list(product.packed())
        assert len(made) > 1 or product is two
        np.testing.assert_array_equal(np.concatenate(made), whole)
        assert sum(part.nbytes for part in made) == product.size


def test_a_packed_file_is_mapped_as_it_was_written() -> None:
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.ones((3, 5), np.float16), "c": np.arange(4.0)}
    with unnamed() as file:
        packed = PackedFile(file)
        for name, array in arrays.items():
            packed.add(name, iter([array[:1], array[1:]]))
        packed.end()
        found = mapped(file)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        assert found[name].ctypes.data % LINE == 0
        assert not found[name].flags.writeable
