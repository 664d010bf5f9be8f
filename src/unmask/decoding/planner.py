"""Which drafts and slots a step feeds: those that bring the most tokens for the time that they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from unmask.canvas import Array
from unmask.decoding.feed import TEXT, Backend, Columns, Feed
from unmask.layout import Layout

if TYPE_CHECKING:
    from unmask.decoding.methods.behind_text import SelfChecking
    from unmask.decoding.methods.draft import Verifying

SHARE = 0.06  # of a pass of one column that another costs, where nothing is measured
MEMORY = 0.98  # share of what was observed that the next pass leaves
MARGIN = 1.03  # times the tokens for a step's time without drafts that they must bring: planning has its price too
LATER = 8  # columns over which the price of a slot's draft, a column of the next pass, is averaged
TRIED = 4  # columns of the block that a request begins with, whatever its drafts are believed to come to
BELIEF = 8  # observations that an earlier belief counts for


class Costs:
    """Time of a pass by its columns, in any unit: measured at some widths, or a line through passes as they happen."""

    def __init__(self, measured: dict[int, float] | None = None) -> None:
        self.measured = measured
        self.table = np.zeros(0)  # times of passes of 0, 1, .. columns, where they are measured
        self.sums = np.zeros(5)  # of passes, columns, seconds, columns squared, columns times seconds

    def of(self, first: int, count: int = 1) -> Array:
        """Times [count] of passes of `first` columns, one more, ..."""
        if self.measured is None:
            base, slope = self._line()
            return base + slope * np.arange(first, first + count)
        if first + count > len(self.table):
            self._lay_out(self.measured, 2 * (first + count))
        return self.table[first : first + count]

    def _lay_out(self, measured: dict[int, float], size: int) -> None:
        """The table, straight between measured widths, and beyond them as between the first and the last."""
        widths = np.array(sorted(measured))
        times = np.maximum.accumulate([measured[width] for width in widths.tolist()])
        slope = (times[-1] - times[0]) / (widths[-1] - widths[0])
        columns = np.arange(size)
        self.table = np.interp(columns, widths, times) + np.maximum(columns - widths[-1], 0) * slope

    def observe(self, columns: int, seconds: float) -> None:
        """A pass took so long; one that took more than twice its time counts as twice: others had the cores."""
        if self.sums[0] > 2:
            seconds = min(seconds, 2 * float(self.of(columns)[0]))
        self.sums = MEMORY * self.sums + [1, columns, seconds, columns * columns, columns * seconds]

    def _line(self) -> tuple[float, float]:
        passes, columns, seconds, squares, products = self.sums
        spread = passes * squares - columns * columns
        if spread < 1:
            return 1 - SHARE, SHARE
        slope = max((passes * products - columns * seconds) / spread, 0.0)
        return max((seconds - slope * columns) / passes, 1e-9), slope


NOMINAL = Costs()


class Odds:
    """How often drafts of each kind held, behind what was believed before: a number, or wider counts."""

    def __init__(self, wider: Odds | None = None) -> None:
        self.wider = wider
        self.counts: dict[Hashable, tuple[int, int]] = {}  # held, and seen

    def of(self, kind: Hashable, belief: float) -> float:
        if self.wider is not None:
            belief = self.wider.of(kind, belief)
        held, seen = self.counts.get(kind, (0, 0))
        return (BELIEF * belief + held) / (BELIEF + seen)

    def note(self, kind: Hashable, holds: bool) -> None:
        held, seen = self.counts.get(kind, (0, 0))
        self.counts[kind] = (held + holds, seen + 1)
        if self.wider is not None:
            self.wider.note(kind, holds)


class Planner:
    """Plans the steps of all decoders of a backend, and remembers what came of it.

    Requests whose ids do not depend on what is fed are planned together, by what passes cost here. One that takes
    drafts by likelihood is planned alone, by SHARE and its own counts: its text must not depend on company or machine.
    """

    def __init__(self) -> None:
        self.costs: Costs | None = None
        self.odds = Odds()
        self.seconds = 0.0  # that planning took so far
        self.rest = 0.0  # seconds of a step besides its forward, of late

    @staticmethod
    def of(backend: Backend) -> Planner:
        if backend not in _PLANNERS:
            _PLANNERS[backend] = Planner()
        return _PLANNERS[backend]

    def plan(self, schemes: Sequence[Verifying], others: int, measured: Callable[[], dict[int, float] | None]) -> None:
        """Settles what each of `schemes` feeds, beside so many other requests; `measured` is asked for costs once."""
        shared = [scheme for scheme in schemes if scheme.lossless]
        if shared and self.costs is None:
            self.costs = Costs(measured())
        began = time.perf_counter()
        for scheme in schemes:
            scheme.look_up()
        if self.costs is not None and shared:
            spend(shared, self.costs, others + len(schemes) - len(shared))
        for scheme in schemes:
            if not scheme.lossless:
                spend([scheme], NOMINAL, 0)
        self.seconds += time.perf_counter() - began

    def plan_blocks(
        self, schemes: Sequence[SelfChecking], others: int, measured: Callable[[], dict[int, float] | None]
    ) -> None:
        """Settles how long the block is that each of `schemes` feeds."""
        if self.costs is None:
            self.costs = Costs(measured())
        for scheme in schemes:
            survival = scheme.survival()
            holding = float(survival[len(scheme.drafts) - scheme.forced])
            beside = others + len(schemes) - 1
            length = block_length(survival, len(scheme.drafts), holding, self.costs, self.rest, beside)
            if not scheme.row.forwards:  # drafts that nobody feeds are not counted: a request might be of another kind
                length = max(length, min(TRIED, scheme.block))
            scheme.length = length

    def observe(self, columns: int, seconds: float, rest: float = 0.0) -> None:
        """A step's forward of so many columns took so long, and the rest of the step so long."""
        self.rest = 0.9 * self.rest + 0.1 * rest
        if self.costs is not None and self.costs.measured is None:
            self.costs.observe(columns, seconds)


_PLANNERS = WeakKeyDictionary[Backend, Planner]()


def spend(schemes: Sequence[Verifying], costs: Costs, others: int) -> None:
    """Leaves requests the drafts, and gives them the slots, that bring the most expected tokens for a step's time."""
    requests = len(schemes) + others
    base = others + sum(scheme.unread for scheme in schemes)
    plain = costs.of(requests, LATER + 1)
    later = float(plain[-1] - plain[0]) / LATER
    ahead = float(plain[0] - costs.of(base)[0])  # a prompt that is read in this step is no price of its drafts
    least = MARGIN * requests / float(plain[0])

    drafts = [(chance, n) for n, scheme in enumerate(schemes) for chance in scheme.chances[1:]]
    drafts.sort(key=lambda draft: -draft[0])
    tokens = np.cumsum([requests, *(chance for chance, _ in drafts)])
    best, rate = _best(tokens, costs.of(base, len(tokens)) + ahead, least)
    counts = [0] * len(schemes)
    for _, n in drafts[:best]:
        counts[n] += 1
    for scheme, count in zip(schemes, counts, strict=True):
        scheme.leave(count)

    slots = [(value, n, outcome) for n, s in enumerate(schemes) for value, outcome in s.possible_slots(rate * later)]
    slots.sort(key=lambda slot: -slot[0])
    tokens = np.cumsum([tokens[best], *(value for value, _, _ in slots)])
    fed, rate = _best(tokens, costs.of(base + best, len(tokens)) + ahead + later * np.arange(len(tokens)), least)
    for _, n, outcome in slots[:fed]:
        schemes[n].sizes[outcome] += 1
    for scheme in schemes:
        scheme.least = rate * later


def block_length(survival: Array, drafts: int, holding: float, costs: Costs, rest: float, others: int) -> int:
    """Columns of the block that drafts what follows `drafts` drafts, 0 where none pays.

    A block of k columns and its check are two steps that write two tokens and what holds of k - 1 drafts. Behind
    drafts a block spares the first of them where all hold.

    Args:
        survival: Chance that the first 0, 1, .. drafts of a block hold, [longest block].
        holding: Chance that all drafts of this step hold.
        rest: Time of a step besides its forward, in the unit of `costs`.
        others: Columns of other requests.
    """
    longest = len(survival)
    table = costs.of(others, drafts + 2 * longest + 2)
    lengths = np.arange(2, longest + 1)
    held = np.cumsum(survival)[lengths - 1] - 1
    alone = table[1 + lengths] + rest
    rates = (2 + held) / (alone + table[lengths] + rest)
    best = int(rates.argmax())
    if rates[best] < MARGIN / (table[1] + rest):
        return 0
    if drafts and holding * alone[best] < table[drafts + 1 + lengths[best]] - table[drafts + 1]:
        return 0
    return int(lengths[best])


def _best(tokens: Array, times: Array, least: float) -> tuple[int, float]:
    """How many candidates bring the most tokens for their time, and that rate; none where it is below `least`."""
    rates = tokens / times
    best = int(rates.argmax())
    best = best if rates[best] >= least else 0
    return best, float(rates[best])


def passes(
    backend: Backend, layout: Layout, widths: Sequence[int], context: int, rounds: int, clock: Callable[[], float]
) -> dict[int, list[float]]:
    """Times of one forward of so many text tokens after `context` cached ones, every row scored."""
    backend.open(layout, 1, context + max(widths), True)
    rng = np.random.default_rng(0)

    def columns(start: int, width: int) -> Columns:
        place = np.arange(width)
        ids = rng.integers(backend.config.vocab_size // 2, backend.config.vocab_size, width)
        return Columns(ids, start + place, np.full(width, TEXT), place, start + place + 1)

    backend.forward(Feed.of([columns(0, context)], np.array([0])))
    times: dict[int, list[float]] = {width: [] for width in widths}
    for width in widths:  # one after the other: a change of shape costs a forward its own time
        for number in range(rounds + 2):
            feed = Feed.of([columns(context, width)], np.array([context]))
            began = clock()
            backend.forward(feed)
            if number >= 2:
                times[width].append(clock() - began)
    return times
