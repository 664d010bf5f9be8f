"""The header of a safetensors file, read and checked without the library and without torch.

A file is eight bytes of header length, a JSON header, and the tensors' bytes one after the other. Everything the
header says is checked against the file's size before it is believed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from unmask.errors import UnmaskError

WIDTHS = {  # bytes of a value
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes, the library's own limit
MOST_DIMENSIONS = 16


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: `start` and `size` in bytes, from the file's start."""

    path: Path
    name: str
    kind: str  # a key of WIDTHS
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of a file by name, in the order of bytes; a missing, cut or hostile file raises UnmaskError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 0 < length <= min(size - 8, LONGEST_HEADER):
                raise _damaged(path, f"is too short for its header: {size} bytes, a header of {length}")
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_repeats)
    except OSError as error:
        reason = f"{error.strerror or error}"
        raise UnmaskError(f"{path} cannot be read ({reason}); copy or download it again") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"has a header that is not JSON: {str(error)!r:.120}") from None
    if not isinstance(header, dict):
        raise _damaged(path, "has a header that is not a mapping")
    out, data = {}, 8 + length
    for name, entry in header.items():
        if name != "__metadata__":
            out[name] = _stored(path, name, entry, data)
    end, ordered = data, sorted(out.values(), key=lambda t: (t.start, t.size))
    for tensor in ordered:
        if tensor.start != end:
            raise _damaged(path, f"has a gap or an overlap before {tensor.name!r:.80}")
        end += tensor.size
    if end != size:
        what = f"{end - size} bytes short" if end > size else f"{size - end} bytes too long"
        raise _damaged(path, f"is {what}; it was cut or not fully downloaded")
    return {tensor.name: tensor for tensor in ordered}


def _stored(path: Path, name: str, entry: Any, data: int) -> Stored:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    kind, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in WIDTHS:
        raise UnmaskError(f"{path}: tensor {name!r:.80} has dtype {kind!r:.40}, which is not read")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise _damaged(path, f"has an impossible shape of {name!r:.80}: {shape!r:.80}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise _damaged(path, f"has impossible data_offsets of {name!r:.80}: {offsets!r:.80}")
    start, end = offsets
    if end - start != math.prod(shape) * WIDTHS[kind]:
        raise _damaged(path, f"gives {name!r:.80} {end - start} bytes, its shape {shape!r:.80} needs others")
    return Stored(path, name, kind, tuple(shape), data + start, end - start)


def _sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name stands twice")
    return out


def _damaged(path: Path, what: str) -> UnmaskError:
    return UnmaskError(f"{path} is not a readable safetensors file: it {what}; copy or download it again")
