"""The header of a GGUF file: its values, and where its tensors lie.

Every count and length is checked against the file: the package's own reader trusts them (a huge count hangs it) and
takes seconds over a large vocabulary.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from unmask.checkpoints.safetensors import Stored
from unmask.errors import UnmaskError

STORED = {  # number of a type: name, values and bytes of a block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING = 8  # the types of values that are not scalars
ARRAY = 9
LONGEST_ARRAY = 2**24  # more entries than any list has


def damaged(path: Path, what: str) -> UnmaskError:
    return UnmaskError(f"{path} is damaged: it {what}; copy or download it again")


def plain(value: Any) -> Any:
    """A number as it was before it became a float32: 1e-05 of 9.99999975e-06."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Values:
    """What a file says by key. Those of its architecture are asked for by what stands behind its name."""

    path: Path
    all: dict[str, Any]

    @property
    def architecture(self) -> Any:
        return self.all.get("general.architecture")

    def own(self, key: str, default: Any = None) -> Any:
        """A value of the architecture, whatever it is."""
        return self.all.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number of the architecture, above 0."""
        value = self.own(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.damaged(f"has {self.architecture}.{key} {value!r:.40}, where a whole number is needed")
        return value

    def decimal(self, key: str, default: float | None = None) -> float:
        """A number of the architecture."""
        value = self.own(key, default)
        if not isinstance(value, float) or not math.isfinite(value):
            raise self.damaged(f"has {self.architecture}.{key} {value!r:.40}, where a number is needed")
        return plain(value)

    def strings(self, key: str) -> list[str]:
        """A list of texts; none where the file has none."""
        value = self.all.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.damaged(f"has {key} that is not a list of texts")
        return value

    def damaged(self, what: str) -> UnmaskError:
        return damaged(self.path, what)


class Header:
    """Little-endian values in turn, never more bytes than the file has."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self.path = path
        self.file = file
        self.size = path.stat().st_size
        self.at = 0

    def values(self) -> tuple[Values, int]:
        """All values, and how many tensors there are."""
        magic = self._take(4) if self.size >= 4 else b""
        if magic == b"vers":
            raise UnmaskError(f"{self.path} is only a pointer to a file kept by Git LFS; fetch it with: git lfs pull")
        if magic != b"GGUF":
            raise UnmaskError(f"{self.path} is not a GGUF file; copy or download it again")
        version = self._number("I")
        if version not in (2, 3):
            raise UnmaskError(f"{self.path} is GGUF version {version}; versions 2 and 3 (little-endian) can be read")
        tensor_count: int = self._number("Q")
        value_count = self._number("Q")
        values: dict[str, Any] = {}
        for _ in range(value_count):  # a huge count ends at the end of the file
            key = self._text()
            if key in values:
                raise damaged(self.path, f"has {key!r:.60} twice")
            values[key] = self._value()
        return Values(self.path, values), tensor_count

    def tensors(self, values: Values, count: int) -> Iterator[Stored]:
        """Where the tensors lie, by the file's own names."""
        entries = [(self._text(), self._dimensions(), self._number("I"), self._number("Q")) for _ in range(count)]
        alignment = values.all.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise damaged(self.path, f"has the alignment {alignment!r:.40}")
        start = -(-self.at // alignment) * alignment
        for entry in entries:
            yield _stored(self.path, self.size - start, start, *entry)

    def _take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise damaged(self.path, f"ends at byte {self.size}, inside its header")
        self.at += count
        data = self.file.read(count)
        if len(data) != count:
            raise damaged(self.path, "became shorter while it was read")
        return data

    def _number(self, format: str) -> Any:
        return struct.unpack("<" + format, self._take(struct.calcsize("<" + format)))[0]

    def _text(self) -> str:
        try:
            return self._take(self._number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise damaged(self.path, f"has text at byte {self.at} that is not UTF-8") from None

    def _value(self) -> Any:
        """A scalar, a text, a list of texts or a tuple of scalars."""
        kind = self._number("I")
        if kind == STRING:
            return self._text()
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind != ARRAY:
            raise damaged(self.path, f"has a value of the unknown type {kind}")
        item = self._number("I")
        count = self._number("Q")
        if count > LONGEST_ARRAY or (item != STRING and item not in SCALARS):
            raise damaged(self.path, f"has a list of {count} values of type {item}")
        if item == STRING:
            return [self._text() for _ in range(count)]
        format = f"<{count}{SCALARS[item]}"
        return struct.unpack(format, self._take(struct.calcsize(format)))

    def _dimensions(self) -> tuple[int, ...]:
        count = self._number("I")
        if not 1 <= count <= 4:
            raise damaged(self.path, f"has a tensor of {count} dimensions")
        return tuple(self._number("Q") for _ in range(count))


def _stored(
    path: Path, room: int, start: int, name: str, dimensions: tuple[int, ...], number: int, offset: int
) -> Stored:
    """Where a tensor lies, checked against the bytes that the file has; `room` of them are for tensors."""
    if number not in STORED:
        from gguf import GGMLQuantizationType as Kind

        kind = Kind(number).name if number in list(Kind) else f"the unknown type {number}"
        raise UnmaskError(
            f"{path}: tensor {name!r:.60} is stored as {kind}, which cannot be read; use a "
            f"{', '.join(sorted(known for known, _, _ in STORED.values()))} version of the model"
        )
    kind, values, size = STORED[number]
    if dimensions[0] % values or min(dimensions) < 1:
        raise damaged(path, f"has tensor {name!r:.60} of shape {list(dimensions)}")
    size = math.prod(dimensions) // values * size
    if offset > room or size > room - offset:
        raise damaged(path, f"ends before the {size} bytes of tensor {name!r:.60}")
    if len(dimensions) == 1 and values > 1:
        raise UnmaskError(f"{path}: tensor {name!r:.60} is a single row stored as {kind}, which cannot be read")
    return Stored(path, name, kind, dimensions[::-1], start + offset, size)
