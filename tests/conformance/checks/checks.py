"""A check: something computed here that must be equal to, or near, what a reference recorded."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conformance.checks.outcome import TOLERANCE, Kind, Outcome

if TYPE_CHECKING:
    from unmask.lm import DiffusionLM


@dataclass(frozen=True)
class Check:
    """`compute` gives the greatest difference, or in words what is not equal ("" if all is)."""

    kind: Kind
    name: str
    compute: Callable[[], float | str]
    tolerance: float = TOLERANCE


class Recorded:
    """Tensors of a fixture by name; remembers which of them a check has asked for."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self.unread = set(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        return self._tensors[name]

    def get(self, name: str) -> Tensor | None:
        self.unread.discard(name)
        return self._tensors.get(name)

    def groups(self, pattern: str, leaf: str) -> list[str]:
        """Prefixes of the tensors "PREFIX.leaf" that the pattern matches as a whole."""
        prefixes = [name.removesuffix(f".{leaf}") for name in self._tensors if name.endswith(f".{leaf}")]
        return sorted(prefix for prefix in prefixes if re.fullmatch(pattern, prefix))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Greatest absolute difference; infinities of one sign are equal. Raises ValueError if shapes differ."""
    if ours.shape != theirs.shape:
        raise ValueError(f"shape {list(ours.shape)} instead of {list(theirs.shape)}")
    ours, theirs = ours.detach().double(), theirs.double()
    apart = torch.where(ours == theirs, 0.0, (ours - theirs).abs())
    return float(apart.max()) if apart.numel() else 0.0


def unequal(ours: Any, theirs: Any) -> str:
    """In words, what of two values is not equal; empty if nothing is."""
    return "" if ours == theirs else f"{ours} instead of {theirs}"[:300]


def perform(family: str, check: Check) -> Outcome:
    """Runs a check; an exception is a check that does not hold, told in one line."""
    began = time.perf_counter()
    try:
        with torch.inference_mode():
            found = check.compute()
    except Exception as error:  # whatever goes wrong with one check, the others are still worth knowing
        found = one_line(error)
    if isinstance(found, str):
        outcome = Outcome(family, check.kind, check.name, not found, found)
    else:
        outcome = Outcome.near(family, check.kind, check.name, found, check.tolerance)
    return replace(outcome, seconds=time.perf_counter() - began)


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def not_checked(family: str, kind: Kind, name: str, reason: str) -> Outcome:
    return Outcome(family, kind, name, None, reason)


def agree(lm: DiffusionLM, kind: Kind, prefix: str, recorded: Recorded, ours: Callable[[], Tensor]) -> Iterator[Check]:
    """Our logits against `PREFIX.logits`, raw, and `PREFIX.logits_shifted`, whose row i scores position i."""
    dot = f"{prefix}." if prefix else ""
    raw, scoring = recorded[f"{dot}logits"], recorded.get(f"{dot}logits_shifted")
    yield Check(kind, f"{dot}logits", lambda: unshifted_difference(lm, ours(), raw))
    if scoring is not None:
        yield Check(kind, f"{dot}logits_shifted", lambda: difference(ours(), scoring))


def unshifted_difference(lm: DiffusionLM, ours: Tensor, raw: Tensor, valid: Tensor | None = None) -> float:
    """Ours [B, L, V], row i scoring position i, against a reference's raw logits.

    Under a shifted head its row i - 1 scores position i. valid: bool [B, L], which rows are to be compared.
    """
    valid = torch.ones(raw.shape[:2], dtype=torch.bool) if valid is None else valid
    if lm.config.shift:
        inside = valid[:, 1:] & valid[:, :-1]
        return difference(ours[:, 1:][inside], raw[:, :-1][inside])
    return difference(ours[valid], raw[valid])
