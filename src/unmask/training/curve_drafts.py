"""The picture of what an adapter's training bought: accepted drafts against slots."""

from __future__ import annotations

from pathlib import Path

from unmask.files import replacing


def draw_accepted(history: list[dict[str, float]], slots: int, path: Path, title: str) -> None:
    """Held-out agreement of the first slots and accepted drafts over trained slots, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    checks = [r for r in history if "accepted" in r]
    if not checks:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    trained = [r["step"] * slots / 1e3 for r in checks]
    axes.plot(trained, [1 + r["accepted"] for r in checks], "o-", color="#c1440e", label="tokens a step in verify")
    for j, colour in ((1, "#30507a"), (2, "#6d8ab5"), (3, "#b8c4d6")):
        label = f"slot {j} names the base's best token"
        axes.plot(trained, [r[f"agree_{j}"] for r in checks], "o-", color=colour, markersize=3, label=label)
    axes.set(xscale="log", xlabel="slots trained on, thousands", ylabel="share, or tokens", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
