"""Quality against network calls as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddpm.errors import DDPMError
from ddpm.evaluate.comparison import FEWEST, Floors
from ddpm.evaluate.sampler_benchmark import Cell


def curves(cells: Sequence[Cell], limits: Floors, *, fid: bool, note: str) -> np.ndarray:
    """One curve a sampler, KID and, if wanted, FID, with the floor dashed: uint8 (H, W, 3).

    Raises DDPMError where there is no matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DDPMError("the picture needs matplotlib; install it with: pip install 'ddpm[plots]'") from error
    names = list(dict.fromkeys(cell.sampler for cell in cells))
    figure = Figure(figsize=(11 if fid else 6.5, 4.6), dpi=110, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    floor = limits.unseen or limits.halves
    kinds = ["KID"] + ["FID"] * fid
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), place + 1)
        for k, name in enumerate(names):
            own = sorted((c for c in cells if c.sampler == name), key=lambda c: c.calls)
            y = [c.distances.kid.value if kind == "KID" else c.distances.fid or 0.0 for c in own]
            marker = "osD^v<>Ph"[k % 9]
            axes.plot([c.calls for c in own], y, marker=marker, markersize=4, linewidth=1.5, label=name)
        level = floor.kid.value if kind == "KID" else floor.fid or 0.0
        axes.axhline(level, color="#202020", linestyle="--", linewidth=1, label="floor: real images")
        axes.set_xscale("log")
        ticks = sorted({c.calls for c in cells})
        axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8, rotation=45)
        axes.minorticks_off()
        least = min(floor.kid.error if kind == "KID" else level, *[1.0])
        axes.set_yscale("symlog", linthresh=max(least, 1e-6))
        axes.set_xlabel("network calls an image")
        axes.set_ylabel(f"{kind} (smaller is better)")
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    few = f" Fewer than {FEWEST:,} images: the FIDs are biased upwards." if fid and any(c.few for c in cells) else ""
    figure.supxlabel(note + few, x=0.01, ha="left", fontsize=8, color="#6e6e6e")
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
