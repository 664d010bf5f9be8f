"""Decoding by renoising: canvas after canvas of random tokens, denoised behind the text and then read as text.

Shapes: L positions of the row, C of a canvas.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from unmask.canvas import Array, Commit
from unmask.decoding.feed import TEXT, Columns, ConditioningLogits
from unmask.decoding.methods.renoise_rule import RenoiseOptions, accept, noise, settled, temperature
from unmask.decoding.request import Read, Row


class Renoising:
    """Text not yet read and the canvas share a forward; a finished canvas is text to the forward of the next.

    The columns of a canvas hang on the last position of the text. `eos_ids`: what comes after one of them is
    padding (`pad_id`, where the model has one).
    """

    proposes = True

    def __init__(
        self,
        row: Row,
        options: RenoiseOptions,
        cache: str,
        vocab_size: int,
        eos_ids: frozenset[int],
        pad_id: int | None,
    ) -> None:
        self.row, self.options, self.exact = row, options, cache == "exact"
        self.vocab_size, self.eos_ids, self.pad_id = vocab_size, eos_ids, pad_id
        self.length = row.request.block_length or row.length
        self._begin()

    def _begin(self) -> None:
        self.start = cast(int, self.row.written)
        self.end = min(self.start + self.length, self.row.length)
        self.steps_left = self.options.max_steps
        self.earlier: list[Array] = []  # best tokens of the steps before
        self.signal: Any = None  # what the step before thought, as the network reads it
        self.prefill_end: int | None = None  # of a forward that only reads text

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
        self.prefill_end = self.row.prefill_end(low, self.start) if self.exact else None
        if self.prefill_end is not None:
            return Columns.text(self.row.canvas.ids[0], low, self.prefill_end)
        position, target = np.arange(low, self.end), np.arange(self.start, self.end)
        anchor = np.where(position >= self.start, self.start - 1, TEXT)
        return Columns(
            self.row.canvas.ids[0, low : self.end], position, anchor, target - low, target, signal=self.signal
        )

    def take(self, read: Read) -> list[Commit]:
        if self.prefill_end is not None:
            self.row.cached, self.row.prefills = self.prefill_end, self.row.prefills + 1
            return []
        logits, index = cast(ConditioningLogits, read.logits), read.offset + np.arange(len(read.target))
        best, sureness = logits.best(index, read.sampling)
        if self.exact:  # the text was read
            self.row.cached = self.start
        self.steps_left -= 1
        if self.steps_left == 0 or settled(best, self.earlier, read.scores.entropy, self.options):
            return self._write(best, sureness)
        self.earlier = [*self.earlier, best][-max(1, self.options.stability_threshold) :]
        self.signal = logits.signal(index, read.sampling)
        token, confidence = (best, sureness) if self.options.greedy else (read.scores.token, read.scores.confidence)
        accepted = accept(read.scores.entropy[None], self.options.entropy_bound)[0]
        return [
            Commit(self._grid(accepted), self._grid(token), self._grid(confidence), "unmask"),
            Commit(self._grid(~accepted), self._grid(self.random(read.target)), self._grid(confidence * 0), "renoise"),
        ]

    def random(self, position_C: Array) -> Array:
        """Tokens [C] in place of what was not accepted."""
        return noise(self.row.request.seed, self.row.steps, position_C, self.vocab_size)

    def _write(self, best: Array, confidence: Array) -> list[Commit]:
        """The canvas is text from now on; behind an end of text comes padding only."""
        self.row.written = self.end
        everywhere = np.ones(len(best), bool)
        commits = [Commit(self._grid(everywhere), self._grid(best), self._grid(confidence), "unmask")]
        ends = np.isin(best, list(self.eos_ids))
        if self.pad_id is not None and ends.any():
            behind = (np.arange(self.row.length) > self.start + int(ends.argmax()))[None]
            pads = np.full(behind.shape, self.pad_id)
            commits.append(Commit(behind, pads, np.zeros(behind.shape), "edit"))
        return commits

    def _grid(self, values_C: Array) -> Array:
        """Laid out on the row, [1, L]; 0 outside the canvas."""
        out = np.zeros((1, self.row.length), values_C.dtype)
        out[0, self.start : self.end] = values_C
        return out
