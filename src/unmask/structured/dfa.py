"""Deterministic automata over bytes: made from trees (Thompson's and subset construction) and intersected (product).

Sizes are checked while they grow (`Effort`), since either construction can blow up.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import numpy as np

from unmask.canvas import Array
from unmask.structured.effort import Effort
from unmask.structured.language import Alt, Chars, Dfa, Language, Members, Ranges, Repeat, Seq, Text

Moves = list[tuple[int, int, int]]  # low byte, high byte, target
FAR = int(np.iinfo(np.int32).max)
_LENGTHS = ((0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
State = TypeVar("State", frozenset[int], tuple[int, int])


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
        if high >= 0x80 and low >> rest != high >> rest and (low & block or high & block != block):
            cut = low | block if low & block else (high & ~block) - 1
            _split(low, cut, out)
            _split(cut + 1, high, out)
            return
    out.append(tuple(zip(chr(low).encode(), chr(high).encode(), strict=True)))


class Nfa:
    """An automaton with choices: `moves` of each state, and `skips`, what follows it without a byte."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.moves: list[Moves] = []
        self.skips: list[list[int]] = []

    def __del__(self) -> None:
        while self.moves:  # a little at a time, so that other threads run meanwhile
            del self.moves[-4096:], self.skips[-4096:]

    def state(self, *before: int) -> int:
        """A new state, which follows those before it without a byte."""
        self.effort.spend()
        self.moves.append([])
        self.skips.append([])
        for source in before:
            self.skips[source].append(len(self.moves) - 1)
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
        end = self.state(*([start] if node.low == 0 else []))
        entry = start
        for number in range(1, 1 + (max(node.low, 1) if node.high is None else node.high)):
            entry = self.state(start if number == 1 or node.separator is None else self.add(node.separator, start))
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
            befores: dict[int, list[int]] = {}
            for count, state in counted.items():
                if count != node.high:
                    before = self.add(node.separator, state) if count else state
                    befores.setdefault(min(count + 1, cap), []).append(before)
            after = {} if required else dict(counted)
            for count, states in befores.items():
                ends = [self.add(part, self.state(*states))]
                after[count] = self.state(*ends, *([after[count]] if count in after else []))
            counted = after
        return self.state(*(state for count, state in counted.items() if count >= node.low))

    def _embed(self, dfa: Dfa, start: int) -> int:
        first = len(self.moves)
        for _ in dfa.table:
            self.state()
        if not dfa.is_empty:
            self.skips[start].append(first + 1)
        cuts = [0, *(np.flatnonzero(np.diff(dfa.group)) + 1).tolist(), 256]
        runs = [(low, end - 1, int(dfa.group[low])) for low, end in pairwise(cuts)]
        for state, row in enumerate(dfa.table.tolist(), first):
            self.moves[state] = [(low, high, first + row[group]) for low, high, group in runs if row[group]]
        return self.state(*(first + dfa.final.nonzero()[0]).tolist())


def compile_language(node: Language, effort: Effort) -> Dfa:
    """The automaton of a language; raises UnmaskError where it would grow too large."""
    nfa = Nfa(effort)
    start = nfa.state()
    end = nfa.add(node, start)
    moves = nfa.moves
    group = _group(moves)
    closures: dict[int, frozenset[int]] = {}

    def closure(state: int) -> frozenset[int]:
        """What is reached without a byte, of the states that matter: those with moves, and the end."""
        if state not in closures:
            seen = {state}
            todo = [state]
            while todo:
                new = set(nfa.skips[todo.pop()]) - seen
                seen |= new
                todo += new
            effort.spend(len(seen) // 16)
            closures[state] = frozenset(s for s in seen if moves[s] or s == end)
        return closures[state]

    def following(sources: frozenset[int]) -> Iterator[tuple[int, int, frozenset[int]]]:
        for low, high, targets in _apart([move for source in sources for move in moves[source]]):
            yield low, high, closure(targets[0]) if len(targets) == 1 else frozenset().union(*map(closure, targets))

    none = frozenset[int]()
    members, table = _explore(none, closure(start), int(group.max()) + 1, following, effort)
    return trim(Dfa(table, group, np.array([end in states for states in members])))


def _explore(
    dead: State, start: State, columns: int, following: Callable[[State], Iterable[tuple[int, int, State]]],
    effort: Effort,
) -> tuple[list[State], Array]:  # fmt: skip
    """All states that are reached from `start`, by number, and their table. following: of a state, first and last
    column and the state there."""
    number = {dead: 0, start: 1}
    states = [dead, start]
    table = array("i")
    for state in states:  # those added meanwhile too
        effort.check_time()
        row = [0] * columns
        for low, high, reached in following(state):
            if reached not in number:
                number[reached] = len(states)
                states.append(reached)
                effort.check_states(len(states))
                effort.spend(1 + len(reached) // 8)
            row[low : high + 1] = [number[reached]] * (high + 1 - low)
        table.fromlist(row)
    return states, np.frombuffer(table, np.int32).reshape(-1, columns)


def _group(moves: list[Moves]) -> Array:
    """Bytes that no move tells apart as one group, uint8 [256]; moves are then over groups."""
    cut = np.zeros(257, bool)
    for row in moves:
        for low, high, _ in row:
            cut[low] = cut[high + 1] = True
    cut[0] = False
    group = cut[:256].cumsum()
    of = group.tolist()
    for row in moves:
        row[:] = [(of[low], of[high], target) for low, high, target in row]
    return group.astype(np.uint8)


def _apart(moves: Moves) -> Iterator[tuple[int, int, list[int]]]:
    """Moves that may overlap, as ranges that do not, each with all its targets."""
    bounds = sorted({edge for low, high, _ in moves for edge in (low, high + 1)})
    at = {edge: i for i, edge in enumerate(bounds)}
    targets: list[list[int]] = [[] for _ in bounds]
    for low, high, target in moves:
        for i in range(at[low], at[high + 1]):
            targets[i].append(target)
    for (low, end), here in zip(pairwise(bounds), targets, strict=False):
        if here:
            yield low, end - 1, here


def distances(source: Array, target: Array, final: Array) -> Array:
    """int64 [S]: fewest edges (source [M], target [M]) from each state to one that is final; FAR where none is."""
    order = target.argsort(kind="stable")
    source = source[order]
    starts = np.searchsorted(target[order], np.arange(len(final) + 1))
    out = np.where(final, 0, FAR).astype(np.int64)
    reached = final.nonzero()[0]
    steps = 0
    while len(reached):
        steps += 1
        before = np.concatenate([source[starts[s] : starts[s + 1]] for s in reached.tolist()])
        reached = np.unique(before[out[before] == FAR])
        out[reached] = steps
    return out


def distinct(values: Array) -> Array:
    """Each value once, in order; unlike np.unique it lets other threads run meanwhile."""
    ordered = np.sort(values, axis=None)
    return ordered[np.diff(ordered, prepend=ordered[:1] - 1) > 0]


def trim(dfa: Dfa) -> Dfa:
    """Without the states from which no text can end."""
    count = len(dfa.table)
    edges = distinct(dfa.table.astype(np.int64) * count + np.arange(count)[:, None])
    alive = distances(edges % count, edges // count, dfa.final) < FAR
    alive[0] = False
    if not alive[1:2].any():
        return Dfa(np.zeros((1, dfa.table.shape[1]), np.int32), dfa.group, np.zeros(1, bool))
    return renumber(dfa, np.where(alive, alive.cumsum(), 0))


def minimal(dfa: Dfa, effort: Effort) -> Dfa:
    """The same language with the fewest states (Moore's refinement, on hashes of rows that are checked in the end)."""
    count = len(dfa.table)
    source, column = dfa.table.nonzero()
    if not len(source):
        return dfa
    target = dfa.table[source, column]
    starts = np.searchsorted(source, np.arange(count + 1))
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 2**62, len(dfa.table[0]), dtype=np.uint64)[column]
    values = rng.integers(1, 2**62, count + 1, dtype=np.uint64)
    classes = dfa.final.astype(np.int64)
    found = 0
    while True:
        effort.check_time()
        summed = np.append(np.uint64(0), (values[classes][target] * weight).cumsum())
        _, classes = np.unique(np.diff(summed[starts]) + values[classes] * np.uint64(3), return_inverse=True)
        classes = classes.reshape(-1)
        if classes.max() == found:
            break
        found = int(classes.max())
    # the dead state and the start keep their numbers
    order = np.unique(classes, return_index=True)[1].argsort().argsort()
    new = order[classes]
    if new[1] != 1:
        return dfa
    merged = renumber(dfa, new)
    alike = (merged.table[new] == new[dfa.table]).all() and (merged.final[new] == dfa.final).all()
    return merged if alike else dfa


def renumber(dfa: Dfa, new: Array) -> Dfa:
    """States under new numbers; those with number 0 are dropped, and those with one number must be alike."""
    one = np.zeros(int(new.max()) + 1, np.int64)
    one[new[::-1]] = np.arange(len(new))[::-1]
    table = new[dfa.table[one]].astype(np.int32)
    final = dfa.final[one]
    table[0] = 0
    final[0] = False
    return Dfa(table, dfa.group, final)


def intersection(nodes: list[Language], effort: Effort) -> Language:
    """Texts that are in all of the languages; nodes has at least one."""
    if len(nodes) == 1:
        return nodes[0]
    out = compile_language(nodes[0], effort)
    for node in nodes[1:]:
        out = _product(out, compile_language(node, effort), effort)
    return out


def _product(one: Dfa, other: Dfa, effort: Effort) -> Dfa:
    both = one.group.astype(np.int64) * 256 + other.group
    pairs, group = np.unique(both, return_inverse=True)
    tables = one.table[:, pairs // 256].tolist(), other.table[:, pairs % 256].tolist()
    if one.is_empty or other.is_empty:
        return trim(Dfa(np.zeros((1, 1), np.int32), np.zeros(256, np.uint8), np.zeros(1, bool)))

    def following(pair: tuple[int, int]) -> Iterator[tuple[int, int, tuple[int, int]]]:
        for column, reached in enumerate(zip(tables[0][pair[0]], tables[1][pair[1]], strict=True)):
            if all(reached):
                yield column, column, reached

    states, table = _explore((0, 0), (1, 1), len(pairs), following, effort)
    final = np.array([one.final[a] & other.final[b] for a, b in states])
    return trim(Dfa(table, group.reshape(-1).astype(np.uint8), final))


def finite(texts: Iterable[bytes], effort: Effort) -> Dfa:
    """The smallest automaton of just these texts."""
    following: list[dict[int, int]] = [{}]  # a tree of prefixes; -1 marks an end
    for value in texts:
        effort.spend(1 + len(value) // 16)
        node = 0
        for byte in value:
            if byte not in following[node]:
                following[node][byte] = len(following)
                following.append({})
            node = following[node][byte]
        following[node][-1] = 0
    number: dict[tuple[tuple[int, int], ...], int] = {}
    merged = [0] * len(following)
    for node in range(len(following) - 1, -1, -1):  # nodes that go on alike are one state, the root the last
        key = tuple(sorted((byte, merged[target] if byte >= 0 else 0) for byte, target in following[node].items()))
        merged[node] = number.setdefault(key, len(number))
    effort.check_states(len(number))
    used = sorted({byte for key in number for byte, _ in key if byte >= 0})
    group = np.zeros(256, np.uint8)
    group[used] = 1 + np.arange(len(used))
    table = np.zeros((len(number) + 1, len(used) + 1), np.int32)
    final = np.zeros(len(number) + 1, bool)
    for key, state in number.items():
        for byte, target in key:
            if byte < 0:
                final[len(number) - state] = True
            else:
                table[len(number) - state, group[byte]] = len(number) - target
    return trim(Dfa(table, group, final))


def without(node: Language, excluded: Language, effort: Effort) -> Dfa:
    """Texts of a language that are not in another."""
    other = compile_language(excluded, effort)
    states = len(other.table)
    table = np.vstack([other.table, np.zeros((2, other.table.shape[1]), np.int32)])
    table[table == 0] = states + 1  # where the other is dead everything may follow
    table[0] = 0
    final = np.append(~other.final, [True, True])
    final[0] = False
    if other.is_empty:
        table[1:] = 1
    return _product(compile_language(node, effort), Dfa(table, other.group, final), effort)


def apart(languages: list[Language], pieces: tuple[Language, ...], effort: Effort) -> list[Language]:
    """Any of the languages cut into pieces that have no text in common; those that are empty are left out."""
    if not pieces:
        return [Alt(tuple(languages))]
    cut = [intersection([Alt(tuple(languages)), piece], effort) for piece in pieces]
    return [part for part in cut if not (isinstance(part, Dfa) and part.is_empty)]
