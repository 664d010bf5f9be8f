"""The canvas in a terminal: committed, fresh and still masked positions told apart. Consumes frames only."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from unmask.canvas import NO_MASK, Frame
from unmask.files import write_text

GIVEN = "dim"
WRITTEN = "default"
FRESH = "bold black on green"
AGAIN = "bold black on yellow"
MASKED = "grey42"
HOLE = " ░░░"  # a masked token, about as wide as a word


class CanvasView:
    """One canvas as coloured text, advanced frame by frame."""

    def __init__(self, ids: list[int], mask_id: int | None, tokenizer: Tokenizer | None) -> None:
        self.ids, self.mask_id, self.tokenizer = list(ids), mask_id, tokenizer
        self.open = [token == mask_id for token in ids]
        self.noisy: set[int] = set()  # positions that hold a random token, where noise is no mask
        self.fresh: dict[int, str] = {}
        self.step = 0

    def advance(self, frame: Frame) -> None:
        """Applies a frame and remembers what it changed."""
        self.step = frame.step
        before = self.ids
        self.ids = frame.written(self.ids, NO_MASK if self.mask_id is None else self.mask_id)
        self.fresh = {}
        for position, kind in zip(frame.positions, frame.kinds, strict=True):
            self.open[position] = True
            if kind == "renoise":
                self.noisy.add(position)
                continue
            self.noisy.discard(position)
            self.fresh[position] = AGAIN if kind == "remask" else FRESH
        if frame.end:  # what moved is fresh where it came to stand
            self.fresh = {p: FRESH for p, token in enumerate(self.ids) if token != before[p]}

    def settle(self) -> None:
        """Nothing is fresh any more."""
        self.fresh = {}

    def _word(self, token: int) -> str:
        if self.tokenizer is None:
            return f"{token} "
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def _pieces(self) -> Iterator[tuple[str, str]]:
        """Text and style of every position; the space before a highlighted word is not highlighted."""
        for position, token in enumerate(self.ids):
            hole = token == self.mask_id and self.open[position]
            word = HOLE if hole else self._word(token)
            plain = MASKED if hole or position in self.noisy else WRITTEN if self.open[position] else GIVEN
            if position in self.fresh:
                rest = word.lstrip(" ")
                yield word[: len(word) - len(rest)], ""
                yield rest, self.fresh[position]
            else:
                yield word, plain

    def text(self) -> Text:
        """The canvas as one coloured text, a span for every run of one style."""
        runs = groupby(self._pieces(), key=lambda piece: piece[1])
        return Text.assemble(*(("".join(word for word, _ in run), style) for style, run in runs))

    def masks(self) -> int:
        """How many positions are still masked, or known to be noise."""
        return len(self.noisy) + sum(self.open[i] and token == self.mask_id for i, token in enumerate(self.ids))


def watch(view: CanvasView, frames: Iterable[Frame], console: Console, title: str, pause: float = 0.0) -> None:
    """Draws the canvas while frames arrive; `pause` seconds between them for eyes to follow."""
    legend = Text.assemble(("given", GIVEN), "  written  ", ("fresh", FRESH), "  ", ("░░░", MASKED), " masked")

    def panel() -> RenderableType:
        left = view.masks()
        note = f"step {view.step}" + (f", {left} masked" if left else ", done")
        return Group(Panel(view.text(), title=title, subtitle=note), legend)

    with Live(panel(), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for frame in frames:
            view.advance(frame)
            live.update(panel(), refresh=True)
            time.sleep(pause)
        view.settle()
        live.update(panel(), refresh=True)


def filmstrip(view: CanvasView, frames: list[Frame], path: Path, title: str, moments: int = 4) -> None:
    """Writes an SVG picture of the canvas at `moments` points of a run, the first and the last among them."""
    wanted = {round(i * (len(frames) - 1) / max(1, moments - 1)) for i in range(moments)}
    panels: list[RenderableType] = []
    for number, frame in enumerate(frames):
        view.advance(frame)
        if number in wanted:
            panels.append(Panel(view.text(), title=f"{title}, step {view.step} of {frames[-1].step}"))
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(Group(*panels))
    write_text(path, console.export_svg(title="unmask generate"))


def replay_side_by_side(
    views: list[tuple[str, CanvasView, list[tuple[float, Frame]]]], console: Console, slowdown: float = 1.0
) -> None:
    """Plays recorded runs together, each at its own measured pace (seconds since its start, frame)."""
    width = max(20, (console.width - 2) // len(views))
    ends = [moments[-1][0] if moments else 0.0 for _, _, moments in views]

    def panels(now: float) -> RenderableType:
        drawn = []
        for (title, view, _), end in zip(views, ends, strict=True):
            clock = f"step {view.step}, {min(now, end):.2f} s" + (" ✓" if now >= end else "")
            drawn.append(Panel(view.text(), title=title, subtitle=clock, width=width))
        return Columns(drawn, padding=0)

    events = sorted((at, index, frame) for index, (_, _, moments) in enumerate(views) for at, frame in moments)
    with Live(panels(0.0), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        began = time.perf_counter()
        for at, index, frame in events:
            wait = at * slowdown - (time.perf_counter() - began)
            if wait > 0:
                time.sleep(wait)
            views[index][1].advance(frame)
            for i, (_, view, _) in enumerate(views):
                if at >= ends[i] and i != index:
                    view.settle()
            live.update(panels(at), refresh=True)
        for _, view, _ in views:
            view.settle()
        live.update(panels(max(ends, default=0.0)), refresh=True)


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A plain table: the first column left, the others right."""
    out = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        out.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        out.add_row(*row)
    return out
