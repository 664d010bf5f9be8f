"""What an engine has done so far, in numbers: written by its thread, read by any."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque

from unmask.canvas import Frame

WINDOW = 10.0  # seconds over which a rate is the current one


class Histogram:
    """Counts of values up to each bound, their sum and number."""

    def __init__(self, *bounds: float) -> None:
        self.bounds, self.counts = bounds, [0] * (len(bounds) + 1)
        self.total, self.number = 0.0, 0

    def add(self, value: float) -> None:
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.total += value
        self.number += 1


class Figures:
    """Counters since the start. Tokens are those committed, beyond an end of text too."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()  # forwards, by model
        self.row_steps: Counter[str] = Counter()  # the same, counted once for every request in them
        self.tokens: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)  # spent in steps
        self.batch = Histogram(1, 2, 4, 8, 16, 32, 64, 128)
        self.per_step = Histogram(0, 1, 2, 3, 4, 8, 16, 32, 64)  # tokens that a request got from a step
        self.kept = Histogram(0, 1, 2, 3, 4, 8, 16, 32)  # drafts that held at a check
        self.queued = Histogram(0.001, 0.01, 0.1, 1, 5, 10, 30, 60)  # seconds in line
        self._recent: deque[tuple[float, int]] = deque(maxlen=4096)

    def stepped(self, model: str, seconds: float, rows: int, frames: list[Frame]) -> None:
        """One forward of `rows` requests, of which `frames` changed."""
        written = [sum(kind in ("unmask", "insert") for kind in frame.kinds) for frame in frames]
        self.steps[model] += 1
        self.row_steps[model] += rows
        self.tokens[model] += sum(written)
        self.seconds[model] += seconds
        self.batch.add(rows)
        for n in (*written, *[0] * (rows - len(written))):
            self.per_step.add(n)
        self._recent.append((time.monotonic(), sum(written)))

    def finished(self, accepted: list[int]) -> None:
        """A request ended, that kept so many drafts at each of its checks."""
        for n in accepted:
            self.kept.add(n)

    def waited(self, seconds: float) -> None:
        """A request left the line."""
        self.queued.add(seconds)

    def rate(self) -> float:
        """Tokens a second over the last seconds."""
        since = time.monotonic() - WINDOW
        return sum(n for moment, n in list(self._recent) if moment >= since) / WINDOW
