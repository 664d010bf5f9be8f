"""What a conformance check found: the row of a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["load", "forward", "block-causal", "training pass", "padded", "save", "generation", "rule", "objective"]
TOLERANCE = 1e-4  # of logits in float32: equal formulas in another order differ by up to 2e-5


@dataclass(frozen=True)
class Outcome:
    """One check of one fixture against its reference.

    `holds` is None for what the fixture records and nothing here checks yet; `detail` then says why.
    `deviation` is said where the recorded case is a defect of the reference and ours differs on purpose:
    what they do, what we do and why. Such an outcome holds if ours is as the deviation says.
    """

    family: str  # the fixture's folder
    kind: Kind
    name: str
    holds: bool | None
    detail: str = ""  # the first canvas, id or count that is not equal; or why it was not checked
    deviation: str = ""
    seconds: float = 0.0
    difference: float | None = None  # greatest, of logits or losses
    forwards: tuple[int, int] | None = None  # of a generation: ours, recorded

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def near(family: str, kind: Kind, name: str, difference: float, tolerance: float = TOLERANCE) -> Outcome:
        """Holds if a difference is within the tolerance (not a number is not)."""
        holds = bool(difference <= tolerance)
        detail = "" if holds else f"differs by {difference:.2g}, more than {tolerance:.0e}"
        return Outcome(family, kind, name, holds, detail, difference=difference)


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
                    return f"canvas before forward {step + 1}: {_first_difference(ours, theirs)}"
        if self.forwards != recorded.forwards:
            return f"{self.forwards} forwards instead of {recorded.forwards}"
        counts = [len(trace.canvases or []) for trace in (self, recorded)]
        if counts[0] != counts[1] and None not in (self.canvases, recorded.canvases):
            return f"{counts[0]} canvases instead of {counts[1]}"
        return "" if self.final == recorded.final else f"final ids: {_first_difference(self.final, recorded.final)}"


def _first_difference(ours: list[list[int]], theirs: list[list[int]]) -> str:
    """Where rows of ids part: the row, the position and both ids; or that their lengths do."""
    if len(ours) != len(theirs):
        return f"{len(ours)} rows instead of {len(theirs)}"
    row = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    pairs = enumerate(zip(ours[row], theirs[row], strict=False))
    found = next(((i, a, b) for i, (a, b) in pairs if a != b), None)
    if found is None:
        return f"row {row} has {len(ours[row])} ids instead of {len(theirs[row])}"
    return f"row {row}, position {found[0]} is {found[1]} instead of {found[2]}"
