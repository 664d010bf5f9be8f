"""Deterministic automata over bytes: made from trees (subset construction) and intersected (product).

Sizes are checked while they grow (`Effort`), since either construction can blow up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from unmask.canvas import Array
from unmask.structured.effort import Effort
from unmask.structured.language import Alt, Dfa, Language
from unmask.structured.nfa import Nfa

Moves = list[tuple[int, int, int]]


def compile_language(node: Language, effort: Effort) -> Dfa:
    """The automaton of a language; raises UnmaskError where it would grow too large."""
    nfa = Nfa(effort)
    start = nfa.state()
    end = nfa.add(node, start)
    group, moves = _grouped(nfa.moves)
    closures: dict[int, frozenset[int]] = {}

    def closure(state: int) -> frozenset[int]:
        """What is reached without a byte, of the states that matter: those with moves, and the end."""
        if state not in closures:
            seen = {state}
            todo = [state]
            while todo:
                for target in nfa.skips[todo.pop()]:
                    if target not in seen:
                        seen.add(target)
                        todo.append(target)
            effort.spend(len(seen) // 16)
            closures[state] = frozenset(s for s in seen if moves[s] or s == end)
        return closures[state]

    members = [frozenset[int](), closure(start)]  # of each state; 0 is dead
    number = {members[0]: 0, members[1]: 1}
    edges: list[Moves] = [[]]
    for sources in _growing(members):
        effort.check_time()
        row: Moves = []
        for low, high, targets in _apart([move for source in sources for move in moves[source]]):
            reached = closure(targets[0]) if len(targets) == 1 else frozenset().union(*map(closure, targets))
            target = number.get(reached)
            if target is None:
                target = number[reached] = len(members)
                members.append(reached)
                effort.check_states(target)
                effort.spend(1 + len(reached) // 8)
            row.append((low, high, target))
        edges.append(row)
    table = np.zeros((len(members), int(group.max()) + 1), np.int32)
    for source, row in enumerate(edges):
        for low, high, target in row:
            table[source, low : high + 1] = target
    return trim(Dfa(table, group, np.array([end in states for states in members])))


def _growing(members: list[frozenset[int]]) -> Iterator[frozenset[int]]:
    """All but the first, those added meanwhile too."""
    place = 1
    while place < len(members):
        yield members[place]
        place += 1


def _grouped(moves: list[Moves]) -> tuple[Array, list[Moves]]:
    """Bytes that no move tells apart as one group: uint8 [256], and the moves over groups."""
    cut = np.zeros(257, bool)
    for row in moves:
        for low, high, _ in row:
            cut[low] = cut[high + 1] = True
    cut[0] = False
    group = cut[:256].cumsum()
    of = group.tolist()
    return group.astype(np.uint8), [[(of[low], of[high], target) for low, high, target in row] for row in moves]


def _apart(moves: Moves) -> Iterator[tuple[int, int, list[int]]]:
    """Moves that may overlap, as ranges that do not, each with all its targets."""
    if len(moves) == 1:
        low, high, target = moves[0]
        yield low, high, [target]
        return
    bounds = sorted({edge for low, high, _ in moves for edge in (low, high + 1)})
    at = {edge: i for i, edge in enumerate(bounds)}
    targets: list[list[int]] = [[] for _ in bounds]
    for low, high, target in moves:
        for i in range(at[low], at[high + 1]):
            targets[i].append(target)
    for i, here in enumerate(targets):
        if here:
            yield bounds[i], bounds[i + 1] - 1, here


def trim(dfa: Dfa) -> Dfa:
    """Without the states from which no text can end."""
    count = len(dfa.table)
    before: list[list[int]] = [[] for _ in range(count)]
    edges = np.unique(dfa.table.astype(np.int64) * count + np.arange(count)[:, None])
    for target, source in zip((edges // count).tolist(), (edges % count).tolist(), strict=True):
        before[target].append(source)
    alive = dfa.final.copy()
    todo = alive.nonzero()[0].tolist()
    while todo:
        for source in before[todo.pop()]:
            if not alive[source]:
                alive[source] = True
                todo.append(source)
    alive[0] = False
    if count < 2 or not alive[1]:
        return Dfa(np.zeros((1, dfa.table.shape[1]), np.int32), dfa.group, np.zeros(1, bool))
    return renumber(dfa, np.where(alive, alive.cumsum(), 0))


def minimal(dfa: Dfa, effort: Effort) -> Dfa:
    """The same language with the fewest states (Moore's refinement, on hashes of rows that are checked in the end)."""
    count = len(dfa.table)
    source, column = dfa.table.nonzero()
    if not len(source):
        return dfa
    target = dfa.table[source, column]
    starts = np.searchsorted(source, np.arange(count))
    ends = np.append(starts[1:], len(source))
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 2**62, len(dfa.table[0]), dtype=np.uint64)[column]
    values = rng.integers(1, 2**62, count + 1, dtype=np.uint64)
    classes = dfa.final.astype(np.int64)
    found = 0
    while True:
        effort.check_time()
        summed = np.zeros(len(source) + 1, np.uint64)
        summed[1:] = (values[classes][target] * weight).cumsum()
        _, classes = np.unique(summed[ends] - summed[starts] + values[classes] * np.uint64(3), return_inverse=True)
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
    count = int(new.max()) + 1
    one = np.zeros(count, np.int64)
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
    number = {(0, 0): 0}
    states = [(0, 0)]
    rows = []
    if not one.is_empty and not other.is_empty:
        number[1, 1] = 1
        states.append((1, 1))
    place = 0
    while place < len(states):
        a, b = states[place]
        row = []
        effort.check_time()
        for pair in zip(tables[0][a], tables[1][b], strict=True):
            pair = pair if all(pair) else (0, 0)
            if pair not in number:
                number[pair] = len(states)
                states.append(pair)
                effort.check_states(len(states))
            row.append(number[pair])
        rows.append(row)
        place += 1
    index = np.array(states)
    final = one.final[index[:, 0]] & other.final[index[:, 1]]
    return trim(Dfa(np.array(rows, np.int32), group.reshape(-1).astype(np.uint8), final))


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
