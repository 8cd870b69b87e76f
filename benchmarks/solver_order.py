"""How each solver's error falls with the number of its steps, where the answer is known.

    python -m benchmarks.solver_order docs/assets/solver_order.png

With the exact noise predictor of a known distribution the only error is the solver's. The schedule is long, so
that all times are integers; the walk stops short of the image, where every solver takes a plain step; nothing is
clipped; all is in float64.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ddpm.diffusion import Diffusion, Net
from ddpm.samplers import State, ancestral, ddim, dpm_solver, dpm_solver_sde, euler, heun, plms, pndm, unipc
from ddpm.schedule import Steps, from_betas

T = 65_536
END = T // 16
SCHEDULE = from_betas(torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64))
DIFFUSION = Diffusion(schedule=SCHEDULE, variance="fixed_small")
COUNTS = (16, 32, 64, 128, 256, 512)
"""Each divides T - END."""

Solver = Callable[..., Iterator[State]]


def walk(count: int) -> Steps:
    """`count` equal steps from T to END."""
    times = range(T, END - 1, -((T - END) // count))
    return list(itertools.pairwise(times))


def _alpha_bar(t: float) -> float:
    return float(SCHEDULE.alpha_bar[int(t)])


class Mixture:
    """Pixels that are N(mean, spread^2) or N(-mean, spread^2), with equal chances; a Gaussian where `pair` is off."""

    def __init__(self, mean: float, spread: float, *, pair: bool) -> None:
        self.mean, self.spread, self.pair = mean, spread, pair

    def net(self, x: Tensor, t: Tensor) -> Tensor:
        """E[eps | x_t] (the score times -sqrt(1 - alpha_bar))."""
        centre, variance, a = self.at(float(t[0]))
        sign = torch.tanh(centre * x / variance) if self.pair else 1.0
        return math.sqrt(1 - a) * (x - centre * sign) / variance

    def share_below(self, x: Tensor, t: float) -> Tensor:
        """The distribution function of x_t."""
        centre, variance, _ = self.at(t)
        root = math.sqrt(variance)
        high = torch.special.ndtr((x - centre) / root)
        return (high + torch.special.ndtr((x + centre) / root)) / 2 if self.pair else high

    def carried(self, x: Tensor, t: float, s: float) -> Tensor:
        """Where the probability flow takes x_t: along one dimension it keeps the share of pixels that lie below."""
        below = self.share_below(x, t)
        low, high = torch.full_like(x, -20.0), torch.full_like(x, 20.0)
        for _ in range(70):
            middle = (low + high) / 2
            under = self.share_below(middle, s) < below
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2

    def at(self, t: float) -> tuple[float, float, float]:
        """Of x_t: the centres' distance from 0, the variance about them, alpha_bar."""
        a = _alpha_bar(t)
        return math.sqrt(a) * self.mean, a * self.spread**2 + 1 - a, a


GAUSSIAN = Mixture(0.3, 0.2, pair=False)
TWO = Mixture(0.8, 0.35, pair=True)

DETERMINISTIC: dict[str, tuple[float, Solver]] = {
    "DDIM": (1, lambda *a: ddim(*a, clip=False)),
    "Euler": (1, lambda *a: euler(*a, clip=False)),
    "DPM-Solver++ 1": (1, lambda *a: dpm_solver(*a, order=1, clip=False)),
    "DPM-Solver++ 2": (2, lambda *a: dpm_solver(*a, order=2, clip=False, ease_out=False)),
    "DPM-Solver++ 3": (3, lambda *a: dpm_solver(*a, order=3, clip=False, ease_out=False)),
    "DPM-Solver++ 3, halved": (2, lambda *a: dpm_solver(*a, order=3, third="halved", clip=False, ease_out=False)),
    "UniPC 1": (2, lambda *a: unipc(*a, order=1, clip=False, ease_out=False)),
    "UniPC 2": (3, lambda *a: unipc(*a, order=2, clip=False, ease_out=False)),
    "UniPC 3": (4, lambda *a: unipc(*a, order=3, clip=False, ease_out=False)),
    "UniPC 2, bh1": (3, lambda *a: unipc(*a, order=2, variant="bh1", clip=False, ease_out=False)),
    "Heun": (2, lambda *a: heun(*a, clip=False)),
    "PNDM": (2, lambda *a: pndm(*a, clip=False)),
    "PLMS": (2, lambda *a: plms(*a, clip=False)),
}
"""Solvers of the probability flow, and the orders that their papers claim."""

STOCHASTIC: dict[str, tuple[float, Solver]] = {
    "ancestral": (1, lambda *a, noise: ancestral(*a, noise=noise, clip=False)),
    "DDIM, eta 0.5": (1, lambda *a, noise: ddim(*a, noise=noise, eta=0.5, clip=False)),
    "DDIM, eta 1": (1, lambda *a, noise: ddim(*a, noise=noise, eta=1.0, clip=False)),
    "DPM-Solver++ SDE 1": (1, lambda *a, noise: dpm_solver_sde(*a, noise=noise, order=1, clip=False, ease_out=False)),
    "DPM-Solver++ SDE 2": (2, lambda *a, noise: dpm_solver_sde(*a, noise=noise, order=2, clip=False, ease_out=False)),
    "DPM-Solver++ SDE 3": (2, lambda *a, noise: dpm_solver_sde(*a, noise=noise, order=3, clip=False, ease_out=False)),
}


def path_error(solver: Solver, data: Mixture, count: int, points: int = 41) -> float:
    """The largest distance from where the flow takes x_T, for x_T across the distribution at T."""
    _, variance, _ = data.at(T)
    start = torch.linspace(-2.5, 2.5, points, dtype=torch.float64).view(-1, 1, 1, 1) * math.sqrt(variance)
    *_, last = solver(DIFFUSION, data.net, start, walk(count))
    return float((last.x - data.carried(start, T, END)).abs().max())


def variance_error(solver: Solver, data: Mixture, count: int) -> float:
    """How far the samples' variance at END is from the data's, relatively, for Gaussian data.

    Each step is affine then, so that image number k of one batch, which sees the k-th draw alone, gives that draw's
    weight, and the squares of all weights are the variance.
    """
    net: Net = data.net
    draws = torch.eye(count + 2, dtype=torch.float64)  # x_T, then the noise of each step, then none at all

    def noise(k: int) -> Tensor:
        return draws[k + 1].view(-1, 1, 1, 1)

    _, variance, _ = data.at(T)
    start = draws[0].view(-1, 1, 1, 1) * math.sqrt(variance)
    *_, last = solver(DIFFUSION, net, start, walk(count), noise=noise)
    weights = (last.x[:-1] - last.x[-1]).flatten()
    return abs(float((weights**2).sum()) / data.at(END)[1] - 1)


def slope(errors: list[float], first: int = 2) -> float:
    """The order: by how many powers of two the error falls when the steps double, fitted from COUNTS[first] on."""
    x = torch.tensor(COUNTS[first:], dtype=torch.float64).log2()
    y = torch.tensor(errors[first:], dtype=torch.float64).log2()
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())


def measured() -> Iterator[tuple[str, str, float, list[float]]]:
    """(panel, solver, claimed order, error for each of COUNTS)."""
    for panel, data in (("Gaussian", GAUSSIAN), ("two Gaussians", TWO)):
        for name, (order, solver) in DETERMINISTIC.items():
            yield panel, name, order, [path_error(solver, data, n) for n in COUNTS]
    for name, (order, solver) in STOCHASTIC.items():
        yield "variance", name, order, [variance_error(solver, GAUSSIAN, n) for n in COUNTS]


def plot(rows: list[tuple[str, str, float, list[float]]], path: Path) -> None:
    """One panel for each distribution: error against steps, and what orders 1, 2, 3 and 4 look like."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys(panel for panel, *_ in rows))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, 5.2 * len(panels)), layout="constrained")
    for axis, panel in zip(axes, panels, strict=True):
        same: dict[str, tuple[list[str], list[float]]] = {}  # solvers that no line would tell apart
        for _, name, _, errors in (row for row in rows if row[0] == panel):
            same.setdefault(" ".join(f"{e:.1e}" for e in errors), ([], errors))[0].append(name)
        markers = itertools.cycle("osD^v<>ph*X")
        for names, errors in same.values():
            label = f"{', '.join(names)}: {slope(errors):.1f}"
            axis.loglog(COUNTS, errors, marker=next(markers), markersize=4, linewidth=1.2, label=label, base=2)
        lines = [errors for _, errors in same.values()]
        top = 0.5 * max(errors[0] for errors in lines)
        for order in (1, 2, 3, 4):
            guide = [top * (COUNTS[0] / n) ** order for n in COUNTS]
            axis.loglog(COUNTS, guide, color="0.75", linewidth=0.8, linestyle=":", base=2)
            axis.annotate(str(order), (COUNTS[-1], guide[-1]), color="0.5", fontsize=8)
        axis.set_yscale("log", base=10)
        axis.set_ylim(0.2 * min(min(errors) for errors in lines if min(errors) > 1e-8), None)
        axis.set_xticks(COUNTS, [str(n) for n in COUNTS])
        axis.minorticks_off()
        axis.set_title(TITLES[panel], fontsize=10)
        axis.set_xlabel("steps")
        axis.set_ylabel("error")
        axis.legend(fontsize=8, loc="lower left", title="solver: measured order", title_fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


TITLES = {
    "Gaussian": "one Gaussian, probability flow: largest error of x",
    "two Gaussians": "two Gaussians, probability flow: largest error of x",
    "variance": "one Gaussian, with noise: relative error of the variance",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solver_order", description=__doc__)
    parser.add_argument("picture", type=Path, nargs="?", help="where to draw it (needs matplotlib)")
    options = parser.parse_args()
    rows = list(measured())
    print("data           solver                   order  measured  errors at", ", ".join(map(str, COUNTS)), "steps")
    for panel, name, order, errors in rows:
        listed = " ".join(f"{e:.1e}" for e in errors)
        print(f"{panel:14} {name:24} {order:5.0f}  {slope(errors):8.2f}  {listed}")
    if options.picture:
        plot(rows, options.picture)


if __name__ == "__main__":
    main()
