"""Regular languages as trees: what a regular expression or a JSON schema is read into.

The alphabet is bytes, since tokens are runs of bytes that may split a character. Trees share parts freely; they are
copied only when an automaton is made of them (`dfa.compile_language`).
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.canvas import Array

Ranges = tuple[tuple[int, int], ...]  # of code points or bytes, both ends included, ascending and apart
LAST = 0x10FFFF


@dataclass(frozen=True, eq=False)
class Chars:
    """One character out of ranges of code points, in UTF-8. Surrogates are never written."""

    ranges: Ranges


@dataclass(frozen=True, eq=False)
class Text:
    """Exactly these bytes."""

    value: bytes


@dataclass(frozen=True, eq=False)
class Seq:
    """All parts one after another; without parts, the empty text."""

    parts: tuple[Language, ...]


@dataclass(frozen=True, eq=False)
class Alt:
    """Any one of the parts; without parts, nothing at all."""

    parts: tuple[Language, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """The part `low` to `high` times (None: any number), with the separator in between."""

    part: Language
    low: int = 0
    high: int | None = None
    separator: Language | None = None


@dataclass(frozen=True, eq=False)
class Members:
    """Parts in this order, each but the required ones left out at will, with the separator between those written;
    `low` to `high` parts in all (None: any number)."""

    parts: tuple[tuple[Language, bool], ...]
    separator: Language
    low: int = 0
    high: int | None = None


@dataclass(frozen=True, eq=False)
class Dfa:
    """A deterministic automaton over bytes, of which every state can still reach an end.

    table: int32 [S, K], the next state; state 0 is dead and state 1 the start. group: uint8 [256], the column of
    each byte. final: bool [S], where the text may end.
    """

    table: Array
    group: Array
    final: Array

    @property
    def is_empty(self) -> bool:
        return len(self.table) < 2

    def holds(self, text: bytes) -> bool:
        """Whether the text is in the language."""
        state = int(not self.is_empty)
        for byte in text:
            state = int(self.table[state, self.group[byte]])
        return bool(self.final[state])


Language = Chars | Text | Seq | Alt | Repeat | Members | Dfa

EMPTY = Seq(())
NOTHING = Alt(())


def text(value: str) -> Text:
    return Text(value.encode())


def optional(part: Language) -> Language:
    return Repeat(part, 0, 1)


def union(ranges: Ranges) -> Ranges:
    """Ranges sorted and merged."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def complement(ranges: Ranges) -> Ranges:
    """The code points outside."""
    out = []
    place = 0
    for low, high in union(ranges):
        if place < low:
            out.append((place, low - 1))
        place = high + 1
    return (*out, (place, LAST)) if place <= LAST else tuple(out)


def overlap(one: Ranges, other: Ranges) -> Ranges:
    """The code points in both."""
    return complement((*complement(one), *complement(other)))
