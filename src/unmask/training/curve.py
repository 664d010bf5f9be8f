"""The picture of a loss curve."""

from __future__ import annotations

from pathlib import Path

from unmask.files import replacing


def draw_curve(history: list[dict[str, float]], path: Path, title: str) -> None:
    """Training and validation loss (nats per token) over steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = [r["step"] for r in history], [r["loss"] for r in history]
    axes.plot(steps, losses, color="#b8c4d6", linewidth=0.6, label="training, each step")
    window = max(1, len(losses) // 50)
    smooth = [sum(losses[max(0, i - window) : i + 1]) / (i + 1 - max(0, i - window)) for i in range(len(losses))]
    axes.plot(steps, smooth, color="#30507a", label=f"training, mean of {window + 1}")
    checks = [(r["step"], r["validation"]) for r in history if "validation" in r]
    if checks:
        axes.plot(*zip(*checks, strict=True), "o-", color="#c1440e", markersize=3, label="held out, averaged weights")
    low, high = min(losses), sorted(losses)[int(0.98 * (len(losses) - 1))]
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title, ylim=(low - 0.1, high + 0.3))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
