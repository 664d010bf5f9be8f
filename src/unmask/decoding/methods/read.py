"""Reading without writing: what would stand at some positions of a canvas, from one forward.

Shapes: L canvas positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from unmask.canvas import Array, Commit
from unmask.decoding.methods import denoise
from unmask.decoding.methods.denoise import Denoising
from unmask.decoding.request import Row, Setting, StepResult
from unmask.errors import UnmaskError


@dataclass(frozen=True)
class Options(denoise.Options):
    """A canvas is read once. `wanted`: by position, the tokens whose log-probabilities are remembered; `begin`: where
    blocks count from, of a model whose blocks count from the prompt's end."""

    method: ClassVar[str] = "read"
    wanted: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    begin: int = 0

    def scheme(self, row: Row, setting: Setting) -> Reading:
        return Reading(row, setting, self)


class Reading(Denoising):
    """The window is all from the first wanted position on, or from the first mask on where it is a block behind text
    that is scored in place; where text is read from left to right, it is text too, and each token is scored by those
    before it."""

    proposes = False

    def __init__(self, row: Row, setting: Setting, options: Options) -> None:
        super().__init__(row, setting)
        self.wanted = options.wanted
        self.past = False
        self.start = min(self.wanted)
        self.end = row.length
        if setting.layout.kind == "block_causal":
            self.offset = -options.begin % self.block if self.convention.blocks_from_prompt else 0
            self.start = (self.start + self.offset) // self.block * self.block - self.offset
        elif setting.layout.kind == "causal_blocks" and setting.config.in_place:
            self.start = int(row.masked.argmax())
            self.slides = True
            self.shift = 0
        elif setting.layout.kind != "bidirectional":
            self.slides = False
            self.shift = 1

    def settle(self) -> bool:
        return not self.past

    def _scored(self) -> Array:
        scored = np.zeros(self.row.length, bool)
        scored[list(self.wanted)] = True
        return scored

    def take(self, result: StepResult) -> list[Commit]:
        for index, position in enumerate(result.target.tolist()):
            p = result.probabilities(np.array([index]))[0]
            if np.isnan(p).any():
                raise UnmaskError("the network's scores are no numbers; load it in float32 or bfloat16, or again")
            told = np.log(np.maximum(p, 1e-300))
            self.row.logprobs[position] = tuple((token, float(told[token])) for token in self.wanted[position])
        self.past = True
        self._taken()
        return []
