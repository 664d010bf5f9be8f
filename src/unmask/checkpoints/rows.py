"""Rows of a stored matrix, read when they are asked for: as float32, or as the codes that a GGUF file has of them.

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from unmask.canvas import Array
from unmask.checkpoints.safetensors import Stored, fill, opened
from unmask.errors import UnmaskError

GROUP = 32
NATIVE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 8, "Q8_0": 8}  # types whose blocks are groups of ours


class Groups(NamedTuple):
    """Weights in groups of 32 inputs: codes uint8 [N, K]; scales and minima float16 [N, K / 32].

    With minima a code of 0..15 stands for scale * code + minimum, else one of 0..255 for scale * (code - 128).
    """

    codes: Array
    scale: Array
    minimum: Array | None = None


class Matrix(Protocol):
    """A parameter whose rows can be read, float32."""

    @property
    def kind(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def values(self, first: int = 0, last: int | None = None) -> Array: ...

    def groups(self, first: int, last: int) -> Groups: ...


@dataclass(frozen=True)
class Held:
    """A parameter in memory."""

    array: Array
    kind: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def values(self, first: int = 0, last: int | None = None) -> Array:
        return self.array[first:last]

    def groups(self, first: int, last: int) -> Groups:
        raise ValueError("values in memory have no codes")


@dataclass(frozen=True)
class Rows:
    """A parameter that is `count` rows of a stored tensor, from row `first` on (0: all of them).

    heads: of a GGUF file that stores neighbouring rows of a head as the pairs that are rotated; they are moved back to
    i and i + half. transposed: stored [K, N]. added: what was added to the values when they were stored.
    """

    stored: Stored
    first: int = 0
    count: int = 0
    heads: int = 0
    transposed: bool = False
    added: float = 0.0

    @property
    def kind(self) -> str:
        return self.stored.kind

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.stored.shape[::-1] if self.transposed else self.stored.shape
        return (self.count, *shape[1:]) if self.count else shape

    def values(self, first: int = 0, last: int | None = None) -> Array:
        last = self.shape[0] if last is None else min(last, self.shape[0])
        if self.transposed:
            whole = self._finite(self._bytes(0, 1, self.stored.size)).reshape(self.stored.shape).T
            return np.ascontiguousarray(whole[self.first :][first:last])
        values = self._finite(self._rows(first, last)).reshape(last - first, *self.shape[1:])
        return values - np.float32(self.added) if self.added else values

    def groups(self, first: int, last: int) -> Groups:
        """Of a type in NATIVE_BITS, to the bit; a scale of Q4_K, a product, is rounded to float16."""
        raw = self._rows(first, min(last, self.shape[0]))
        made = native_groups(self.kind, raw, self.shape[1])
        if not all(np.isfinite(part).all() for part in (made.scale, made.minimum) if part is not None):
            raise not_finite(self.stored.path, self.stored.name)
        return made

    def _rows(self, first: int, last: int) -> Array:
        """Stored bytes [rows, bytes of a row]."""
        count = self.stored.shape[0]
        size = self.stored.size // count
        if not self.heads:
            return self._bytes(self.first + first, last - first, size)
        whole = self._bytes(0, count, size).reshape(self.heads, count // self.heads // 2, 2, size)
        return whole.swapaxes(1, 2).reshape(count, size)[first:last]

    def _bytes(self, first: int, count: int, size: int) -> Array:
        out = np.empty((count, size), np.uint8)
        with opened(self.stored.path) as file:
            file.seek(self.stored.start + first * size)
            fill(file, out, self.stored)
        return out

    def _finite(self, raw: Array) -> Array:
        made = self._floats(raw)
        if not np.isfinite(made).all():
            raise not_finite(self.stored.path, self.stored.name)
        return made

    def _floats(self, raw: Array) -> Array:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        if self.kind not in GGMLQuantizationType.__members__ or self.kind == "F64":  # of safetensors
            import torch

            return torch.from_numpy(raw).view(self.stored.dtype).float().numpy()
        with np.errstate(all="ignore"):  # a damaged scale may overflow; NaN is then what was stored
            return dequantize(raw, GGMLQuantizationType[self.kind])


def not_finite(path: Path, name: str) -> UnmaskError:
    """What is said of a tensor with values that no network computes with."""
    return UnmaskError(
        f"{path}: tensor {name!r:.100} holds infinite values or NaN: the file is damaged (fetch it again), or they are "
        "too large for a dtype of 16 bits that was asked for"
    )


def native_groups(kind: str, raw: Array, columns: int) -> Groups:
    """Codes of stored blocks [rows, bytes]."""
    rows = len(raw)
    if kind == "Q4_K":
        from gguf.quants import Q4_K

        blocks = raw.reshape(-1, 144)
        d, least = (blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
        scale, minimum = Q4_K.get_scale_min(blocks[:, 4:16])
        fours = blocks[:, 16:].reshape(-1, 4, 1, 32)
        codes = np.concatenate([fours & 15, fours >> 4], 2)
        scales = ((d * scale).astype(np.float16), (-least * minimum).astype(np.float16))
        return Groups(codes.reshape(rows, columns), *(s.reshape(rows, -1) for s in scales))
    blocks = raw.reshape(rows * columns // GROUP, -1)
    scale = blocks[:, :2].copy().view(np.float16).reshape(rows, -1)
    if kind == "Q8_0":
        return Groups((blocks[:, 2:] ^ 128).reshape(rows, columns), scale)
    fours = blocks[:, -16:]
    codes = np.concatenate([fours & 15, fours >> 4], 1)
    if kind == "Q5_0":
        high = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little")
        return Groups((codes + 16 * high + 112).reshape(rows, columns), scale)
    minimum = -8 * scale if kind == "Q4_0" else blocks[:, 2:4].copy().view(np.float16).reshape(rows, -1)
    return Groups(codes.reshape(rows, columns), scale, minimum)
