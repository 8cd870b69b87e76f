"""Charts of the lesson: white, of one hand, sharp on a screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm.charts import require_matplotlib

COLOURS = ("#1f5fa8", "#c8501e", "#2d8a4e", "#8f4fa8", "#b08a00", "#178a96")
INK, GREY, GRID = "#202020", "#6e6e6e", "#dddddd"


class Drawn(NamedTuple):
    """A finished figure."""

    picture: np.ndarray
    """uint8 (H, W, 3)."""
    numbers: dict[str, Any]
    """What it shows, for the JSON beside it: the lesson quotes no other numbers."""


def charts(*panels: Callable[[Any], None], note: str, width: float = 4.6, height: float = 3.6) -> np.ndarray:
    """Panels side by side, each drawn by a function of its axes; small print below. uint8 (H, W, 3)."""
    require_matplotlib()
    import textwrap

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = width * len(panels)
    figure = Figure(figsize=(total, height), dpi=130, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.supxlabel("\n".join(textwrap.wrap(note, int(total * 17))), x=0.01, ha="left", fontsize=8, color=GREY)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        axes.set_prop_cycle(color=COLOURS)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        panel(axes)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8, frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def label(axes: Any, title: str, x: str, y: str) -> None:
    """Title and axis labels."""
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
