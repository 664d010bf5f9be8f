"""Whether the tensors of a checkpoint are those that its config asks for, and how to say where not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from unmask.errors import UnmaskError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """What a checkpoint lacks, has too much, or has in another shape (name, found, expected)."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[tuple[str, Shape, Shape], ...]

    @property
    def holds(self) -> bool:
        return not (self.missing or self.extra or self.misshapen)

    def line(self, source: str, config: str) -> str:
        """One line with counts and the first few names."""
        parts = []
        for what, names in (("missing", self.missing), ("unknown", self.extra)):
            if names:
                parts.append(f"{_count(len(names))} {what} ({_few(names)})")
        if self.misshapen:
            name, found, expected = self.misshapen[0]
            more = f" and {len(self.misshapen) - 1} more" if len(self.misshapen) > 1 else ""
            shapes = f"{name!r:.100} is {list(found)!r:.60}, {config} asks for {list(expected)!r:.60}{more}"
            parts.append(f"{_count(len(self.misshapen))} misshapen ({shapes})")
        return f"{source} does not fit its {config}: {', '.join(parts)}; one of the two is of another model"

    def check(self, source: str, config: str) -> None:
        """Raises UnmaskError with that line unless everything is there."""
        if not self.holds:
            raise UnmaskError(self.line(source, config))


def compare(found: Mapping[str, Shape], expected: Mapping[str, Shape], allowed: Collection[str] = ()) -> Fit:
    """Compares a file's shapes with the expected ones; `allowed` names tensors that may be there and are not read."""
    both = [name for name in expected if name in found and found[name] != expected[name]]
    return Fit(
        tuple(name for name in expected if name not in found),
        tuple(sorted(found.keys() - expected.keys() - set(allowed))),
        tuple((name, found[name], expected[name]) for name in both),
    )


def _count(number: int) -> str:
    return f"{number} tensor{'' if number == 1 else 's'}"


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name!r:.100}" for name in names[:3]) + more
