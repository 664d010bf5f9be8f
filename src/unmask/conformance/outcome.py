"""What a conformance check found: the row of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["forward", "block-causal", "training pass", "padded", "save", "generation", "rule", "objective"]


@dataclass(frozen=True)
class Outcome:
    """One check of one fixture against its reference.

    `deviation` is said where the recorded case is a defect of the reference and ours differs on purpose:
    what they do, what we do and why. Such an outcome holds if ours is as the deviation says.
    """

    family: str
    kind: Kind
    name: str
    holds: bool
    detail: str = ""  # greatest difference of logits; or the first canvas, id or count that is not equal
    deviation: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Trace:
    """A decoding as recorded or as ours: canvases before every forward, final ids, forwards.

    canvases: for each forward the rows it read [B][w]: the whole canvas or the slice of it; None where the
    case does not record them.
    """

    canvases: list[list[list[int]]] | None
    final: list[list[int]]
    forwards: int

    def differs_from(self, recorded: Trace) -> str:
        """The first difference in one line; empty if there is none."""
        if self.canvases is not None and recorded.canvases is not None:
            for step, (ours, theirs) in enumerate(zip(self.canvases, recorded.canvases, strict=False)):
                if ours != theirs:
                    return f"canvas before forward {step + 1}: {ours} instead of {theirs}"
        if self.forwards != recorded.forwards:
            return f"{self.forwards} forwards instead of {recorded.forwards}"
        return "" if self.final == recorded.final else f"final ids {self.final} instead of {recorded.final}"
