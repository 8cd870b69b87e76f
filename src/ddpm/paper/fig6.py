"""Figure 6: progressive generation, the estimates of x_0 along the reverse process."""

from __future__ import annotations

from pathlib import Path

import torch

from ddpm.images import to_arrays
from ddpm.likelihood import rmse_of_levels
from ddpm.paper.chain import Moment, chain
from ddpm.paper.made import Made
from ddpm.paper.sheet import Cell, sheet
from ddpm.paper.subject import finish, open_subject
from ddpm.progress import progress_bar

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
"""Times shown, as shares of T."""


def make(
    source: Path,
    out: Path,
    *,
    samples: int = 5,
    steps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    device: torch.device | str | None = None,
) -> Made:
    """`ddpm paper fig6 CHECKPOINT`.

    Args:
        samples: images, a row each.
        steps: sampling steps; None: all timesteps.
    """
    subject = open_subject(source, seed=seed, device=device)
    T = subject.T
    walk = chain(
        subject, steps=steps, quick=quick, at=[round(T * share) for share in SHARES], classes=subject.every_class
    )
    shown = walk.near([round(T * share) for share in SHARES])
    kept: list[Moment] = []
    with progress_bar("sampling", len(walk.steps), "step", show=True) as bar:
        for moment in walk.run(range(samples)):
            if moment.t in shown:
                kept.append(moment)
            bar.update(moment.t > 0)
    crop = subject.model.data.crop
    first = [to_arrays(moment.x[:1], crop)[0] for moment in kept]
    estimates = [to_arrays(moment.x0, crop) for moment in kept]
    cells: list[list[Cell]] = [[(array, "") for array in first]]
    cells += [[(column[i], "") for column in estimates] for i in range(samples)]
    rmse = [float(rmse_of_levels((moment.x0 - kept[-1].x).square().mean())) for moment in kept]
    page = sheet(
        cells,
        title=f"Progressive generation: estimates of x_0 ({subject.model.config.data.source})",
        rows=["sample 0\nx_t", *(f"sample {i}\nestimate" for i in range(samples))],
        columns=[f"t = {moment.t}" for moment in kept[:-1]] + ["sample"],
        note=f"{subject.words}; {walk.words}",
    )
    numbers = subject.facts(**walk.facts(), samples=samples, t=[m.t for m in kept], rmse_to_sample=rmse)
    lines = ["RMSE (0..255) between the estimate of x_0 at t and the finished sample"]
    lines += [f"{f't = {moment.t}':>10}{value:10.2f}" for moment, value in zip(kept, rmse, strict=True)]
    return finish(out, "fig6", page, numbers, "\n".join(lines))
