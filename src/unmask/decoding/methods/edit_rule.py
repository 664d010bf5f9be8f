"""Editing what is written, beside the rule that fills masks: which tokens are replaced (LLaDA2.1, token to token),
inserted and deleted (LLaDA2.2, as SGLang's JointThresholdInDel decides).

With insertions the network may propose two control tokens. `delete` takes the token at its position out; `insert` puts
a mask before it. The block keeps its length: what is pushed past its end is lost, and room at its end is filled with
masks. The network never proposes the mask itself. Every comparison with a threshold is strict.
Shapes: grids [B, L]; of insertions and deletions one block of W positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from unmask.canvas import Array, moved
from unmask.decoding.options import option
from unmask.decoding.rules import RuleOptions, best_first

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
