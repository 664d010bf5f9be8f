"""Decoding that edits what it wrote: LLaDA2.1's token editing, and LLaDA2.2's insertions and deletions."""

from __future__ import annotations

import numpy as np

from unmask.canvas import Array, Commit, Kind
from unmask.decoding.methods.denoise import Denoising
from unmask.decoding.methods.edit_rule import edits, progress
from unmask.decoding.methods.insert_delete import Controls, Revision
from unmask.decoding.request import Read, Row
from unmask.layout import Layout


class Editing(Denoising):
    """Every step fills masks and edits written tokens of the window, which moves on when nothing changes any
    more or its steps without a mask are spent."""

    def __init__(self, row: Row, layout: Layout, cache: str, shift: int) -> None:
        super().__init__(row, layout, cache, shift)
        self.remask_left = 0  # editing is this rule's own way to revise
        self.post_steps = np.array([0])

    def settle(self) -> bool:
        if self.row.revising:
            return True
        if not super().settle():
            return False
        self._begin_block()
        return True

    def _begin_block(self) -> None:
        self.row.revising, self.post_steps = True, np.array([0])

    def _scored(self) -> Array:
        open_L: Array = ~self.row.canvas.frozen[0]
        return open_L

    def take(self, read: Read) -> list[Commit]:
        commits = super().take(read)
        if self.prefill_end is not None:
            return commits
        fill = commits[0]
        masked = self.row.masked & self._window()
        editable = self._window() & ~masked & ~self.row.canvas.frozen[0]
        edited = edits(self.row.canvas.ids, fill.tokens, fill.confidence, editable[None], self.rule)
        if self.constraint is not None:
            filled = np.where(fill.chosen, fill.tokens, self.row.canvas.ids)[0]
            proposed = (edited[0], fill.tokens[0], fill.confidence[0])
            edited = self.constraint.agreed(self.start, self.end, *proposed, filled)[None]
        changed, had_masks = fill.chosen | edited, np.array([masked.any()])
        finished, self.post_steps = progress(changed, had_masks, self.post_steps, self.rule)
        left = bool((masked & ~fill.chosen[0]).any())
        # a forward that would exceed the budget is not made
        spent = not left and self.post_steps[0] >= self.rule.max_post_steps
        self._finish(bool(finished[0]) or bool(spent), bool(changed.any()))
        return [fill, Commit(edited, fill.tokens, fill.confidence, "edit")]

    def _finish(self, finished: bool, changed: bool) -> None:
        self.row.revising = not finished
        if finished and not changed and self.cache == "exact":  # the keys and values of this forward hold
            self.row.cached = self.end


class InsertDelete(Editing):
    """As `decoding.indel` decides: tokens are also inserted and deleted inside the window."""

    def __init__(self, row: Row, layout: Layout, cache: str, shift: int, controls: Controls) -> None:
        super().__init__(row, layout, cache, shift)
        self.controls = controls
        self.revision = Revision([])

    def _begin_block(self) -> None:
        super()._begin_block()
        self.revision = Revision(self.row.masked[self.start : self.end].tolist())

    def take(self, read: Read) -> list[Commit]:
        if self.prefill_end is not None:
            return super().take(read)
        row, window = self.row, slice(self.start, self.end)
        scores = read.scores.grid(np.zeros(len(read.target), np.int64), read.target, row.canvas.ids.shape)

        def second(place: int, forbidden: set[int]) -> tuple[int, float]:
            p = read.probabilities(np.searchsorted(read.target, [self.start + place]))[0]
            p[[row.canvas.mask_id, *forbidden]] = -1.0
            return int(p.argmax()), float(p.max())

        ids, masked, frozen = row.canvas.ids[0, window], row.masked[window], row.canvas.frozen[0, window]
        proposed = scores.token[0, window], scores.confidence[0, window]
        change = self.revision.step(ids, masked, frozen, *proposed, second, self.controls, self.rule)
        if self.cache == "exact":
            row.cached = self.start
        kinds: list[tuple[Kind, Array, Array | int]] = [
            ("unmask", change.written & masked, change.tokens),
            ("edit", change.written & ~masked, change.tokens),
            ("delete", change.deleted, ids),
            ("insert", change.inserted, row.canvas.mask_id),
        ]
        commits = [self._commit(kind, chosen, tokens, change.confidence) for kind, chosen, tokens in kinds]
        self._finish(self.revision.finished, any(commit.chosen.any() for commit in commits))
        return commits

    def _commit(self, kind: Kind, chosen: Array, tokens: Array | int, confidence: Array) -> Commit:
        """A commit [1, L] of what happens in the window."""
        shape, window = self.row.canvas.ids.shape, (0, slice(self.start, self.end))
        where, what, sure = np.zeros(shape, bool), np.zeros(shape, np.int64), np.zeros(shape)
        where[window], what[window], sure[window] = chosen, tokens, confidence
        return Commit(where, what, sure, kind, self.end)
