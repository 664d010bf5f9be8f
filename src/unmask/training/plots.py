"""The pictures of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmask.files import replacing

History = list[dict[str, float]]


@contextmanager
def _axes(path: Path, title: str, xlabel: str, ylabel: str) -> Iterator[Any]:
    """Axes to draw on; the PNG is written at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    yield axes
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def plot_loss(history: History, path: Path, title: str) -> None:
    """Training and validation loss (nats per token) over steps."""
    steps = [r["step"] for r in history]
    losses = [r["loss"] for r in history]
    with _axes(path, title, "step", "loss (nats per token)") as axes:
        axes.plot(steps, losses, color="#b8c4d6", linewidth=0.6, label="training, each step")
        window = max(1, len(losses) // 50)
        smooth = [sum(losses[max(0, i - window) : i + 1]) / (i + 1 - max(0, i - window)) for i in range(len(losses))]
        axes.plot(steps, smooth, color="#30507a", label=f"training, mean of {window + 1}")
        checks = [(r["step"], r["validation"]) for r in history if "validation" in r]
        if checks:
            label = "held out, averaged weights"
            axes.plot(*zip(*checks, strict=True), "o-", color="#c1440e", markersize=3, label=label)
        high = sorted(losses)[int(0.98 * (len(losses) - 1))]
        axes.set_ylim(min(losses) - 0.1, high + 0.3)


def plot_accepted(history: History, slots: int, path: Path, title: str) -> None:
    """Held-out agreement of the first slots and accepted drafts over trained slots; nothing where none was checked."""
    checks = [r for r in history if "accepted" in r]
    if not checks:
        return
    trained = [r["step"] * slots / 1e3 for r in checks]
    with _axes(path, title, "slots trained on, thousands", "share, or tokens") as axes:
        axes.set_xscale("log")
        axes.plot(trained, [1 + r["accepted"] for r in checks], "o-", color="#c1440e", label="tokens a step in verify")
        for j, colour in ((1, "#30507a"), (2, "#6d8ab5"), (3, "#b8c4d6")):
            label = f"slot {j} names the base's best token"
            axes.plot(trained, [r[f"agree_{j}"] for r in checks], "o-", color=colour, markersize=3, label=label)
