"""Structured output: which tokens may stand where, so that a regular expression or a JSON schema holds in the end.

The rule is a deterministic automaton over tokens (`token_automaton`), so the two questions of decoding have exact
answers, in any order of commits and within the length of the canvas:

- from left to right: a state is one number; `allowed(state, left)` are the tokens after which a text can still be
  completed in the positions left.
- on a canvas with masks anywhere: the states that each position can be in are found from the left, those that can be
  brought to an end from the right. `allowed_at` are the tokens that some completion has at a mask, given all that is
  committed; `accept` says which of several proposals go together, the surest first. A position always has an allowed
  token, so a step can always commit something, and a full canvas is always valid.

A text is complete at an end-of-text token, after which only such tokens and padding stand, or where the canvas ends.
Without end-of-text tokens (gaps to fill) it takes all positions exactly. The canvas here is the generated part alone.
Compilation is bounded in size and time (`Effort`). Shapes: n positions, m of them open, V tokens, S states, C kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unmask.canvas import Array
from unmask.errors import UnmaskError
from unmask.structured.dfa import compile_language, minimal
from unmask.structured.effort import Effort, TooLarge
from unmask.structured.json_schema import SIZES, Sizes, read_schema
from unmask.structured.language import Language
from unmask.structured.regex import read_regex
from unmask.structured.token_automaton import DEAD, START, TokenAutomaton, over_tokens
from unmask.structured.vocabulary import Vocabulary

LONGEST_RUN = 64  # bytes of a run that is proposed at once
_REMEMBERED = 1024  # sets and answers that are kept at the least
_REMEMBERED_BYTES = 2**25  # and as many more as fit


class States:
    """A set of states, and what was found of it; a grammar has one for each set, so that steps of a canvas, which ask
    mostly the same, look numbers up and not masks."""

    __slots__ = ("after", "before", "both", "kinds", "mask", "some")

    def __init__(self, mask: Array) -> None:
        self.mask = mask  # bool [S]
        self.some = bool(mask.any())
        self.after: dict[int | None, States] = {}  # by the kind of a token, None for any
        self.before: dict[int | None, States] = {}
        self.both: dict[States, States] = {}
        self.kinds: dict[States, Array] = {}  # of tokens from here to there, bool [C]


class Grammar:
    """A rule that the whole generated text has to match, for one vocabulary. Shared by requests: it holds no state."""

    start = START

    def __init__(self, automaton: TokenAutomaton, what: str, vocabulary: Vocabulary, widest: bool = True) -> None:
        """
        Args:
            what: Names the rule in messages.
            widest: Whether nothing of the rule was left out to make it smaller.
        """
        self.automaton = automaton
        self.what = what
        self.widest = widest
        self.vocabulary = vocabulary
        self._has_end = bool(vocabulary.ends)
        self._most = max(_REMEMBERED, _REMEMBERED_BYTES // (2 * automaton.states))
        # of each kind of tokens: how many there are, and the first
        self._members = np.bincount(automaton.kind_of, minlength=automaton.kinds)
        self._first = np.full(automaton.kinds, -1)
        self._first[automaton.kind_of[::-1]] = np.arange(len(automaton.kind_of))[::-1]
        self._runs: dict[int, tuple[int, ...]] = {}
        self._sets: dict[bytes, States] = {}
        self._enough: dict[int, States] = {}  # from which a text can be completed in so many positions
        self._found = 0  # answers that the sets hold
        self._exactly = [automaton.final]  # without an end of text: states that end after just so many tokens

    @staticmethod
    def compile(language: Language, vocabulary: Vocabulary, what: str, effort: Effort, widest: bool = True) -> Grammar:
        """The grammar of a language. Raises UnmaskError if it is too large or empty."""
        dfa = minimal(compile_language(language, effort), effort)
        if dfa.is_empty:
            raise UnmaskError(f"no text fits {what}: its constraints exclude each other or have no end")
        made = Grammar(over_tokens(dfa, vocabulary, effort), what, vocabulary, widest)
        if made.shortest > made.automaton.states:
            raise UnmaskError(f"no text that fits {what} can be spelled with the tokens of this model")
        return made

    @staticmethod
    def of_regex(pattern: str, vocabulary: Vocabulary, effort: Effort | None = None) -> Grammar:
        """Texts that match the whole of a regular expression."""
        effort = effort or Effort()
        return Grammar.compile(read_regex(pattern, effort=effort), vocabulary, "the regular expression", effort)

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
        for sizes in SIZES[:-1]:  # rather shorter strings than a refusal
            try:
                return Grammar.compile(read(effort, sizes), vocabulary, what, effort, sizes is SIZES[0])
            except TooLarge:
                effort = replace(effort, made=0)  # the time goes on
        return Grammar.compile(read(effort, SIZES[-1]), vocabulary, what, effort, widest=False)

    @property
    def size(self) -> int:
        """Bytes of its tables."""
        automaton = self.automaton
        tables = (automaton.source, automaton.kind, automaton.target, *automaton.by_kind[1:], *automaton.edges)
        return sum(table.nbytes for table in (*tables, automaton.kind_of, automaton.distance))

    @property
    def shortest(self) -> int:
        """Fewest tokens of a text that fits; an end of text is not counted."""
        return int(self.automaton.distance[START])

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
        return self.automaton.step(state, token)

    def read(self, tokens: Sequence[int], state: int = START) -> int:
        """The state after tokens."""
        for token in tokens:
            state = self.automaton.step(state, token)
        return state

    def allowed(self, state: int, left: int) -> Array:
        """Tokens that may come next with `left` positions left, this one included, bool [V]."""
        return self._marked(self._kinds(state, left)[0], self.automaton.kinds)[self.automaton.kind_of]

    def allowed_after(self, tokens: Sequence[int], state: int, left: int) -> Array:
        """Tokens that may come next with `left` positions left, and those after each token in turn with one fewer left
        each time, bool [tokens + 1, V]."""
        rows = np.zeros((len(tokens) + 1, self.automaton.kinds), bool)
        for place, token in enumerate([*tokens, None]):
            rows[place, self._kinds(state, left - place)[0]] = True
            state = state if token is None else self.automaton.step(state, token)
        return rows[:, self.automaton.kind_of]

    def _kinds(self, state: int, left: int) -> tuple[Array, Array]:
        """Kinds of tokens that may come next with `left` positions left, and the states after them."""
        kinds, targets = self.automaton.following(state)
        fits = self._fit(targets, left - 1)
        return kinds[fits], targets[fits]

    def go(self, state: int, token: int, left: int) -> int:
        """The state after a token that may come next with `left` positions left, this one included; 0 where it may
        not."""
        after = self.automaton.step(state, token)
        return after if self._fit(after, left - 1) else DEAD

    def forced(self, state: int, left: int) -> list[int]:
        """The tokens that must come next, as long as there is just one that may, up to an end of text.

        Args:
            left: Positions that are left, the next one included.
        """
        out = list[int]()
        while left > len(out) and not self.automaton.final[state]:
            kinds, targets = self._kinds(state, left - len(out))
            if len(kinds) != 1 or self._members[kinds[0]] != 1:
                break
            out.append(int(self._first[kinds[0]]))
            state = int(targets[0])
        return out

    def run(self, state: int) -> tuple[int, ...]:
        """Tokens that spell the bytes that must come next, the longest first: what a model most likely writes there,
        though other tokens may spell them too."""
        if state not in self._runs:
            self._runs[state] = self.vocabulary.split(self._must(state))
        return self._runs[state]

    def _must(self, state: int) -> bytes:
        """The bytes that every text goes on with, of those that are tokens."""
        values = list(self.vocabulary.of_byte)
        tokens = list(self.vocabulary.of_byte.values())
        out = b""
        while tokens and len(out) < LONGEST_RUN and not self.automaton.final[state]:
            kinds = self.automaton.kind_of[tokens]
            may = np.isin(kinds, self.automaton.following(state)[0]).nonzero()[0]
            if len(may) != 1:
                break
            out += bytes([values[may[0]]])
            state = self.automaton.step(state, tokens[may[0]])
        return out

    def allowed_at(
        self, ids: Array, is_open: Array, state: int = START, left: int = 0, places: Array | None = None
    ) -> Array:
        """Tokens that some completion has at each open position, bool [m, V].

        ids: int [n], read where is_open [n] is false. state: before the first position. left: further open
        positions after the last. places: int [m], the positions asked about; of one that is not open, tokens that
        could stand there instead. All rows are empty if what is committed has no completion.
        """
        before = self._from_left(ids, is_open, state)
        wanted = [self._ending(left)]
        for i in reversed(range(len(ids))):
            wanted.append(self._moved(wanted[-1], None if is_open[i] else int(ids[i]), back=True))
        wanted.reverse()
        places = is_open.nonzero()[0] if places is None else places
        rows = [
            self._kinds_between(self._both(before[i], wanted[i]) if is_open[i] else before[i], wanted[i + 1])
            for i in places.tolist()
        ]
        return np.array(rows, bool).reshape(len(rows), self.automaton.kinds)[:, self.automaton.kind_of]

    def feasible(self, ids: Array, is_open: Array, state: int = START, left: int = 0) -> bool:
        """Whether what is committed has a completion; arguments as for `allowed_at`."""
        return self._both(self._from_left(ids, is_open, state)[-1], self._ending(left)).some

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

    def _from_left(self, ids: Array, is_open: Array, state: int) -> list[States]:
        """Before each position and after the last, the states that it can be in."""
        out = [self._set(self._marked(np.array([state] if state != DEAD else [], np.int64)))]
        for token, free in zip(ids.tolist(), is_open.tolist(), strict=True):
            out.append(self._moved(out[-1], None if free else token))
        return out

    def _set(self, mask: Array) -> States:
        """The set of these states."""
        if self._found > self._most:  # those that are being asked live on by themselves
            self._sets = {}
            self._enough = {}
            self._found = 0
        self._found += 1
        return self._sets.setdefault(mask.tobytes(), States(mask))

    def _moved(self, reached: States, token: int | None = None, back: bool = False) -> States:
        """States that a token (None: any) leads to from the reached ones; back: from which it leads to them."""
        automaton = self.automaton
        kind = None if token is None else int(automaton.kind_of[token])
        known = reached.before if back else reached.after
        found = known.get(kind)
        if found is None:
            source, target = automaton.edges if kind is None else automaton.of_kind(kind)
            if back:
                source, target = target, source
            found = known[kind] = self._set(self._marked(target[reached.mask[source]]))
        return found

    def _both(self, one: States, other: States) -> States:
        """The states in both sets."""
        found = one.both.get(other)
        if found is None:
            found = one.both[other] = self._set(one.mask & other.mask)
        return found

    def _ending(self, left: int) -> States:
        """States from which a text can be completed in the positions left."""
        found = self._enough.get(left)
        if found is None:
            found = self._enough[left] = self._set(self._completable(left))
        return found

    def _marked(self, places: Array, size: int | None = None) -> Array:
        """Bools [size, or S], true at places."""
        out = np.zeros(size or self.automaton.states, bool)
        out[places] = True
        return out

    def _fit(self, states: Any, left: int) -> Any:
        """Whether a text can be completed in the positions left from a state, or each of an array of them."""
        if self._has_end:
            return self.automaton.distance[states] <= left
        return self._completable(left)[states]

    def _completable(self, left: int) -> Array:
        """States from which a text can be completed in the positions left, bool [S]."""
        if self._has_end:
            return np.asarray(self.automaton.distance <= left)
        exactly = self._exactly
        while len(exactly) <= left:  # a new list each time: others may be reading this one
            exactly = [*exactly, self._moved(self._set(exactly[-1]), back=True).mask]
        self._exactly = exactly
        return exactly[left]

    def _kinds_between(self, reached: States, wanted: States) -> Array:
        """Kinds of tokens that lead from a reached state to a wanted one, bool [C]."""
        found = reached.kinds.get(wanted)
        if found is None:
            automaton = self.automaton
            edge_kinds = automaton.edge_kinds
            if edge_kinds is not None:
                source, target = automaton.edges
                bits = np.bitwise_or.reduce(edge_kinds[reached.mask[source] & wanted.mask[target]], axis=0)
                found = np.unpackbits(bits, count=automaton.kinds).astype(bool)
            else:
                kinds = automaton.kind[reached.mask[automaton.source] & wanted.mask[automaton.target]]
                found = self._marked(kinds, automaton.kinds)
            reached.kinds[wanted] = found
            self._found += 1
        return found
