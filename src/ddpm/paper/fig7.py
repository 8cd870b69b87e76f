"""Figure 7: samples that share x_t, for several t. The later in the reverse process they part, the more they share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ddpm.images import to_arrays
from ddpm.likelihood import rmse_of_levels
from ddpm.paper.chain import chain
from ddpm.paper.made import Made
from ddpm.paper.sheet import Cell, sheet
from ddpm.paper.subject import finish, open_subject
from ddpm.progress import progress_bar

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Times at which the samples part, as shares of T; the paper's."""


def make(
    source: Path,
    out: Path,
    *,
    samples: int = 8,
    steps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    device: torch.device | str | None = None,
) -> Made:
    """`ddpm paper fig7 CHECKPOINT`.

    Args:
        samples: images that share each x_t.
        steps: sampling steps; None: all timesteps.
    """
    subject = open_subject(source, seed=seed, device=device)
    at = [max(1, round(subject.T * share)) for share in SHARES]
    walk = chain(subject, steps=steps, quick=quick, at=at)
    shared: dict[int, Tensor] = {}
    cells: list[list[Cell]] = []
    spread: dict[int, float] = {}
    crop = subject.model.data.crop
    total = len(walk.steps) + sum(len(walk.steps) - walk.times.index(t) for t in walk.near(at))
    with progress_bar("sampling", total, "step", show=True) as bar:
        for moment in walk.run([0]):
            if moment.t in at:
                shared[moment.t] = moment.x
            bar.update(moment.t > 0)
        for t, x in shared.items():
            # Other images' noise from here on: image 0's own continuation is not among them.
            for moment in walk.run(range(1, samples + 1), start=t, x=x.expand(samples, -1, -1, -1)):
                last = moment.x
                bar.update(moment.t > 0)
            spread[t] = _spread(last)
            arrays = to_arrays(last, crop)
            cells.append([(to_arrays(x, crop)[0], ""), *((array, "") for array in arrays)])
    page = sheet(
        cells,
        title=f"Samples that share x_t ({subject.model.config.data.source})",
        rows=[f"t = {t}\nspread {spread[t]:.1f}" for t in shared],
        columns=["x_t", *(f"{i + 1}" for i in range(samples))],
        note=f"Spread: RMSE (0..255) between two samples of a row. {subject.words}; {walk.words}",
    )
    numbers = subject.facts(**walk.facts(), samples=samples, t=list(shared), rmse_between_samples=list(spread.values()))
    lines = ["RMSE (0..255) between samples that share x_t"]
    lines += [f"{f't = {t}':>10}{value:10.2f}" for t, value in spread.items()]
    return finish(out, "fig7", page, numbers, "\n".join(lines))


def _spread(x: Tensor) -> float:
    """Root mean square difference of two of the images, averaged over all pairs, on the scale 0..255."""
    if len(x) < 2:
        return 0.0
    return float(rmse_of_levels(2 * x.var(0).mean()))
