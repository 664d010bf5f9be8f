"""How much work a grammar may cost before it is refused, so that no schema can hang whoever compiles it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from unmask.errors import UnmaskError


class TooLarge(UnmaskError):
    """A grammar that costs more than it may; a smaller part of its texts might not."""


@dataclass
class Effort:
    """Counts what a compilation has made and spent. Every part of it asks here before it grows."""

    seconds: float = 5.0  # of this thread's work
    nodes: int = 200_000  # parts of the expanded expression
    states: int = 40_000  # of a deterministic automaton
    entries: int = 8_000_000  # steps of the automaton over tokens, 20 bytes each
    started: float = field(default_factory=time.thread_time)
    made: int = 0

    def spend(self, nodes: int = 1) -> None:
        """Notes parts made; raises UnmaskError when they or the time are too many."""
        self.made += nodes
        if self.made > self.nodes:
            raise too_large(f"expanded it has more than {self.nodes} parts")
        if self.made % 256 < nodes:
            self.check_time()

    def check_states(self, count: int) -> None:
        if count > self.states:
            raise too_large(f"its automaton has more than {self.states} states")

    def check_time(self) -> None:
        if time.thread_time() - self.started > self.seconds:
            raise too_large(f"compiling it takes more than {self.seconds:g} seconds")


def too_large(why: str) -> TooLarge:
    return TooLarge(f"the grammar is too large: {why}; use smaller bounds, fewer alternatives or less nesting")
