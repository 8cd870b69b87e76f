"""Chapters 3, 4 and 5: what can be seen without training, or with very little."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ddpm import data
from ddpm.device import choose_device
from ddpm.schedule import make_schedule
from ddpm.training_loop import new_state, training_steps
from ddpm.unet import ResBlock, UNet, timestep_embedding
from docs.figures.draw import Drawn, charts, label
from docs.figures.runs import digits_config

T = 1000


def reverse_step() -> Drawn:
    """q(x_s | x_t) for data at -1 and 1, and the Gaussian of its mean and variance: how long a step may be."""
    a = make_schedule("linear", T).alpha_bar.numpy()
    t, x_t = 300, 0.15
    grid = np.linspace(-2.2, 2.2, 2001)
    step = grid[1] - grid[0]
    panels, numbers = [], {}
    for s in (299, 200, 50):
        # Equation 7 for each of the two values, weighted by how likely the value is, given x_t.
        b = 1 - a[t] / a[s]
        variance = (1 - a[s]) / (1 - a[t]) * b
        odds = np.array([np.exp(-((x_t - side * np.sqrt(a[t])) ** 2) / (2 * (1 - a[t]))) for side in (-1, 1)])
        odds /= odds.sum()
        means = np.array(
            [
                side * np.sqrt(a[s]) * b / (1 - a[t]) + np.sqrt(a[t] / a[s]) * (1 - a[s]) / (1 - a[t]) * x_t
                for side in (-1, 1)
            ]
        )
        exact = sum(w * _normal(grid, m, variance) for w, m in zip(odds, means, strict=True))
        mean = float((odds * means).sum())
        spread = float(variance + (odds * (means - mean) ** 2).sum())
        fitted = _normal(grid, mean, spread)
        off = float(abs(exact - fitted).sum() * step / 2)
        numbers[f"{t} to {s}"] = {"total_variation": round(off, 6)}
        panels.append(_densities(grid, exact, fitted, f"{t} to {s}: {off:.1%} in the wrong place"))
    note = (
        "Linear schedule, x_t = 0.15 at t = 300; data at -1 and 1, equally likely. The share is the total variation "
        "distance of the two curves."
    )
    return Drawn(charts(*panels, note=note, width=3.4, height=3.3), numbers)


def _normal(x: np.ndarray, mean: float, variance: float) -> np.ndarray:
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def _densities(grid: np.ndarray, exact: np.ndarray, fitted: np.ndarray, title: str) -> Any:
    def panel(axes: Any) -> None:
        near = exact + fitted > 1e-3 * exact.max()
        axes.plot(grid[near], exact[near], linewidth=1.8, label="q(x_s | x_t)")
        axes.plot(grid[near], fitted[near], linewidth=1.4, linestyle="--", label="a Gaussian")
        axes.set_yticks([])
        label(axes, title, "x_s", "density")

    return panel


def weights() -> Drawn:
    """What L_t gives an error of epsilon beside what L_simple gives it."""
    curves, numbers = {}, {}
    for name in ("linear", "cosine"):
        a = make_schedule(name, T).alpha_bar.numpy()
        beta, t = 1 - a[1:] / a[:-1], np.arange(1, T + 1)
        # Equation 12 with sigma^2 = beta_t: beta / (2 alpha (1 - alpha_bar)); t = 1 is the decoder's.
        weight = beta / (2 * (1 - beta) * (1 - a[1:]))
        curves[name] = (t[1:], weight[1:])
        numbers[name] = {str(k): round(float(weight[k - 1]), 5) for k in (2, 10, 100, 500, 1000)}

    def panel(axes: Any) -> None:
        for name, (t, weight) in curves.items():
            axes.plot(t, weight, label=f"L, {name}", linewidth=1.8)
        axes.axhline(1, color="#202020", linestyle="--", linewidth=1.2, label="L_simple")
        axes.set_xscale("log")
        axes.set_yscale("log")
        label(axes, "weight of the squared error of epsilon", "t", "weight")

    return Drawn(charts(panel, note=f"T = {T}, sigma_t^2 = beta_t", width=6.4), numbers)


def embedding() -> Drawn:
    """The timestep's sines and cosines, and how alike two timesteps look."""
    table = timestep_embedding(torch.arange(T), 128).numpy()
    alike = table @ table.T / 64

    def waves(axes: Any) -> None:
        axes.imshow(table.T, aspect="auto", cmap="RdBu", extent=(1, T, 128, 0), interpolation="nearest")
        axes.grid(visible=False)
        label(axes, "sines above, cosines below", "t", "feature")

    def likeness(axes: Any) -> None:
        for t in (1, 250, 500):
            axes.plot(np.arange(1, T + 1), alike[t - 1], label=f"with t = {t}", linewidth=1.6)
        label(axes, "cosine of the angle between two embeddings", "t", "likeness")

    numbers = {
        "neighbours": float(alike[0, 1]),
        "1 and 11": float(alike[0, 10]),
        "1 and 101": float(alike[0, 100]),
        "1 and 1000": float(alike[0, -1]),
    }
    return Drawn(charts(waves, likeness, note="unet.timestep_embedding, 128 features"), numbers)


def zero_start() -> Drawn:
    """The first 300 steps with the last layer of every branch at zero, and with it initialised like the others."""
    curves = {zero: [_losses(seed, zero=zero) for seed in range(3)] for zero in (True, False)}

    def panel(axes: Any) -> None:
        for zero, colour in ((True, "#1f5fa8"), (False, "#c8501e")):
            for n, run in enumerate(curves[zero]):
                axes.plot(
                    np.arange(1, 301),
                    _smoothed(run),
                    color=colour,
                    linewidth=1.3,
                    label=("" if n else "zero" if zero else "not zero") or None,
                )
        axes.set_yscale("log")
        label(axes, "loss of the first 300 steps", "step", "L_simple, smoothed")

    numbers = {
        "zero" if zero else "not zero": {
            "first loss": [round(run[0], 3) for run in runs],
            "steps 251 to 300": [round(float(np.mean(run[250:])), 4) for run in runs],
        }
        for zero, runs in curves.items()
    }
    note = (
        "The digits model with half its channels, batch 32, learning rate 0.003 after 100 steps of warm-up; three "
        "seeds each; an average over the last twenty steps or so."
    )
    return Drawn(charts(panel, note=note, width=6.4), numbers)


def _losses(seed: int, *, zero: bool) -> list[float]:
    config = digits_config(
        "network.channels=16", "training.batch_size=32", "training.steps=300", f"training.seed={seed}"
    )
    state = new_state(config, device=choose_device("cpu"))
    if not zero:
        _fill(state.network, seed)
    images = data.load(config.data, "train", progress=False)
    return [float(step.loss) for step in training_steps(config, state, images)]


@torch.no_grad()
def _fill(network: UNet, seed: int) -> None:
    """Initialise the layers that start at zero like all the others."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, ResBlock):
            nn.init.xavier_uniform_(module.conv2.weight)
        elif hasattr(module, "qkv"):
            nn.init.xavier_uniform_(module.out.weight)
    nn.init.xavier_uniform_(network.conv_out.weight)


def _smoothed(losses: list[float]) -> list[float]:
    smooth, mean = [], losses[0]
    for loss in losses:
        mean = 0.9 * mean + 0.1 * loss
        smooth.append(mean)
    return smooth


FIGURES = {
    "03-reverse-step": reverse_step,
    "04-weights": weights,
    "05-embedding": embedding,
    "05-zero-start": zero_start,
}
