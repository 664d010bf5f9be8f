"""Structured output: which tokens may stand where, so that a regular expression or a JSON schema holds in the end.

The rule is turned into a deterministic automaton over tokens (`automata`, `token_automaton`), so the two questions of
decoding have exact answers, in any order of commits and within the length of the canvas:

- from left to right: a state is one number; `allowed(state, left)` are the tokens after which a text can still be
  completed in the positions left. Rolling back is going on from an older number.
- on a canvas with masks anywhere: the states that each position can be in are found from the left, those that can be
  brought to an end from the right. `allowed_at` are the tokens that some completion has at a mask, given all that is
  committed; `accept` says which of several proposals go together, the surest first. A position always has an allowed
  token, so a step can always commit something, and a full canvas is always valid.

A text is complete at an end-of-text token, after which only such tokens and padding stand, or where the canvas ends.
Without end-of-text tokens (gaps to fill) it takes all positions exactly. The canvas here is the generated part alone:
no prompt, no given text around a gap; tokens given inside it are simply not open.

What of a schema is honoured says `automata.json_schema`, of a regular expression `automata.regex`. Compilation is
bounded in size and time (`Effort`). Shapes: n positions, m of them open, V tokens, S states, C kinds of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unmask.canvas import Array
from unmask.errors import UnmaskError
from unmask.structured.dfa import compile_language
from unmask.structured.effort import Effort, TooLarge
from unmask.structured.json_schema import SIZES, Sizes, read_schema
from unmask.structured.language import Language
from unmask.structured.regex import read_regex
from unmask.structured.token_automaton import DEAD, START, over_tokens
from unmask.structured.vocabulary import Vocabulary

_REMEMBERED = 1024  # answers that are kept at the least
_REMEMBERED_BYTES = 2**25  # and as many more as fit


class Grammar:
    """A rule that the whole generated text has to match, for one vocabulary. Shared by requests: it holds no state."""

    start = START

    def __init__(self, language: Language, vocabulary: Vocabulary, what: str, effort: Effort) -> None:
        """Compiles a language; `what` names the rule in messages. Raises UnmaskError if it is too large or empty."""
        dfa = compile_language(language, effort)
        if dfa.is_empty:
            raise UnmaskError(f"no text fits {what}: its constraints exclude each other or have no end")
        automaton = over_tokens(dfa, vocabulary, effort)
        self.what = what
        self.after = automaton.after
        self.kind = automaton.kind
        self.final = automaton.final
        self._edges = automaton.edges
        self._automaton = automaton
        self._distance = automaton.distance
        self._ended = automaton.ended
        self._most = max(_REMEMBERED, _REMEMBERED_BYTES // (2 * len(automaton.after)))
        self._has_end = bool(vocabulary.ends)
        # of each kind of tokens: how many there are, and the first
        self._members = np.bincount(self.kind, minlength=self.after.shape[1])
        self._first = np.full(self.after.shape[1], -1)
        self._first[self.kind[::-1]] = np.arange(len(self.kind))[::-1]
        if self.shortest > len(self.after):
            raise UnmaskError(f"no text that fits {what} can be spelled with the tokens of this model")
        self._memory: dict[tuple[Any, ...], Array] = {}
        self._exactly = [self.final]  # without an end of text: states that end after just so many tokens

    @staticmethod
    def of_regex(pattern: str, vocabulary: Vocabulary, effort: Effort | None = None) -> Grammar:
        """Texts that match the whole of a regular expression."""
        return Grammar(read_regex(pattern), vocabulary, "the regular expression", effort or Effort())

    @staticmethod
    def of_schema(schema: Any, vocabulary: Vocabulary, effort: Effort | None = None) -> Grammar:
        """JSON texts that are valid under a schema: a dict, true, or its text."""
        read = partial(read_schema, schema)
        return Grammar.of_sizes(read, vocabulary, "the JSON schema", effort or Effort())

    @staticmethod
    def of_sizes(
        read: Callable[[Effort, Sizes], Language], vocabulary: Vocabulary, what: str, effort: Effort
    ) -> Grammar:
        """A language that is read in the widest of several sizes that can be compiled."""
        for sizes in SIZES:  # rather shorter strings than a refusal
            try:
                return Grammar(read(effort, sizes), vocabulary, what, effort)
            except TooLarge:
                if sizes is SIZES[-1]:
                    raise
                effort = replace(effort, made=0)  # the time goes on
        raise AssertionError

    @property
    def size(self) -> int:
        """Bytes of its tables."""
        tables = (self.after, self.kind, self._distance, *self._edges)
        return sum(table.nbytes for table in tables)

    @property
    def shortest(self) -> int:
        """Fewest tokens of a text that fits; an end of text is not counted."""
        return int(self._distance[START])

    def check(self, length: int) -> None:
        """Raises UnmaskError if no text that fits can be written within `length` tokens (without an end: in just so
        many)."""
        if self.shortest > length:
            raise UnmaskError(
                f"{length} new tokens are too few: the shortest text that fits {self.what} takes {self.shortest}"
            )
        if not self._completable(length)[START]:
            raise UnmaskError(f"no text that fits {self.what} takes exactly {length} tokens; try another length")

    def step(self, state: int, token: int) -> int:
        """The state after a token; 0 is dead."""
        return int(self.after[state, self.kind[token]])

    def read(self, tokens: Sequence[int], state: int = START) -> int:
        """The state after tokens."""
        for kind in self.kind[list(tokens)].tolist():
            state = int(self.after[state, kind])
        return state

    def may_end(self, state: int) -> bool:
        """Whether the text is complete here."""
        return bool(self.final[state])

    def must_end(self, state: int) -> bool:
        """Whether the text is complete here and nothing can follow."""
        following = self.after[state]
        return bool(self.final[state]) and not ((following != DEAD) & (following != self._ended)).any()

    def allowed(self, state: int, left: int) -> Array:
        """Tokens that may come next with `left` positions left, this one included, bool [V]."""
        return self._completable(left - 1)[self.after[state]][self.kind]

    def forced(self, state: int, left: int) -> list[int]:
        """The tokens that must come next, as long as there is just one that may, up to an end of text.

        Args:
            left: Positions that are left, the next one included.
        """
        out = list[int]()
        while left > len(out) and not self.final[state]:
            kinds = self._completable(left - len(out) - 1)[self.after[state]].nonzero()[0]
            if len(kinds) != 1 or self._members[kinds[0]] != 1:
                break
            out.append(int(self._first[kinds[0]]))
            state = int(self.after[state, kinds[0]])
        return out

    def allowed_at(
        self, ids: Array, is_open: Array, state: int = START, left: int = 0, places: Array | None = None
    ) -> Array:
        """Tokens that some completion has at each open position, bool [m, V].

        ids: int [n], read where is_open [n] is false. state: before the first position. left: further open
        positions after the last. places: int [m], the positions asked about; of one that is not open, tokens that
        could stand there instead. All rows are empty if what is committed has no completion.
        """
        count = len(ids)
        before = self._from_left(ids, is_open, state)
        wanted = [self._completable(left)]
        for i in range(count - 1, -1, -1):
            wanted.append(self._backward(wanted[-1]) if is_open[i] else wanted[-1][self.after[:, self.kind[ids[i]]]])
        wanted.reverse()
        places = is_open.nonzero()[0] if places is None else places
        rows = [
            self._kinds_between(before[i] & wanted[i] if is_open[i] else before[i], wanted[i + 1])
            for i in places.tolist()
        ]
        return np.array(rows, bool).reshape(len(rows), self.after.shape[1])[:, self.kind]

    def feasible(self, ids: Array, is_open: Array, state: int = START, left: int = 0) -> bool:
        """Whether what is committed has a completion; arguments as for `allowed_at`."""
        return bool((self._from_left(ids, is_open, state)[-1] & self._completable(left)).any())

    def accept(
        self, ids: Array, is_open: Array, places: Array, tokens: Array, state: int = START, left: int = 0
    ) -> Array:
        """Which proposals to commit, bool [p]: each that has a completion together with all accepted before it.

        places: int [p], the surest first. tokens: int [p], proposed there. Other arguments as for `allowed_at`. A
        first proposal that `allowed_at` allows is always accepted. Where a place is not open, its token is replaced.
        """
        ids = ids.copy()
        is_open = is_open.copy()
        accepted = np.zeros(len(places), bool)
        todo = [(0, len(places))]
        while todo:  # halves of what does not go together, in order
            first, last = todo.pop()
            if first == last:
                continue
            here = places[first:last]
            tried = ids.copy()
            still = is_open.copy()
            tried[here] = tokens[first:last]
            still[here] = False
            if self.feasible(tried, still, state, left):
                ids = tried
                is_open = still
                accepted[first:last] = True
            elif last - first > 1:
                middle = (first + last) // 2
                todo += [(middle, last), (first, middle)]
        return accepted

    def _from_left(self, ids: Array, is_open: Array, state: int) -> list[Array]:
        """Before each position and after the last, the states that it can be in: bool [S] each."""
        reached = np.zeros(len(self.after), bool)
        reached[state] = state != DEAD
        out = [reached]
        kinds = self.kind[np.where(is_open, 0, ids)].tolist()
        for kind, free in zip(kinds, is_open.tolist(), strict=True):
            if free:
                reached = self._forward(reached)
            else:
                following = self.after[reached, kind]
                reached = np.zeros(len(self.after), bool)
                reached[following] = True
                reached[DEAD] = False
            out.append(reached)
        return out

    def _completable(self, left: int) -> Array:
        """States from which a text can be completed in the positions left, bool [S]."""
        if self._has_end:
            return self._distance <= left
        exactly = self._exactly
        while len(exactly) <= left:  # a new list each time: others may be reading this one
            exactly = [*exactly, self._backward(exactly[-1])]
        self._exactly = exactly
        return exactly[left]

    def _forward(self, reached: Array) -> Array:
        """States that one token leads to."""

        def find() -> Array:
            source, target = self._edges
            out = np.zeros(len(self.after), bool)
            out[target[reached[source]]] = True
            return out

        return self._remember(("forward", reached.tobytes()), find)

    def _backward(self, wanted: Array) -> Array:
        """States from which some token leads to a wanted one."""

        def find() -> Array:
            source, target = self._edges
            out = np.zeros(len(self.after), bool)
            out[source[wanted[target]]] = True
            return out

        return self._remember(("backward", wanted.tobytes()), find)

    def _kinds_between(self, reached: Array, wanted: Array) -> Array:
        """Kinds of tokens that lead from a reached state to a wanted one, bool [C]."""

        def find() -> Array:
            edge_kinds = self._automaton.edge_kinds
            if edge_kinds is None:
                return np.asarray(wanted[self.after[reached]].any(0))
            source, target = self._edges
            bits = np.bitwise_or.reduce(edge_kinds[reached[source] & wanted[target]], axis=0)
            return np.unpackbits(bits, count=self.after.shape[1]).astype(bool)

        return self._remember(("kinds", reached.tobytes(), wanted.tobytes()), find)

    def _remember(self, key: tuple[Any, ...], find: Callable[[], Array]) -> Array:
        """The answer to a question asked before: steps of one canvas ask mostly the same ones."""
        answer = self._memory.get(key)
        if answer is None:
            if len(self._memory) >= self._most:
                self._memory.clear()
            answer = self._memory[key] = find()
        return answer
