"""Keys and values of texts that were read, kept for requests that begin alike.

Text is kept in blocks of some tokens, each once however many texts begin with it: a block is known by the one before it
and its own tokens. The ones that were not of use for longest go first, and of one text the last ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from unmask.canvas import Array


@dataclass(frozen=True)
class Block:
    """One block's number, its keys and values as a backend gave them, and their bytes."""

    number: int
    stored: Any
    size: int


class Prefixes:
    """Blocks of `length` tokens, of `limit` bytes in all; of any threads."""

    def __init__(self, length: int, limit: int = 0) -> None:
        self.length = length
        self.limit = limit
        self.size = 0  # bytes
        self.blocks = OrderedDict[tuple[int, bytes], Block]()  # by the number of the one before and the tokens
        self._made = 0
        self._lock = threading.Lock()

    def find(self, ids: Array) -> list[Any]:
        """What is stored of a text's first blocks, as far as they are there."""
        with self._lock:
            return [self.blocks[key].stored for key in self._walk(ids)]

    def keep(self, ids: Array, read: Callable[[int], tuple[Any, int]]) -> None:
        """Keeps the whole blocks of a text; `read` gives what to store of its n-th, and the bytes."""
        if not self.limit:
            return
        with self._lock:
            known = self._walk(ids)
            last = self.blocks[known[-1]].number if known else 0
            for n in range(len(known), len(ids) // self.length):
                stored, size = read(n)
                if self.size + size > self.limit and not self._make_room(size, set(known)):
                    break
                self._made += 1
                key = (last, self._tokens(ids, n))
                self.blocks[key] = Block(self._made, stored, size)
                self.size += size
                known.append(key)
                last = self._made
            self._touch(known)

    def shrink(self, limit: int) -> None:
        """From now on keeps so many bytes at most."""
        with self._lock:
            self.limit = limit
            while self.size > limit:
                self._drop()

    def _tokens(self, ids: Array, n: int) -> bytes:
        return bytes(ids[n * self.length : (n + 1) * self.length].tobytes())

    def _walk(self, ids: Array) -> list[tuple[int, bytes]]:
        found = list[tuple[int, bytes]]()
        last = 0
        for n in range(len(ids) // self.length):
            key = (last, self._tokens(ids, n))
            block = self.blocks.get(key)
            if block is None:
                break
            found.append(key)
            last = block.number
        self._touch(found)
        return found

    def _touch(self, keys: Sequence[tuple[int, bytes]]) -> None:
        """The first blocks become those of use last: without them the others cannot be found."""
        for key in reversed(keys):
            self.blocks.move_to_end(key)

    def _make_room(self, size: int, held: set[tuple[int, bytes]]) -> bool:
        """Whether so many bytes more fit, once all has gone that may, but for `held`."""
        while self.size + size > self.limit:
            if not self.blocks or next(iter(self.blocks)) in held:
                return False
            self._drop()
        return True

    def _drop(self) -> None:
        _, block = self.blocks.popitem(last=False)
        self.size -= block.size


@runtime_checkable
class Remembering(Protocol):
    """A backend whose cache can be read and written in blocks."""

    @property
    def prefixes(self) -> Prefixes:
        """Texts that the backend's network has read."""

    def read_block(self, row: int, n: int) -> tuple[Any, int]:
        """Keys and values of a request's n-th block of positions, and their bytes."""

    def write_blocks(self, row: int, stored: Sequence[Any]) -> None:
        """Makes them a request's first positions."""
