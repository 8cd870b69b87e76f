"""Figure 2's forward half: images along the noising chain, with the signal-to-noise ratio of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from ddpm import data
from ddpm.config import load_config
from ddpm.evaluate.nll import subset
from ddpm.images import to_arrays, to_model
from ddpm.noise import ImageNoise, Purpose
from ddpm.paper.made import Made
from ddpm.paper.sheet import Cell, sheet
from ddpm.paper.subject import finish
from ddpm.training_loop import build_diffusion

COLUMNS = 9


def make(
    source: Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    images: int = 4,
    seed: int = 0,
    data_root: str | None = None,
) -> Made:
    """`ddpm paper forward CONFIG`.

    Args:
        images: how many.
        data_root: in the place of data.root.
    """
    config = load_config(source, overrides)
    diffusion = build_diffusion(config)
    section = config.data.model_copy(update={"root": data_root} if data_root else {})
    pictures = data.load(section, "train")
    index = subset(len(pictures), images)
    x0 = to_model(torch.from_numpy(pictures.take(index)))
    T, a = diffusion.schedule.T, diffusion.schedule.alpha_bar
    times = sorted({round(T * n / (COLUMNS - 1)) for n in range(COLUMNS)})
    # One and the same noise at all times, so that only its share changes along a row.
    eps = ImageNoise(seed, range(len(index)), x0.shape[1:], purpose=Purpose.LIKELIHOOD)(0)
    columns = [to_arrays(diffusion.q_sample(x0, t, eps), pictures.crop) for t in times]
    snr = [math.inf if a[t] == 1 else float(a[t] / (1 - a[t])) for t in times]
    cells: list[list[Cell]] = [[(column[i], "") for column in columns] for i in range(len(index))]
    heads = [f"t = {t}\nSNR {_short(value)}" for t, value in zip(times, snr, strict=True)]
    d = config.diffusion
    note = (
        f"x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps; SNR = alpha_bar_t / (1 - alpha_bar_t). "
        f"Schedule {d.schedule}, T = {T:,}; {source}; data: {config.data.source}; seed {seed}"
    )
    page = sheet(
        cells, title=f"The forward process: {config.data.source}, {d.schedule} schedule", columns=heads, note=note
    )
    numbers = {
        "config": str(source),
        "schedule": d.schedule,
        "step": None,
        "seed": seed,
        "data": config.data.source,
        "data_sha256": pictures.fingerprint,
        "images": index.tolist(),
        "t": times,
        "alpha_bar": [float(a[t]) for t in times],
        "snr": [value if math.isfinite(value) else None for value in snr],
        "snr_db": [10 * math.log10(value) if 0 < value < math.inf else None for value in snr],
    }
    lines = [f"{'t':>6}{'alpha_bar':>12}{'SNR':>12}"]
    lines += [f"{t:6}{float(a[t]):12.5f}{_short(value):>12}" for t, value in zip(times, snr, strict=True)]
    return finish(out, "forward", page, numbers, "\n".join(lines))


def _short(value: float) -> str:
    """Three digits, without an exponent where it can be helped."""
    if math.isinf(value):
        return "infinite"
    return f"{value:.3g}" if value >= 1e-3 or value == 0 else f"{value:.0e}".replace("e-0", "e-")
