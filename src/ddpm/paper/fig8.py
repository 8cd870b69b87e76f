"""Figure 8: pairs of real images interpolated in latent space, at one number of noising steps."""

from __future__ import annotations

from pathlib import Path

import torch

from ddpm.paper.chain import chain
from ddpm.paper.fig9 import draw_interpolations
from ddpm.paper.made import Made
from ddpm.paper.subject import open_subject

SHARE = 0.5
"""Noising steps before the mixture, as a share of T; the paper's 500 of 1,000."""


def make(
    source: Path,
    out: Path,
    *,
    images: int = 8,
    steps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    data_root: str | None = None,
    device: torch.device | str | None = None,
) -> Made:
    """`ddpm paper fig8 CHECKPOINT`.

    Args:
        images: real images, two a row.
        steps: sampling steps; None: all timesteps.
    """
    subject = open_subject(source, seed=seed, data_root=data_root, device=device)
    at = max(1, round(subject.T * SHARE))
    walk = chain(subject, steps=steps, quick=quick, at=[at])
    rows = [(pair, at) for pair in range(max(1, images // 2))]
    return draw_interpolations(subject, walk, rows, out, "fig8", "Interpolation in latent space")
