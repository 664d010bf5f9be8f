"""A request's grammar on its canvas: which tokens each scored position may have, and which proposals go together.

Shapes: L canvas positions, n scored ones, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from unmask.canvas import Array
from unmask.decoding.request import Row, StepResult
from unmask.decoding.sampling import draw
from unmask.structured.grammar import Grammar
from unmask.structured.token_automaton import START


class Constraint:
    """Holds one request to its grammar, whatever the order of commits.

    The grammar is of the generated part: all positions from the first that is not given. Positions before the one
    asked about are written and stay; the automaton's state there is read on from the last time.
    """

    def __init__(self, row: Row, grammar: Grammar) -> None:
        self.row = row
        self.grammar = grammar
        self.first = self.place = row.request.given.index(False)
        self.here = START  # the state before `place`

    @staticmethod
    def of(row: Row) -> Constraint | None:
        """None for a request without a grammar."""
        return None if row.request.grammar is None else Constraint(row, row.request.grammar)

    def state(self, place: int) -> int:
        """The automaton's state before a position; before a given one nothing is read yet."""
        if place <= self.first:
            return START
        if place < self.place:
            self.place = self.first
            self.here = START
        self.here = self.grammar.read(self.row.canvas.ids[0, self.place : place].tolist(), self.here)
        self.place = place
        return self.here

    def allowed(self, start: int, end: int, target: Array) -> Array:
        """Tokens that each position `target` [n] of the window from start to end - 1 may have, given all that is
        written elsewhere: bool [n, V]. What follows the window is open."""
        start, state = self._begin(start)
        left = self.row.length - end
        if len(target) == 1 and end - start == 1:
            return self.grammar.allowed(state, left + 1)[None]
        ids = self.row.canvas.ids[0, start:end]
        is_open = self.row.masked[start:end]
        return self.grammar.allowed_at(ids, is_open, state, left, target - start)

    def _begin(self, start: int) -> tuple[int, int]:
        """Where a window's own text begins, a prompt's tail in it left out, and the state there."""
        return max(start, self.first), self.state(start)

    def forced(self, token: int, place: int) -> list[int]:
        """The tokens that must stand behind `token` at `place`, everything before it being written."""
        state = self.grammar.step(self.state(place), token)
        return self.grammar.forced(state, self.row.length - place - 1)

    def after(self, drafts: Array, start: int) -> Array:
        """Tokens that may follow the text before `start` and each of its drafts in turn, bool [drafts + 1, V]."""
        return self.grammar.allowed_after(drafts.tolist(), self.state(start), self.row.length - start)

    def read(self, written: list[int], start: int) -> int:
        """The automaton's state after text that ends with `written`, from `start` on."""
        return self.grammar.read(written, self.state(start))

    def draft(self, q: Array, state: int, left: int) -> Array | None:
        """A slot's distribution [V] over what may come at `state`, with so many positions left; None where nothing
        may. Where only one token may come it is that, whatever the slot says."""
        allowed = self.grammar.allowed(state, left)
        q = np.where(allowed, q, 0.0)
        if not q.any():
            if allowed.sum() != 1:
                return None
            q = allowed.astype(np.float64)
        return q / q.sum()

    def agreed(self, start: int, end: int, chosen: Array, tokens: Array, sureness: Array, ids: Array) -> Array:
        """Which of the chosen proposals [L] of a window are committed: each that the canvas `ids` [L] can be completed
        with, together with all surer ones. bool [L]."""
        places = chosen.nonzero()[0]
        places = places[(-sureness[places]).argsort(kind="stable")]
        start, state = self._begin(start)
        left = self.row.length - end
        is_open = (ids == self.row.canvas.mask_id)[start:end]
        kept = self.grammar.accept(ids[start:end], is_open, places - start, tokens[places], state, left)
        out = np.zeros_like(chosen)
        out[places[kept]] = True
        return out

    def complete(
        self, start: int, end: int, left_out: Array, ids: Array, result: StepResult
    ) -> dict[int, tuple[int, float]]:
        """Other tokens for positions `left_out` whose proposals did not go with surer ones: each the best, or a draw,
        of what is still allowed, one after another; with their probabilities. ids [L]: with all that is committed."""
        ids = ids.copy()
        out = dict[int, tuple[int, float]]()
        warm = self.row.request.temperature > 0
        start, state = self._begin(start)
        left = self.row.length - end
        row_of = {int(p): i for i, p in enumerate(result.target)}
        for place in left_out.tolist():
            is_open = (ids == self.row.canvas.mask_id)[start:end]
            row = row_of[place]
            allowed = self.grammar.allowed_at(ids[start:end], is_open, state, left, np.array([place - start]))
            if not result.logits.restrict(np.array([result.offset + row]), allowed)[0]:
                continue
            p = result.probabilities(np.array([row]))[0]
            token = draw(p, result.sampling.token_draw[row]) if warm else int(p.argmax())
            ids[place] = token
            out[place] = (token, float(p[token]))
        return out
