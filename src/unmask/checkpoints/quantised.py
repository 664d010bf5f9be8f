"""Safetensors whose matrices are quantised (FP8, compressed-tensors, GPTQ, AWQ, MLX), read as floating-point values.

A matrix X.weight is made of the tensors named X.*, as `quantization_config` (MLX: `quantization`) in config.json says.
Shapes: N outputs, K inputs, G groups of inputs that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.canvas import Array
from unmask.checkpoints.rows import Groups, Rows
from unmask.checkpoints.safetensors import CHUNK, Stored, TensorFiles, Weights, fill, opened, stored_tensors
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # where in a word the codes of eight neighbouring outputs stand
FP8 = ("F8_E4M3", "F8_E5M2")
LEFT_OUT = ("input_scale", "k_scale", "v_scale", "weight_shape", "weight_g_idx", "activation_scale_ub",
            "input_scale_ub")  # fmt: skip


def numbers(stored: Stored, first: int = 0, last: int | None = None) -> Array:
    """Rows of a tensor: float32, or integers as they are."""
    import torch

    shape = stored.shape or (1,)
    last = shape[0] if last is None else min(last, shape[0])
    raw = np.empty((last - first) * (stored.size // max(shape[0], 1)), np.uint8)
    with opened(stored.path) as file:
        file.seek(stored.start + first * (stored.size // max(shape[0], 1)))
        fill(file, raw, stored)
    kind = np.dtype(stored.read_as) if "int" in stored.read_as else None
    flat: Array = raw.view(kind) if kind is not None else torch.from_numpy(raw).view(stored.dtype).float().numpy()
    return flat.reshape(last - first, *shape[1:])


def codes(words: Array, bits: int) -> Array:
    """Unsigned codes of words of 32 bits, the lowest bits first: [.., W] to [.., W * 32 / bits]."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    each: Array = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return each.reshape(*words.shape[:-1], -1)


def spread(scale: Array, columns: int, block: tuple[int, int], first: int = 0, last: int | None = None) -> Array:
    """Scales of rows first to last - 1 of a matrix of so many columns, as far as they differ: [1 or n, 1 or K].

    scale: one, [N], or one for each block of rows and columns [.., ..], the last of which may be cut.
    """
    if scale.size == 1:
        return scale.reshape(1, 1)
    if scale.ndim == 1:
        return scale[first:last, None]
    own: Array = scale[np.arange(first, last or 0) // block[0]]
    return own if own.shape[1] == 1 else np.repeat(own, block[1], 1)[:, :columns]


Parts = dict[str, Stored]
Decode = Callable[[Parts, tuple[int, int], int, int], Array]


def _scaled(block: tuple[int, int]) -> Decode:
    """FP8 or int8 values times scales of the whole, of rows, or of blocks (DeepSeek's weight_scale_inv)."""

    def decode(parts: Parts, shape: tuple[int, int], first: int, last: int) -> Array:
        scale = numbers(parts["weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"])
        values = numbers(parts["weight"], first, last).astype(np.float32)
        own = (1, 1) if len(scale) == shape[0] else block
        return values * spread(scale, shape[1], own, first, last)

    return decode


def _compressed(bits: int) -> Decode:
    """compressed-tensors, pack-quantized: codes with 2^(bits - 1) added, zero points packed along the outputs."""

    def decode(parts: Parts, shape: tuple[int, int], first: int, last: int) -> Array:
        code = codes(numbers(parts["weight_packed"], first, last), bits)[:, : shape[1]].astype(np.float32)
        zero: Any = 2.0 ** (bits - 1)
        scale = numbers(parts["weight_scale"])
        block = (1, shape[1] // scale.shape[1])
        if "weight_zero_point" in parts:
            packed = np.ascontiguousarray(numbers(parts["weight_zero_point"]).T)
            zero = spread(codes(packed, bits).T.astype(np.float32), shape[1], block, first, last)
        return (code - zero) * spread(scale, shape[1], block, first, last)

    return decode


def _mlx(bits: int, group: int) -> Decode:
    """MLX, affine: scale * code + bias of each group."""

    def decode(parts: Parts, shape: tuple[int, int], first: int, last: int) -> Array:
        code = codes(numbers(parts["weight"], first, last), bits).astype(np.float32)
        scale, bias = (np.repeat(numbers(parts[name], first, last), group, 1) for name in ("scales", "biases"))
        return code * scale + bias

    return decode


@lru_cache(maxsize=1)
def _gptq(qweight: Stored, qzeros: Stored, scales: Stored, group: Stored | None, bits: int, added: int) -> Array:
    """GPTQ, [N, K]: codes packed along the inputs, zero points along the outputs and one too low (`added`)."""
    code = codes(np.ascontiguousarray(numbers(qweight).T), bits).astype(np.float32)
    zero = codes(numbers(qzeros), bits).astype(np.float32) + added
    scale = numbers(scales)
    of = numbers(group) if group is not None else np.arange(code.shape[1]) // (code.shape[1] // len(scale))
    if of.min() < 0 or of.max() >= len(scale):
        raise UnmaskError(f"{qweight.path}: g_idx names a group that is not there; download it again")
    return (code - zero[of, : code.shape[0]].T) * scale[of].T


@lru_cache(maxsize=1)
def _awq(qweight: Stored, qzeros: Stored, scales: Stored, bits: int) -> Array:
    """AWQ (gemm), [N, K]: codes and zero points packed along the outputs, eight of them in an order of their own."""

    def plain(stored: Stored) -> Array:
        packed = codes(numbers(stored), bits)
        return packed.reshape(len(packed), -1, 8)[..., AWQ_ORDER].reshape(packed.shape).astype(np.float32)

    code = plain(qweight)
    of = np.arange(len(code)) // (len(code) // scales.shape[0])
    return ((code - plain(qzeros)[of]) * numbers(scales)[of]).T


@dataclass(frozen=True)
class Coded(Stored):
    """A quantised matrix [N, K], as one tensor of values; `size` counts the bytes of its codes."""

    decode: Decode | None = None
    parts: tuple[tuple[str, Stored], ...] = ()

    def values(self, first: int, last: int) -> Array:
        assert self.decode is not None
        rows, columns = self.shape
        return self.decode(dict(self.parts), (rows, columns), first, last)


@dataclass(frozen=True)
class CodedRows(Rows):
    """Rows of a quantised matrix."""

    def values(self, first: int = 0, last: int | None = None) -> Array:
        assert isinstance(self.stored, Coded)
        last = self.shape[0] if last is None else min(last, self.shape[0])
        if self.transposed:
            return self.stored.values(0, self.stored.shape[0]).T[self.first + first : self.first + last]
        return self.stored.values(self.first + first, self.first + last)

    def groups(self, first: int, last: int) -> Groups:
        raise ValueError("these codes are not groups of 32")


class Quantised(Weights):
    """The safetensors files of a folder, whose quantised matrices are given as values."""

    def __init__(self, files: TensorFiles, scheme: Scheme) -> None:
        self.source = files.source
        grouped: dict[str, Parts] = {}
        for name, stored in files.stored.items():
            module, _, leaf = name.rpartition(".")
            grouped.setdefault(module, {})[leaf] = stored
        self.stored = {}
        for module, parts in grouped.items():
            made = scheme.matrix(module, parts)
            if made is not None:
                self.stored[made.name] = made
            used = {*LEFT_OUT, *(name for name, _ in made.parts)} if made is not None else {*LEFT_OUT}
            self.stored |= {stored.name: stored for leaf, stored in parts.items() if leaf not in used}

    def rows(self, name: str) -> Rows:
        stored = self.stored[name]
        return CodedRows(stored) if isinstance(stored, Coded) else Rows(stored)

    def tensors(self, dtype: torch.dtype | None, transposed: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
        import torch

        for name, stored in self.stored.items():
            if not isinstance(stored, Coded):
                yield from stored_tensors([stored], dtype, transposed)
                continue
            out = torch.empty(stored.shape, dtype=dtype or stored.dtype)
            step = max(1, CHUNK // 4 // stored.shape[1])
            for first in range(0, len(out), step):
                last = min(first + step, len(out))
                out[first:last] = torch.from_numpy(np.ascontiguousarray(stored.values(first, last)))
            yield name, out.T.contiguous() if name.endswith(transposed) else out


NEED = {  # by method: the tensors that a matrix is made of, its codes first, and those that it may have besides
    "mlx": (("weight", "scales", "biases"), ()),
    "gptq": (("qweight", "qzeros", "scales"), ("g_idx",)),
    "awq": (("qweight", "qzeros", "scales"), ()),
    "packed": (("weight_packed", "weight_scale"), ("weight_zero_point",)),
    "scaled": (("weight", "weight_scale"), ()),
    "inverse": (("weight", "weight_scale_inv"), ()),  # as "scaled" under another name
}


@dataclass(frozen=True)
class Scheme:
    """What a folder's matrices are quantised by."""

    method: str  # one of NEED
    bits: int
    group: int = 0  # of MLX
    added: int = 0  # of GPTQ: to stored zero points
    block: tuple[int, int] = (1, 1)  # of values of one scale

    @staticmethod
    def of(config: dict[str, Any]) -> Scheme | None:
        """By config.json; None for what is not read."""
        said = config.get("quantization_config")
        mlx = config.get("quantization")
        said = said if isinstance(said, dict) else {}
        method = said.get("quant_method")
        if isinstance(mlx, dict) and mlx and not method:
            return _mlx_scheme(mlx)
        bits = said.get("bits", 4)
        if method == "gptq" and bits in (2, 4, 8):
            return Scheme("gptq", bits, added=int(said.get("checkpoint_format", "gptq") == "gptq"))
        if method == "awq" and bits == 4 and str(said.get("version", "gemm")).lower() == "gemm":
            return Scheme("awq", 4)
        if method in ("fp8", "fbgemm_fp8"):
            block = said.get("weight_block_size")
            if block is None:
                return Scheme("scaled", 8)
            plain = isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)
            return Scheme("inverse", 8, block=(block[0], block[1])) if plain else None
        return _compressed_scheme(said) if method == "compressed-tensors" else None

    def matrix(self, module: str, parts: Parts) -> Coded | None:
        """The matrix of a module's tensors; None where it is not quantised. Raises UnmaskError for impossible ones."""
        names, optional = NEED[self.method]
        if not parts.keys() >= set(names):
            return None
        own = {name: parts[name] for name in (*names, *optional) if name in parts}
        code = own[names[0]]
        shape = self._shape(code.shape) if len(code.shape) == 2 else (0, 0)
        if not (min(shape) > 0 and self._fits(shape, {name: stored.shape for name, stored in own.items()}, code.kind)):
            shapes = {name: list(stored.shape) for name, stored in own.items()}
            raise UnmaskError(f"{code.path}: the parts of {module!r:.80} do not fit each other: {shapes!r:.200}")
        read_as = next((s.read_as for s in own.values() if s.read_as in ("float16", "bfloat16")), "bfloat16")
        kind = "F16" if read_as == "float16" else "BF16"
        where = (code.path, f"{module}.weight", kind, shape, code.start, code.size, read_as)
        return Coded(*where, self._decode(), tuple(own.items()))

    def _shape(self, code: tuple[int, ...]) -> tuple[int, int]:
        """Outputs and inputs of a matrix by the shape of its codes."""
        rows, columns = code
        per = 32 // self.bits
        return {
            "mlx": (rows, columns * per),
            "packed": (rows, columns * per),
            "gptq": (columns, rows * per),
            "awq": (columns * per, rows),
        }.get(self.method, (rows, columns))

    def _fits(self, shape: tuple[int, int], own: dict[str, tuple[int, ...]], kind: str) -> bool:
        rows, columns = shape
        packed = kind in ("I32", "U32")
        if self.method in ("gptq", "awq"):
            groups = own["scales"][0] if own["scales"] else 0
            index = own.get("g_idx", (columns,)) == (columns,)
            zeros = own["qzeros"] == (groups, -(-rows * self.bits // 32))
            return (
                packed and groups > 0 and own["scales"] == (groups, rows) and columns % groups == 0 and zeros and index
            )
        if self.method == "mlx":
            grid = (rows, columns // self.group)
            return packed and columns % self.group == 0 and own["scales"] == grid and own["biases"] == grid
        scale = own["weight_scale_inv" if self.method == "inverse" else "weight_scale"]
        if self.method == "packed":
            fits = len(scale) == 2 and scale[0] == rows and scale[1] > 0 and columns % scale[1] == 0
            wanted = (-(-rows * self.bits // 32), *scale[1:])
            return packed and fits and own.get("weight_zero_point", wanted) == wanted
        blocks = tuple(-(-size // count) for size, count in zip(shape, self.block, strict=True))
        return kind in (*FP8, "I8") and scale in ((), (1,), (1, 1), (rows,), (rows, 1), blocks)

    def _decode(self) -> Decode:
        if self.method == "mlx":
            return _mlx(self.bits, self.group)
        if self.method == "packed":
            return _compressed(self.bits)
        return self._whole if self.method in ("gptq", "awq") else _scaled(self.block)

    def _whole(self, parts: Parts, shape: tuple[int, int], first: int, last: int) -> Array:
        three = (parts["qweight"], parts["qzeros"], parts["scales"])
        if self.method == "awq":
            return _awq(*three, self.bits)[first:last]
        return _gptq(*three, parts.get("g_idx"), self.bits, self.added)[first:last]


def _mlx_scheme(said: dict[str, Any]) -> Scheme | None:
    """Of MLX: one size of groups and of codes for all layers."""
    bits = said.get("bits")
    group = said.get("group_size")
    alike = said.keys() <= {"bits", "group_size", "mode"} and said.get("mode", "affine") == "affine"
    if not alike or bits not in (2, 4, 8) or not isinstance(group, int) or group < 1:
        return None
    return Scheme("mlx", bits, group)


def _compressed_scheme(said: dict[str, Any]) -> Scheme | None:
    """Of compressed-tensors: one format and one kind of weights for all."""
    groups = said.get("config_groups")
    listed = groups.values() if isinstance(groups, dict) else ()
    kinds = [group["weights"] for group in listed if isinstance(group, dict) and isinstance(group.get("weights"), dict)]
    if len({kind.get("num_bits") for kind in kinds}) != 1 or any(kind.get("actorder") == "group" for kind in kinds):
        return None
    bits = kinds[0]["num_bits"]
    if said.get("format") == "pack-quantized" and bits in (4, 8):
        return Scheme("packed", bits)
    plain = said.get("format") in ("float-quantized", "int-quantized", "naive-quantized") and bits == 8
    return Scheme("scaled", 8) if plain and all(kind.get("symmetric", True) for kind in kinds) else None
