"""Named arrays in one file, written one after another and mapped: processes that read the same file share its memory.

Each array begins at a cache line; an index in JSON and the index's length in 8 bytes stand at the end.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from unmask.canvas import Array

LINE = 64


class PackedFile:
    """A file that is being written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.index: dict[str, tuple[str, list[int], int]] = {}

    def add(self, name: str, parts: Iterable[Array]) -> None:
        """An array that comes in parts along its first axis."""
        self.file.write(bytes(-self.file.tell() % LINE))
        start = self.file.tell()
        rows = 0
        for part in parts:
            rows += len(part)
            self.index[name] = (part.dtype.str, [rows, *part.shape[1:]], start)
            self.file.write(np.ascontiguousarray(part).data)

    def end(self) -> None:
        text = json.dumps(self.index).encode()
        self.file.write(text + len(text).to_bytes(8, "little"))
        self.file.flush()


def mapped(file: BinaryIO) -> dict[str, Array]:
    """The arrays of a file; they stay when it is closed, and when it is removed."""
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(data[-8:], "little")
    out = {}
    for name, (dtype, shape, start) in json.loads(data[-8 - size : -8]).items():
        out[name] = np.frombuffer(data, dtype, int(np.prod(shape)), start).reshape(shape)
    return out


def unnamed() -> BinaryIO:
    """A file in memory, for weights that cannot be kept."""
    return os.fdopen(os.memfd_create("unmask"), "w+b")
