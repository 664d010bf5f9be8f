"""Decoding that edits what it wrote: LLaDA2.1's token editing, and LLaDA2.2's insertions and deletions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unmask.canvas import Array, Commit, Kind
from unmask.decoding.methods import denoise
from unmask.decoding.methods.denoise import Denoising
from unmask.decoding.methods.edit_rule import Controls, Parameters, Revision, edits, progress
from unmask.decoding.request import Asked, Row, Scheme, Setting, StepResult
from unmask.models.config import ModelConfig


@dataclass(frozen=True)
class Options(Parameters, denoise.Options):
    """Masks are filled and written tokens replaced, until nothing changes any more."""

    method: ClassVar[str] = "edit"

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.options.rule == "token_edit"

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        if asked.layout not in ("bidirectional", "block_causal"):
            return f"model '{asked.name}' never revises what it wrote; rule 'token_edit' needs another one"
        return super().suits(asked)

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        own = denoise.windowed(asked) | {"editing_threshold", "max_post_steps"}
        # insertions and deletions end a block by what it holds, and not by a number of steps
        return own if controls_of(asked.config) is None else own - {"max_denoising_steps", "schedule"}

    @classmethod
    def no_grammar(cls, asked: Asked) -> str | None:
        if asked.config.insert_token_id is None:
            return super().no_grammar(asked)
        return "rule token_edit inserts and deletes tokens here; with a grammar, use another rule"

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        controls = controls_of(setting.config)
        return Editing(row, setting, self) if controls is None else InsertDelete(row, setting, self, controls)


def controls_of(config: ModelConfig) -> Controls | None:
    """The tokens that stand for an insertion and a deletion, where a model has both."""
    if config.delete_token_id is None or config.insert_token_id is None:
        return None
    return Controls(config.delete_token_id, config.insert_token_id)


class Editing(Denoising):
    """Every step fills masks and edits written tokens of the window, which moves on when nothing changes any
    more or its steps without a mask are spent."""

    def __init__(self, row: Row, setting: Setting, options: Parameters) -> None:
        super().__init__(row, setting)
        self.options = options
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
        self.row.revising = True
        self.post_steps = np.array([0])

    def _scored(self) -> Array:
        open_L: Array = ~self.row.canvas.frozen[0]
        return open_L

    def take(self, result: StepResult) -> list[Commit]:
        fill = super().take(result)[0]
        masked = self.row.masked & self._window()
        editable = self._window() & ~masked & ~self.row.canvas.frozen[0]
        threshold = self.options.editing_threshold
        zero_edits = self.convention.zero_edits
        edited = edits(self.row.canvas.ids, fill.tokens, fill.confidence, editable[None], threshold, zero_edits)
        if self.constraint is not None:
            filled = np.where(fill.chosen, fill.tokens, self.row.canvas.ids)[0]
            proposed = (edited[0], fill.tokens[0], fill.confidence[0])
            edited = self.constraint.agreed(self.start, self.end, *proposed, filled)[None]
        changed = fill.chosen | edited
        had_masks = np.array([masked.any()])
        finished, self.post_steps = progress(changed, had_masks, self.post_steps, self.options.max_post_steps)
        left = bool((masked & ~fill.chosen[0]).any())
        # a forward that would exceed the budget is not made
        spent = not left and self.post_steps[0] >= self.options.max_post_steps
        self._finish(bool(finished[0]) or bool(spent), bool(changed.any()))
        return [fill, Commit(edited, fill.tokens, fill.confidence, "edit")]

    def _finish(self, finished: bool, changed: bool) -> None:
        self.row.revising = not finished
        if finished and not changed and self.exact:  # the keys and values of this forward hold
            self.row.cached = self.end


class InsertDelete(Editing):
    """As `methods.edit_rule` decides: tokens are also inserted and deleted inside the window."""

    def __init__(self, row: Row, setting: Setting, options: Parameters, controls: Controls) -> None:
        super().__init__(row, setting, options)
        self.controls = controls
        self.revision = Revision([])

    def _begin_block(self) -> None:
        super()._begin_block()
        self.revision = Revision(self.row.masked[self.start : self.end].tolist())

    def take(self, result: StepResult) -> list[Commit]:
        row = self.row
        window = slice(self.start, self.end)
        scores = result.scores.grid(0, result.target, row.canvas.ids.shape)

        def second(place: int, forbidden: set[int]) -> tuple[int, float]:
            p = result.probabilities(np.searchsorted(result.target, [self.start + place]))[0]
            p[[row.canvas.mask_id, *forbidden]] = -1.0
            return int(p.argmax()), float(p.max())

        ids = row.canvas.ids[0, window]
        masked = row.masked[window]
        frozen = row.canvas.frozen[0, window]
        proposed = scores.token[0, window], scores.confidence[0, window]
        change = self.revision.step(ids, masked, frozen, *proposed, second, self.controls, self.rule, self.options)
        if self.exact:
            row.cached = self.start
        kinds: list[tuple[Kind, Array, Array | int]] = [
            ("unmask", change.written & masked, change.tokens),
            ("edit", change.written & ~masked, change.tokens),
            ("delete", change.deleted, ids),
            ("insert", change.inserted, row.canvas.mask_id),
        ]
        commits = [
            self.commit(window, tokens, change.confidence, chosen, kind, self.end) for kind, chosen, tokens in kinds
        ]
        self._finish(self.revision.finished, any(commit.chosen.any() for commit in commits))
        return commits
