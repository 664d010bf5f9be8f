"""Pictures of results, drawn by matplotlib and written as PNG."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmask.files import replacing


@contextmanager
def picture(path: Path, size: tuple[float, float] = (7, 4), panels: int = 1, title: str = "") -> Iterator[list[Any]]:
    """Panels side by side to draw on; the picture is written at the end, whole or not at all.

    size: width and height in inches, of 110 pixels each.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    drawn = list(figure.subplots(1, panels, squeeze=False)[0])
    yield drawn
    for axes in drawn:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    if title:
        figure.suptitle(title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
