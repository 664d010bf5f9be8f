"""An automaton over tokens, made from one over bytes: exact, however tokens split the text.

Every token maps each state to the state after its bytes. Tokens that map all states alike form one *kind*: a
vocabulary of 49,152 tokens has tens to a few thousand kinds under a grammar, so the whole table fits in memory and
sets of states are pushed through it with a few numpy calls.

Shapes: S states, C kinds, V tokens, M edges (pairs of states that some token joins).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unmask.canvas import Array
from unmask.structured.effort import Effort, too_large
from unmask.structured.language import Dfa
from unmask.structured.vocabulary import Vocabulary

DEAD = 0
START = 1
MOST_EDGE_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """after: int32 [S, C], the state that a kind of token leads to from a state. kind: int32 [V], kind 0 leads
    nowhere. final: bool [S], where the text may end. ended: the state after an end of text, its number S - 1."""

    after: Array
    kind: Array
    final: Array

    @property
    def ended(self) -> int:
        return len(self.after) - 1

    @cached_property
    def edges(self) -> tuple[Array, Array]:
        """(source, target) [M] of every pair of states that a token joins, by source; both alive."""
        count = len(self.after)
        sources = []
        targets = []
        for first in range(0, count, 256):
            rows = self.after[first : first + 256]
            joined = np.zeros((len(rows), count), bool)
            joined[np.arange(len(rows))[:, None], rows] = True
            joined[:, DEAD] = False
            source, target = joined.nonzero()
            sources.append(source + first)
            targets.append(target)
        return np.concatenate(sources), np.concatenate(targets)

    @cached_property
    def edge_kinds(self) -> Array | None:
        """Bits [M, C / 8] of the kinds of tokens that join each edge; None where they would not fit in memory."""
        source, target = self.edges
        kinds = self.after.shape[1]
        if len(source) * -(-kinds // 8) > MOST_EDGE_BYTES:
            return None
        bits = np.zeros((len(source), -(-kinds // 8)), np.uint8)
        for first in range(0, len(source), 4096):
            part = slice(first, first + 4096)
            bits[part] = np.packbits(self.after[source[part]] == target[part, None], axis=1)
        return bits

    @cached_property
    def distance(self) -> Array:
        """int64 [S]: fewest tokens from each state to where the text may end; a large number where it never may."""
        source, target = self.edges
        order = target.argsort(kind="stable")
        source = source[order]
        starts = np.searchsorted(target[order], np.arange(len(self.after) + 1))
        far = np.iinfo(np.int32).max
        out = np.where(self.final, 0, far).astype(np.int64)
        reached = self.final.nonzero()[0]
        steps = 0
        while len(reached):
            steps += 1
            before = np.concatenate([source[starts[s] : starts[s + 1]] for s in reached.tolist()])
            reached = np.unique(before[out[before] == far])
            out[reached] = steps
        return out


def over_tokens(dfa: Dfa, vocabulary: Vocabulary, effort: Effort) -> TokenAutomaton:
    """The automaton of the texts of a language, in tokens. States that tokens cannot bring to an end are dead."""
    maps, of_token = _maps(dfa, vocabulary, effort)
    used, kind = np.unique(of_token, return_inverse=True)
    states = len(dfa.table)
    after = np.zeros((states + 1, len(used) + 2), np.int32)
    after[:states, : len(used)] = maps[used].T
    # ends and fillers are the last two kinds
    kind = kind.reshape(-1).astype(np.int32)
    kind[list(vocabulary.fillers)] = len(used) + 1
    kind[list(vocabulary.ends)] = len(used)
    final = np.append(dfa.final, True)
    after[final, len(used)] = states
    after[states, len(used) + 1] = states
    if not vocabulary.ends:
        final[states] = False
        after[:, len(used)] = after[:, len(used) + 1] = DEAD
    automaton = TokenAutomaton(after, kind, final)
    lost = automaton.distance > len(after)
    if not lost[1:].any():
        return automaton
    return TokenAutomaton(np.where(lost[after], DEAD, after).astype(np.int32), kind, final)


def _maps(dfa: Dfa, vocabulary: Vocabulary, effort: Effort) -> tuple[Array, Array]:
    """Distinct maps of states to states [D, S] and the one of each token [V]; map 0 leads nowhere.

    Walks the tree of prefixes level by level: a node's map is its parent's, one byte on. Nodes with a parent's map
    and a group of bytes in common share the work.
    """
    states, groups = dfa.table.shape
    columns = np.ascontiguousarray(dfa.table.T)
    maps = np.zeros((256, states), np.int32)
    maps[1] = np.arange(states)
    number = {maps[0].tobytes(): 0, maps[1].tobytes(): 1}
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
                row = columns[key % groups][maps[key // groups]]
                found = number.setdefault(row.tobytes(), len(number))
                if found == len(maps):
                    maps = np.concatenate([maps, np.zeros_like(maps)])
                if (len(number) + 256) * (states + 1) > effort.entries:
                    raise too_large(f"its table of tokens has more than {effort.entries} entries")
                if len(known) % 256 == 0:
                    effort.check_time()
                maps[found] = row
                known[key] = found
            here[i] = known[key]
        above = here[inverse.reshape(-1)]
        of_token[level.token] = above[level.node]
    return maps[: len(number)], of_token
