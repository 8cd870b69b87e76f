"""Chapter 2: the forward process. Nothing here is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ddpm import data
from ddpm.diffusion import Diffusion
from ddpm.images import to_arrays, to_model
from ddpm.noise import Purpose, normal, rng
from ddpm.paper.sheet import sheet
from ddpm.schedule import NoiseSchedule, ScheduleName, make_schedule
from docs.figures.draw import Drawn, charts, label
from docs.figures.runs import digits_config

T = 1000
SHOWN: tuple[ScheduleName, ...] = ("linear", "quad", "cosine", "sigmoid")


def chain() -> Drawn:
    """Two scans on their way to noise, by two schedules with the same noise."""
    scans = data.load(digits_config().data, "train", progress=False)
    x0 = to_model(torch.from_numpy(scans.take(np.array([2, 13]))))
    eps = normal(rng(0, Purpose.NOISE, 0), x0.shape)
    times = [0, 50, 100, 200, 300, 400, 500, 600, 800, 1000]
    cells, rows, numbers = [], [], {}
    for name in ("linear", "cosine"):
        process = Diffusion(schedule=make_schedule(name, T))
        snr = [_snr(process.schedule, t) for t in times]
        numbers[name] = {str(t): s for t, s in zip(times[1:], snr[1:], strict=True)}
        columns = [to_arrays(process.q_sample(x0, t, eps)) for t in times]
        for i in range(len(x0)):
            cells.append(
                [
                    (column[i], "clean" if t == 0 else _short(s))
                    for column, t, s in zip(columns, times, snr, strict=True)
                ]
            )
            rows.append(name)
    page = sheet(
        cells,
        title="Equation 4: two scans on their way to noise",
        rows=rows,
        columns=[f"t = {t}" for t in times],
        note="scikit-learn's digits; the same noise in every picture of a row; below each the signal-to-noise ratio "
        "alpha_bar / (1 - alpha_bar)",
    )
    return Drawn(page, numbers)


def schedules() -> Drawn:
    """alpha_bar and the signal-to-noise ratio along time."""
    tables = {name: make_schedule(name, T).alpha_bar.numpy() for name in SHOWN}
    t = np.arange(T + 1)

    def kept(axes: Any) -> None:
        for name, a in tables.items():
            axes.plot(t, a, label=name, linewidth=1.8)
        label(axes, "share of the variance that is signal", "t", "alpha_bar_t")

    def ratio(axes: Any) -> None:
        for name, a in tables.items():
            axes.plot(t[1:], np.log10(a[1:] / (1 - a[1:])), label=name, linewidth=1.8)
        axes.set_ylim(-6, 4.5)
        label(axes, "signal-to-noise ratio", "t", "log10 SNR")

    numbers = {
        name: {"alpha_bar_T": float(a[T]), "time_of_half": int(np.argmin(abs(a - 0.5)))} for name, a in tables.items()
    }
    return Drawn(charts(kept, ratio, note=f"T = {T}; from schedule.make_schedule"), numbers)


def line() -> Drawn:
    """One-dimensional data of two values: the exact density of x_t, and walks by Equation 2."""
    schedule = make_schedule("linear", T)
    a = schedule.alpha_bar.numpy()
    x = np.linspace(-4, 4, 401)
    var = np.maximum(1 - a, 4e-4)[None]
    density = sum(np.exp(-((x[:, None] - side * np.sqrt(a)) ** 2) / (2 * var)) for side in (-1, 1))
    density /= density.max(0)
    generator = np.random.default_rng(0)
    walks = [np.sign(np.arange(8) - 3.5)]
    for beta in schedule.betas.numpy():  # Equation 2, step by step
        walks.append(np.sqrt(1 - beta) * walks[-1] + np.sqrt(beta) * generator.standard_normal(8))

    def panel(axes: Any) -> None:
        axes.imshow(density, extent=(0, T, -4, 4), origin="lower", aspect="auto", cmap="Blues", vmax=1.6)
        axes.plot(np.arange(T + 1), np.stack(walks), color="#202020", linewidth=0.5, alpha=0.8)
        axes.grid(visible=False)
        label(axes, "data at -1 and 1 become a standard normal", "t", "x_t")

    note = "Blue: the density of x_t, each column scaled to its largest. Black: eight walks, a thousand steps each."
    ends = np.stack(walks)[-1]
    return Drawn(charts(panel, note=note, width=8.4, height=3.4), {"walks_at_T": [round(float(e), 3) for e in ends]})


def _snr(schedule: NoiseSchedule, t: int) -> float:
    a = float(schedule.alpha_bar[t])
    return a / (1 - a) if t else float("inf")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else f"{value:.0e}".replace("e-0", "e-")


FIGURES = {"02-chain": chain, "02-schedules": schedules, "02-line": line}
