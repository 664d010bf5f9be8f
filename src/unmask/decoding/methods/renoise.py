"""Decoding by renoising (DiffusionGemma): canvas after canvas of random tokens, denoised behind the text and then read
as text.

Every step proposes a token for each position. The surest are accepted, all others become noise again. What the
network thinks best is written once it stands still and is sure of it, or when the steps are used up.
Shapes: B requests, L positions of the row or of a canvas, C of a canvas.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, cast

import numpy as np

from unmask.canvas import Array, Commit
from unmask.decoding.feed import TEXT, Columns, ConditioningLogits
from unmask.decoding.options import option
from unmask.decoding.request import Asked, MethodOptions, Row, Scheme, Setting, StepResult, cannot_be_held
from unmask.decoding.rules import best_first, within_bound
from unmask.decoding.sampling import uniforms

NOISE_DRAW = 3  # purpose of the draws that random tokens come from


@dataclass(frozen=True)
class Parameters:
    """How a canvas of noise is denoised; the defaults are those of the reference."""

    t_min: float = option(0.4, ge=0, le=100)  # temperature that the schedule ends near
    t_max: float = option(0.8, gt=0, le=100)  # and that it begins with
    confidence_threshold: float = option(0.005, ge=0, lt=1e6)  # nats
    stability_threshold: int = option(1, ge=0)  # steps


@dataclass(frozen=True)
class RenoiseOptions(Parameters):
    """All that a canvas of noise is denoised by."""

    max_steps: int = 48
    entropy_bound: float = 0.1  # nats
    greedy: bool = False  # proposes the best token instead of a sampled one


def temperature(steps_left: int, options: RenoiseOptions) -> float:
    """Linear over the steps, from t_max down; `steps_left` counts this one."""
    return options.t_min + (options.t_max - options.t_min) * steps_left / options.max_steps


def accept(entropy_BL: Array, bound: float) -> Array:
    """Positions that keep their proposal, bool [B, L]: entropies ascending, while the sum of the ones before
    is within the bound (arXiv 2505.24857), so the surest always does."""
    everywhere = np.ones(entropy_BL.shape, bool)
    return best_first(-entropy_BL, everywhere, within_bound(entropy_BL, everywhere, bound))


def noise(seed: int, step: int, position_L: Array, vocab_size: int) -> Array:
    """Uniformly random tokens [L], addressed by (seed, step, position); step 0 is the canvas to begin with."""
    u = uniforms(np.array(seed), np.array(step), position_L, NOISE_DRAW)
    return np.minimum((u * vocab_size).astype(np.int64), vocab_size - 1)


def settled(best_L: Array, earlier: list[Array], entropy_L: Array, options: RenoiseOptions) -> bool:
    """Whether the canvas is done: the best tokens are those of the last `stability_threshold` steps (`earlier`,
    oldest first), and the mean entropy is below `confidence_threshold`."""
    last = earlier[len(earlier) - options.stability_threshold :] if options.stability_threshold else []
    stable = len(earlier) >= options.stability_threshold and all(np.array_equal(best_L, other) for other in last)
    return stable and float(entropy_L.mean()) < options.confidence_threshold


@dataclass(frozen=True)
class Options(RenoiseOptions, MethodOptions):
    """Canvas after canvas of random tokens is denoised; what is not accepted becomes noise again."""

    method: ClassVar[str] = "renoise"
    by_rule: ClassVar[bool] = False
    whole_canvases: ClassVar[bool] = True

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.config.layout == "canvas"

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        options = asked.options
        if options.rule != "entropy_bound" or options.remask_budget:
            return f"model '{asked.name}' denoises random tokens: its rule is entropy_bound, without remasking"
        if options.t_min > options.t_max:
            return f"option t_min is out of range: {options.t_min}; it must be at most t_max, {options.t_max}"
        return None

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        own = {field.name for field in fields(Parameters)} | {"entropy_bound", "rule"}
        return own | {"temperature", "top_k", "top_p", "cache", "block_length", "max_denoising_steps"}

    @classmethod
    def no_grammar(cls, asked: Asked) -> str | None:
        return cannot_be_held(asked, "whole canvases of noise")

    @classmethod
    def of(cls, asked: Asked) -> Self:
        """A temperature above 0 that the caller asks for stands for both ends of the schedule; 0 is greedy."""
        made = super().of(asked)
        temperature = asked.given.get("temperature")
        if temperature is not None and temperature > 0:
            made = replace(made, t_min=asked.options.temperature, t_max=asked.options.temperature)
        steps = asked.options.max_denoising_steps or cls.max_steps
        return replace(made, max_steps=steps, greedy=temperature == 0)

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        return Renoising(row, setting, self)


class Renoising(Scheme):
    """Text not yet read and the canvas share a forward; a finished canvas is text to the forward of the next.

    The columns of a canvas hang on the last position of the text. What comes after an end of text is padding, where
    the model has a token for it.
    """

    def __init__(self, row: Row, setting: Setting, options: RenoiseOptions) -> None:
        super().__init__(row, setting)
        self.options = options
        self.vocab_size = setting.config.vocab_size
        self.eos_ids = setting.eos_ids
        self.pad_id = setting.config.pad_token_id
        self.length = row.request.block_length or row.length
        self._begin()

    def _begin(self) -> None:
        self.start = cast(int, self.row.written)
        self.end = min(self.start + self.length, self.row.length)
        self.steps_left = self.options.max_steps
        self.earlier: list[Array] = []  # best tokens of the steps before
        self.self_conditioning: Any = None  # predictions of the step before, as the network reads them

    @property
    def temperature(self) -> float:
        return temperature(self.steps_left, self.options)

    def settle(self) -> bool:
        if self.row.written != self.start:
            self._begin()
        self.row.final = self.start
        return self.start < self.row.length

    def columns(self) -> Columns:
        low = self.row.cached if self.exact else 0
        position = np.arange(low, self.end)
        target = np.arange(self.start, self.end)
        anchor = np.where(position >= self.start, self.start - 1, TEXT)
        return Columns(
            ids=self.row.canvas.ids[0, low : self.end],
            position=position,
            anchor=anchor,
            column=target - low,
            target=target,
            self_conditioning=self.self_conditioning,
        )

    def take(self, result: StepResult) -> list[Commit]:
        logits = cast(ConditioningLogits, result.logits)
        index = result.offset + np.arange(len(result.target))
        best, sureness = logits.best(index, result.sampling)
        if self.exact:  # the text was read
            self.row.cached = self.start
        self.steps_left -= 1
        if self.steps_left == 0 or settled(best, self.earlier, result.scores.entropy, self.options):
            return self._write(best, sureness)
        self.earlier = [*self.earlier, best][-max(1, self.options.stability_threshold) :]
        self.self_conditioning = logits.self_conditioning(index, result.sampling)
        token, confidence = (best, sureness) if self.options.greedy else (result.scores.token, result.scores.confidence)
        accepted = accept(result.scores.entropy[None], self.options.entropy_bound)[0]
        canvas = slice(self.start, self.end)
        return [
            self.commit(canvas, token, confidence, accepted),
            self.commit(canvas, self.random(result.target), 0.0, ~accepted, "renoise"),
        ]

    def random(self, position_C: Array) -> Array:
        """Tokens [C] in place of what was not accepted."""
        return noise(self.row.request.seed, self.row.steps, position_C, self.vocab_size)

    def _write(self, best: Array, confidence: Array) -> list[Commit]:
        """The canvas is text from now on; behind an end of text comes padding only."""
        self.row.written = self.end
        commits = [self.commit(slice(self.start, self.end), best, confidence)]
        ends = np.isin(best, list(self.eos_ids))
        if self.pad_id is not None and ends.any():
            behind = slice(self.start + int(ends.argmax()) + 1, self.row.length)
            commits.append(self.commit(behind, self.pad_id, 0.0, kind="edit"))
        return commits
