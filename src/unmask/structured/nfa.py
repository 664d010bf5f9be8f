"""From a tree to an automaton with choices (Thompson's construction), characters spelled in UTF-8."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from unmask.structured.effort import Effort
from unmask.structured.language import Alt, Chars, Dfa, Language, Members, Ranges, Repeat, Seq, Text

_LENGTHS = ((0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))


@lru_cache(maxsize=256)
def utf8_sequences(ranges: Ranges) -> tuple[Ranges, ...]:
    """Sequences of byte ranges that spell exactly these characters; surrogates are left out."""
    out: list[Ranges] = []
    for low, high in ranges:
        for first, last in _LENGTHS:
            if max(low, first) <= min(high, last):
                _split(max(low, first), min(high, last), out)
    return tuple(out)


def _split(low: int, high: int, out: list[Ranges]) -> None:
    """Cuts a range of characters of one length so that every byte of each piece ranges on its own."""
    for rest in (6, 12, 18):  # bits below
        block = (1 << rest) - 1
        if high >= 0x80 and low >> rest != high >> rest:
            if low & block:
                _split(low, low | block, out)
                _split((low | block) + 1, high, out)
                return
            if high & block != block:
                _split(low, (high & ~block) - 1, out)
                _split(high & ~block, high, out)
                return
    out.append(tuple(zip(chr(low).encode(), chr(high).encode(), strict=True)))


class Nfa:
    """States are numbers; `moves` lists (low byte, high byte, target) and `skips` what follows without a byte."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.moves: list[list[tuple[int, int, int]]] = []
        self.skips: list[list[int]] = []

    def state(self) -> int:
        self.effort.spend()
        self.moves.append([])
        self.skips.append([])
        return len(self.moves) - 1

    def add(self, node: Language, start: int) -> int:
        """Hangs a language on `start`, which gets edges out and none in; returns where it ends."""
        self.effort.spend()
        match node:
            case Text(value):
                for byte in value:
                    end = self.state()
                    self.moves[start].append((byte, byte, end))
                    start = end
                return start
            case Chars(ranges):
                return self._chars(ranges, start)
            case Seq(parts):
                for part in parts:
                    start = self.add(part, start)
                return start
            case Alt(parts):
                end = self.state()
                for part in parts:
                    self.skips[self.add(part, start)].append(end)
                return end
            case Repeat():
                return self._repeat(node, start)
            case Members():
                return self._members(node, start)
            case Dfa():
                return self._embed(node, start)

    def _chars(self, ranges: Ranges, start: int) -> int:
        end = self.state()
        tails: dict[Ranges, int] = {(): end}  # sequences that end alike share their last states
        for sequence in utf8_sequences(ranges):
            for cut in range(len(sequence) - 1, 0, -1):
                tail = sequence[cut:]
                if tail not in tails:
                    tails[tail] = self.state()
                    self.moves[tails[tail]].append((*tail[0], tails[tail[1:]]))
            self.moves[start].append((*sequence[0], tails[sequence[1:]]))
        return end

    def _repeat(self, node: Repeat, start: int) -> int:
        end = self.state()
        if node.low == 0:
            self.skips[start].append(end)
        count = max(node.low, 1) if node.high is None else node.high
        entry = start
        for number in range(1, count + 1):
            before = start if number == 1 or node.separator is None else self.add(node.separator, start)
            entry = self.state()
            self.skips[before].append(entry)
            start = self.add(node.part, entry)
            if number >= node.low:
                self.skips[start].append(end)
        if node.high is None:  # the last copy again, any number of times
            again = start if node.separator is None else self.add(node.separator, start)
            self.skips[again].append(entry)
        return end

    def _members(self, node: Members, start: int) -> int:
        cap = max(node.low, 1) if node.high is None else node.high
        counted = {0: start}  # where each number of parts is written; without an upper bound `cap` is that or more
        for part, required in node.parts:
            entries: dict[int, int] = {}
            for count, state in counted.items():
                target = min(count + 1, cap)
                if count != node.high:
                    before = self.add(node.separator, state) if count else state
                    if target not in entries:
                        entries[target] = self.state()
                    self.skips[before].append(entries[target])
            after = {}
            for target, entry in entries.items():
                after[target] = self.state()
                self.skips[self.add(part, entry)].append(after[target])
            if not required:
                for count, state in counted.items():
                    if count in after:
                        self.skips[state].append(after[count])
                    else:
                        after[count] = state
            counted = after
        end = self.state()
        for count, state in counted.items():
            if count >= node.low:
                self.skips[state].append(end)
        return end

    def _embed(self, dfa: Dfa, start: int) -> int:
        end = self.state()
        if dfa.is_empty:
            return end
        first = len(self.moves)
        for _ in dfa.table:
            self.state()
        self.skips[start].append(first + 1)
        rows = dfa.table[1:, dfa.group]
        changes = np.ones((len(rows), 257), bool)
        changes[:, 1:256] = rows[:, 1:] != rows[:, :-1]
        source, low = changes[:, :256].nonzero()
        high = changes[:, 1:].nonzero()[1]
        target = rows[source, low]
        alive = target > 0
        for move in zip(*(part[alive].tolist() for part in (source, low, high, target)), strict=True):
            self.moves[first + 1 + move[0]].append((move[1], move[2], first + move[3]))
        for state in dfa.final.nonzero()[0].tolist():
            self.skips[first + state].append(end)
        return end
