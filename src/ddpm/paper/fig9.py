"""Figures 8 and 9: two real images interpolated in latent space (Section 4.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm import samplers
from ddpm.errors import UsageError
from ddpm.images import to_arrays, to_model
from ddpm.likelihood import rmse_of_levels
from ddpm.noise import Purpose, rng
from ddpm.paper.chain import Chain, chain
from ddpm.paper.made import Made
from ddpm.paper.sheet import Cell, sheet
from ddpm.paper.subject import Subject, finish, open_subject
from ddpm.progress import progress_bar

SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0)
"""Noising steps before the mixture, as shares of T; the paper's."""
LAMBDAS = tuple(n / 10 for n in range(11))


def interpolated(walk: Chain, x0: Tensor, other: Tensor, t: int) -> Tensor:
    """x-bar_0 for each lambda of LAMBDAS, (11, C, H, W): noise both images, mix, and reverse.

    Both images get one and the same noise, and so do all lambdas and their reverse steps: along a row lambda alone
    varies.

    Args:
        x0, other: (C, H, W) in [-1, 1].
        t: one of the chain's times; 0 mixes the pixels.
    """
    skipped, noise = walk.times.index(t), walk.noise([0])
    states = samplers.interpolate(
        walk.diffusion,
        walk.subject.model.network,
        x0[None],
        other[None],
        LAMBDAS,
        walk.steps[skipped:],
        eps=noise.start(),
        noise=lambda k: noise(k + skipped),
    )
    *_, last = states
    return last.x


def make(
    source: Path,
    out: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    data_root: str | None = None,
    device: torch.device | str | None = None,
) -> Made:
    """`ddpm paper fig9 CHECKPOINT`: one pair of images, a row for each number of noising steps."""
    subject = open_subject(source, seed=seed, data_root=data_root, device=device)
    at = [round(subject.T * share) for share in SHARES]
    walk = chain(subject, steps=steps, quick=quick, at=at)
    rows = walk.near(at)
    title = "Interpolation in latent space, coarse to fine"
    return draw_interpolations(subject, walk, [(pair, t) for t in rows for pair in [0]], out, "fig9", title)


def draw_interpolations(
    subject: Subject, walk: Chain, rows: list[tuple[int, int]], out: Path, name: str, title: str
) -> Made:
    """A row for each (number of the pair, noising steps)."""
    split = subject.split()
    images = subject.images(split)
    pairs = max(pair for pair, _ in rows) + 1
    index = _different(images.labels, rng(subject.seed, Purpose.SUBSET).permutation(len(images)), 2 * pairs)
    x0 = to_model(torch.from_numpy(images.take(index)).to(subject.model.device))
    crop = subject.model.data.crop
    cells: list[list[Cell]] = []
    measured: list[dict[str, Any]] = []
    with progress_bar("interpolating", len(rows), "row", show=True) as bar:
        for pair, t in rows:
            ends = x0[2 * pair : 2 * pair + 2]
            results = interpolated(walk, ends[0], ends[1], t)
            real, made = to_arrays(ends, crop), to_arrays(results, crop)
            cells.append([(real[0], ""), *((array, "") for array in made), (real[1], "")])
            errors = [float(rmse_of_levels((results[e] - ends[e]).square().mean())) for e in (0, -1)]
            measured.append({"pair": pair, "t": t, "rmse_of_reconstructions": errors})
            bar.update()
    several = pairs > 1
    page = sheet(
        cells,
        title=f"{title} ({subject.model.config.data.source} {split.replace('_', '-')} images)",
        rows=[f"pair {pair}\nt = {t}" if several else f"t = {t}" for pair, t in rows],
        columns=["source", "rec.", *(f"{x:.1f}" for x in LAMBDAS[1:-1]), "rec.", "source"],
        note=(
            "rec.: the source itself, noised to t and reversed, nothing mixed in (lambda = 0 and 1). Both images get "
            f"the same noise. "
            f"{subject.words}; {walk.words}"
        ),
        height=56,
    )
    numbers = subject.facts(
        **walk.facts(),
        split=split,
        images=index.tolist(),
        data_sha256=images.fingerprint,
        lambdas=list(LAMBDAS),
        rows=measured,
    )
    lines = ["RMSE (0..255) of the reconstructions at both ends", f"{'pair':>6}{'t':>7}{'left':>9}{'right':>9}"]
    lines += [
        f"{row['pair']:6}{row['t']:7}" + "".join(f"{e:9.2f}" for e in row["rmse_of_reconstructions"])
        for row in measured
    ]
    return finish(out, name, page, numbers, "\n".join(lines))


def _different(labels: np.ndarray | None, order: np.ndarray, count: int) -> np.ndarray:
    """The first `count` images of `order`, passing over those that have the label of their pair's first."""
    chosen: list[int] = []
    for image in order.tolist():
        if len(chosen) == count:
            break
        if len(chosen) % 2 == 0 or labels is None or labels[image] != labels[chosen[-1]]:
            chosen.append(image)
    if len(chosen) < count:
        raise UsageError(f"--images: {count} are more than the {len(chosen)} that the split can pair")
    return np.array(chosen)
