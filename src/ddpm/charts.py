"""Charts on white paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from ddpm.errors import DDPMError

_INK, _BLUE, _GREY, _GRID = "#202020", "#1f5fa8", "#6e6e6e", "#dddddd"
_COLOURS = (_BLUE, "#c8501e", "#2d8a4e", "#8f4fa8", "#b08a00", "#c2447b", "#178a96", "#6b4d3a", "#202020")


@dataclass(frozen=True)
class Line:
    """One curve."""

    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    """Half the width of a band around it."""
    name: str = ""
    """In the legend; empty: none."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its curves."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    logarithmic: bool = False
    """Both axes; otherwise they begin at 0, unless a curve goes below."""
    level: tuple[str, float] | None = None
    """A named value, drawn as a dashed line across."""


def require_matplotlib() -> None:
    """Raise DDPMError where there is no matplotlib; called before the long work that a chart shows."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DDPMError("this figure needs matplotlib; install it with: pip install 'ddpm[plots]'") from error


def chart(panels: Sequence[Panel], *, title: str, note: str) -> np.ndarray:
    """Panels side by side: uint8 (H, W, 3). Raises DDPMError where there is no matplotlib."""
    require_matplotlib()
    import textwrap

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    width = max(6.0, (6.4 if panels[0].logarithmic else 4.1) * len(panels))
    figure = Figure(
        figsize=(width, 5.2 if panels[0].logarithmic else 3.9), dpi=110, facecolor="white", layout="constrained"
    )
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=_INK)
    figure.supxlabel("\n".join(textwrap.wrap(note, int(width * 17))), x=0.01, ha="left", fontsize=8, color=_GREY)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for line, colour in zip(panel.lines, cycle(_COLOURS), strict=False):
            dots = "o" if panel.logarithmic else ""
            axes.plot(line.x, line.y, linewidth=1.8, color=colour, label=line.name, marker=dots, markersize=3.5)
            if line.error is not None:
                y, half = np.asarray(line.y), np.asarray(line.error)
                axes.fill_between(line.x, y - half, y + half, color=colour, alpha=0.18, linewidth=0)
        if panel.level is not None:
            axes.axhline(panel.level[1], color=_GREY, linestyle="--", linewidth=1.2, label=panel.level[0])
        if any(line.name for line in panel.lines):
            axes.legend(fontsize=8, frameon=False)
        axes.set_title(panel.title, fontsize=11, color=_INK)
        axes.set_xlabel(panel.x, fontsize=10)
        axes.set_ylabel(panel.y, fontsize=10)
        axes.grid(color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        if panel.logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
        else:
            lowest = min((y for line in panel.lines for y in line.y), default=0)
            axes.set_ylim(bottom=None if lowest < 0 else 0)
            axes.set_xlim(left=0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
