"""An automaton over tokens, made from one over bytes: exact, however tokens split the text.

Every token maps each state to the state after its bytes. Tokens that map all states alike form one *kind*: a
vocabulary of 49,152 tokens has tens to a few thousand kinds under a grammar. Of the table of states and kinds only
what leads anywhere is kept, a few hundredths of it, and sets of states are pushed through it with a few numpy calls.

Shapes: S states, C kinds, V tokens, E steps (state, kind and the state after it), M edges (pairs of states that some
token joins).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unmask.canvas import Array
from unmask.structured.dfa import distances, distinct
from unmask.structured.effort import Effort, too_large
from unmask.structured.language import Dfa
from unmask.structured.vocabulary import Vocabulary

DEAD = 0
START = 1
MOST_EDGE_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """source, kind, target: int32 [E], every step, by state and then by kind. kind_of: int32 [V], kind 0 leads
    nowhere. final: bool [S], where the text may end; the last state is the one after an end of text."""

    source: Array
    kind: Array
    target: Array
    kind_of: Array
    kinds: int
    final: Array

    @property
    def states(self) -> int:
        return len(self.final)

    @cached_property
    def rows(self) -> list[int]:
        """Where the steps from each state begin, and where the last ones end."""
        starts: list[int] = np.searchsorted(self.source, np.arange(self.states + 1)).tolist()
        return starts

    @cached_property
    def by_kind(self) -> tuple[list[int], Array, Array]:
        """Where the steps of each kind begin, and their sources and targets."""
        order = self.kind.argsort(kind="stable")
        starts: list[int] = np.searchsorted(self.kind[order], np.arange(self.kinds + 1)).tolist()
        return starts, self.source[order], self.target[order]

    def following(self, state: int) -> tuple[Array, Array]:
        """Kinds of tokens that may come at a state, and the states after them."""
        here = slice(self.rows[state], self.rows[state + 1])
        return self.kind[here], self.target[here]

    def step(self, state: int, token: int) -> int:
        """The state after a token; 0 is dead."""
        kinds, targets = self.following(state)
        kind = self.kind_of[token]
        place = int(kinds.searchsorted(kind))
        return int(targets[place]) if place < len(kinds) and kinds[place] == kind else DEAD

    def of_kind(self, kind: int) -> tuple[Array, Array]:
        """Every state that a kind of tokens may come at, and the states after them."""
        starts, sources, targets = self.by_kind
        here = slice(starts[kind], starts[kind + 1])
        return sources[here], targets[here]

    @cached_property
    def edges(self) -> tuple[Array, Array]:
        """(source, target) [M] of every pair of states that a token joins, by source; both alive."""
        pairs = distinct(self._pairs)
        return pairs // self.states, pairs % self.states

    @property
    def _pairs(self) -> Array:
        return np.asarray(self.source.astype(np.int64) * self.states + self.target)

    @cached_property
    def edge_kinds(self) -> Array | None:
        """Bits [M, C / 8] of the kinds of tokens that join each edge; None where they would not fit in memory, or where
        the steps are so few that going through them takes less."""
        pairs, edge = np.unique(self._pairs, return_inverse=True)
        width = -(-self.kinds // 8)
        if not 6 * len(self.kind) > len(pairs) * width <= MOST_EDGE_BYTES:
            return None
        bits = np.zeros(len(pairs) * width, np.uint8)
        place = edge.reshape(-1) * width + self.kind // 8
        np.bitwise_or.at(bits, place, (128 >> (self.kind % 8)).astype(np.uint8))
        return bits.reshape(-1, width)

    @cached_property
    def distance(self) -> Array:
        """int64 [S]: fewest tokens from each state to where the text may end; a large number where it never may."""
        return distances(*self.edges, self.final)


def over_tokens(dfa: Dfa, vocabulary: Vocabulary, effort: Effort) -> TokenAutomaton:
    """The automaton of the texts of a language, in tokens. States that tokens cannot bring to an end are dead."""
    maps, of_token = _maps(dfa, vocabulary, effort)
    used = np.union1d([0], of_token)
    ended = len(dfa.table)
    end_kind = len(used)
    filler_kind = end_kind + 1
    kind_of = np.searchsorted(used, of_token).astype(np.int32)
    kind_of[list(vocabulary.fillers)] = filler_kind
    kind_of[list(vocabulary.ends)] = end_kind
    final = np.append(dfa.final, bool(vocabulary.ends))
    sources = [maps[number][0] for number in used.tolist()]
    targets = [maps[number][1] for number in used.tolist()]
    kinds = [np.full(len(source), kind, np.int32) for kind, source in enumerate(sources)]
    if vocabulary.ends:
        sources += [final.nonzero()[0], np.array([ended])]
        targets += [np.full(final.sum(), ended), np.array([ended])]
        kinds += [np.full(final.sum(), end_kind), np.array([filler_kind])]
    source = np.concatenate(sources).astype(np.int32)
    kind = np.concatenate(kinds).astype(np.int32)
    order = np.lexsort((kind, source))
    target = np.concatenate(targets).astype(np.int32)[order]
    automaton = TokenAutomaton(source[order], kind[order], target, kind_of, filler_kind + 1, final)
    lost = automaton.distance > automaton.states
    if not lost[1:].any():
        return automaton
    alive = ~lost[target]
    return TokenAutomaton(source[order][alive], kind[order][alive], target[alive], kind_of, filler_kind + 1, final)


def _maps(dfa: Dfa, vocabulary: Vocabulary, effort: Effort) -> tuple[list[tuple[Array, Array]], Array]:
    """Distinct maps of states to states, as (states, states after them), and the one of each token [V]; map 0 leads
    nowhere.

    Walks the tree of prefixes level by level: a node's map is its parent's, one byte on. Nodes with a parent's map
    and a group of bytes in common share the work.
    """
    states, groups = dfa.table.shape
    columns = np.ascontiguousarray(dfa.table.T)
    nowhere = np.zeros(0, np.int32)
    everywhere = np.arange(1, states, dtype=np.int32)
    maps = [(nowhere, nowhere), (everywhere, everywhere)]
    number = {source.tobytes() + target.tobytes(): i for i, (source, target) in enumerate(maps)}
    entries = 0
    known: dict[int, int] = {}  # map and group of bytes, to the map after them
    of_token = np.zeros(len(vocabulary), np.int64)
    above = np.array([1])
    for level in vocabulary.levels:
        pair = above[level.parent] * groups + dfa.group[level.byte]
        pairs, inverse = np.unique(pair, return_inverse=True)
        here = np.zeros(len(pairs), np.int64)
        for i, key in enumerate(pairs.tolist()):
            if key < groups:  # nowhere, and so are all below
                continue
            if key not in known:
                source, before = maps[key // groups]
                target = columns[key % groups][before]
                alive = target > 0
                source = source[alive]
                target = target[alive]
                found = number.setdefault(source.tobytes() + target.tobytes(), len(maps))
                if found == len(maps):
                    maps.append((source, target))
                    entries += len(source)
                if entries > effort.entries:
                    raise too_large(f"its table of tokens has more than {effort.entries} entries")
                if len(known) % 256 == 0:
                    effort.check_time()
                known[key] = found
            here[i] = known[key]
        above = here[inverse.reshape(-1)]
        of_token[level.token] = above[level.node]
    return maps, of_token
