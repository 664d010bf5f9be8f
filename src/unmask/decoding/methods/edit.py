"""Decoding that edits what it wrote: which tokens are replaced (LLaDA2.1, token to token), inserted and deleted
(LLaDA2.2, as SGLang's JointThresholdInDel decides), beside the rule that fills masks.

With insertions the network may propose two control tokens. `delete` takes the token at its position out; `insert` puts
a mask before it. The block keeps its length: what is pushed past its end is lost, and room at its end is filled with
masks. The network never proposes the mask itself. Every comparison with a threshold is strict.
Shapes: grids [B, L]; of insertions and deletions one block of W positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from unmask.canvas import Array, Commit, Kind, moved
from unmask.decoding.methods import denoise
from unmask.decoding.methods.denoise import Denoising
from unmask.decoding.options import option
from unmask.decoding.request import Asked, Row, Scheme, Setting, StepResult
from unmask.decoding.rules import RuleOptions, best_first
from unmask.models.config import ModelConfig

Second = Callable[[int, set[int]], tuple[int, float]]  # (place, forbidden tokens) -> best other token, confidence


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What editing reads beside the rule that fills masks."""

    editing_threshold: float = option(0.9, ge=0, le=1)
    max_post_steps: int = option(16, ge=0)  # steps that only edit, of each block


class Progress(NamedTuple):
    """Which blocks are finished, and how many steps each had without a mask: [B]."""

    finished: Array
    post_steps: Array


def edits(
    ids: Array, token: Array, confidence: Array, editable: Array, threshold: float, zero_edits: bool = True
) -> Array:
    """Where a written token is replaced, bool: the network proposes another with a confidence above `threshold`.

    Args:
        editable: bool, written tokens that may change.
        zero_edits: Whether a threshold of 0 edits every token that differs (LLaDA2.1, SGLang) or none (diffusers).
    """
    if threshold <= 0 and not zero_edits:
        return np.zeros_like(editable)
    return editable & (token != ids) & (confidence > threshold)


def progress(changed: Array, had_masks: Array, post_steps: Array, max_post_steps: int) -> Progress:
    """After a step that changed [B, L]: a block is finished if it had no mask before and nothing changed, or
    if it had more than `max_post_steps` steps without one. had_masks: bool [B], before the step."""
    post_steps = post_steps + ~had_masks
    return Progress((~had_masks & ~changed.any(1)) | (post_steps > max_post_steps), post_steps)


class Controls(NamedTuple):
    """Tokens that stand for an operation."""

    delete: int
    insert: int


class Change(NamedTuple):
    """What a step does to a block: `written` [W] become `tokens` [W]; others are deleted or inserted before."""

    written: Array
    tokens: Array
    confidence: Array
    deleted: Array
    inserted: Array


@dataclass
class Revision:
    """What is remembered of a block between its steps."""

    original: list[bool]  # the block's first masks, wherever they moved; those that came in later are not
    steps: int = 0
    post_steps: int = 0  # without an original mask left
    seen: set[tuple[int, ...]] = field(default_factory=set)
    tried: dict[int, set[int]] = field(default_factory=dict)  # tokens written at each place so far
    finished: bool = False

    def step(
        self,
        ids: Array,
        masked: Array,
        frozen: Array,
        token: Array,
        confidence: Array,
        second: Second,
        controls: Controls,
        rule: RuleOptions,
        options: Parameters,
    ) -> Change:
        """Decides one step and counts it. ids, token int [W]; masked, frozen bool [W]; confidence [W].

        While original masks are left, one more is filled than masks came in by moves, so that each step
        resolves one of them. Without them every mask is filled, for `max_post_steps` steps at most. The last of
        those, or the one after W + max_post_steps in all, writes no control token and leaves no mask; where
        max_post_steps is 0, that is the step that fills the last original masks.
        A block that was seen before has its least sure change replaced by a token not yet tried there.
        """
        token = token.copy()
        confidence = confidence.copy()
        fixed = np.flatnonzero(frozen)
        movable = np.arange(len(ids)) > (fixed[-1] if len(fixed) else -1)  # nothing given stands after it
        forbidden = set(controls)

        def replace(where: Array) -> None:
            for place in np.flatnonzero(where).tolist():
                token[place], confidence[place] = second(place, forbidden)

        replace(np.isin(token, controls) & ~movable & ~frozen)
        first_masks = masked & np.array(self.original)
        self.steps += 1
        self.post_steps += not first_masks.any()
        last = self.steps > len(ids) + options.max_post_steps
        last |= bool(not first_masks.any() and self.post_steps >= options.max_post_steps)
        fill = masked
        if first_masks.any() and not last:
            needed = max(1 + int(masked.sum() - first_masks.sum()), rule.convention.num_to_transfer)
            fill = (masked & (confidence > rule.threshold)) | best_first(
                confidence[None], masked[None], np.array([needed])
            )[0]
            if options.max_post_steps == 0 and not (first_masks & ~fill).any():
                last = True
                fill = masked
        editable = ~masked & ~frozen
        edited = edits(ids, token, confidence, editable, options.editing_threshold, rule.convention.zero_edits)
        chosen = fill | edited
        self.finished = last or not chosen.any()
        if last:
            replace(chosen & np.isin(token, controls))
            chosen &= token != ids  # an edit may have come to what stands there
        changing = chosen & (token != ids)
        if not last and tuple(ids.tolist()) in self.seen and changing.any():
            place = int(np.where(changing, confidence, np.inf).argmin())
            token[place] = second(place, self.tried.get(place, set()) | (set() if movable[place] else forbidden))[0]
        self.seen.add(tuple(ids.tolist()))
        for place in np.flatnonzero(chosen).tolist():
            self.tried.setdefault(place, set()).add(int(token[place]))
        deleted = chosen & (token == controls.delete)
        inserted = chosen & (token == controls.insert)
        gone = set(np.flatnonzero(deleted).tolist())
        pushed = set(np.flatnonzero(inserted).tolist())
        self.original = moved(self.original, gone, pushed, len(ids), False)
        return Change(chosen & ~deleted & ~inserted, token, confidence, deleted, inserted)


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
    """As `Revision` decides: tokens are also inserted and deleted inside the window."""

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
