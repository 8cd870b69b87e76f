"""Figure 5: rate and distortion against reverse-process time, and against one another."""

from __future__ import annotations

from pathlib import Path

import torch

from ddpm.charts import Line, Panel, chart, require_matplotlib
from ddpm.paper.made import Made
from ddpm.paper.subject import finish
from ddpm.paper.table4 import measured, table_text


def make(
    source: Path,
    out: Path,
    *,
    images: int | None = None,
    timesteps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    data_root: str | None = None,
    device: torch.device | str | None = None,
) -> Made:
    """`ddpm paper fig5 CHECKPOINT`; the arguments are those of `table4.make`."""
    require_matplotlib()
    done = measured(
        source, images=images, timesteps=timesteps, seed=seed, quick=quick, data_root=data_root, device=device
    )
    T = done.subject.T
    reverse = [T - t + 1 for t in done.times]
    own = [reverse[k] for k in done.own]
    time = "reverse time T - t + 1"
    per = "bits / picture dimension" if done.likelihood.padding != 1 else "bits / dimension"
    panels = [
        Panel("Distortion", time, "RMSE (0..255)", [Line(own, done.rmse)]),
        Panel("Rate", time, per, [Line(reverse, done.rate, done.rate_error)]),
        Panel("Rate and distortion", per, "RMSE (0..255)", [Line([done.rate[k] for k in done.own], done.rmse)]),
    ]
    data = done.subject.model.config.data.source
    page = chart(panels, title=f"Progressive lossy coding ({data})", note=done.words)
    return finish(out, "fig5", page, done.numbers(), table_text(done))
