"""DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), multistep, of order 1 to 3, as an ODE or as an SDE.

With lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)) the step from t to s is linear in x_t but for an
integral of x_0 over lambda (Equation 8), in which x_0 is a polynomial through its last estimates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.samplers.line import alpha_bar
from ddpm.samplers.state import Noise, State
from ddpm.schedule import Steps

Order = Literal[1, 2, 3]


@torch.no_grad()
def dpm_solver(
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    steps: Steps,
    *,
    order: Order = 2,
    clip: Clip = True,
    second: Literal["midpoint", "heun"] = "midpoint",
    third: Literal["full", "halved"] = "full",
    ease_out: bool = True,
) -> Iterator[State]:
    """The deterministic solver. One network call a step; order 1 is DDIM with eta = 0.

    Args:
        x: x_T, standard normal, (B, C, H, W).
        steps: (t, s) pairs; the first steps have lower orders, for want of estimates.
        order: estimates of x_0 that the polynomial goes through.
        clip: how each estimate of x_0 is kept in range (see `diffusion.threshold`).
        second: how the slope is weighted in second-order steps: `midpoint` as in the paper's Algorithm 2,
            `heun` with the exact integral of the line.
        third: the weight of the curvature in third-order steps. `full` integrates the parabola exactly;
            `halved` is what the authors' code and diffusers do, which is of second order only.
        ease_out: in fewer than 15 steps the last but one has at most order 2 and the last order 1, as in
            diffusers. A step to s = 0 has order 1 in any case: lambda is infinite there.

    Yields:
        The state after each step. At s = 0 it is the estimate of x_0 itself.
    """
    yield from _walk(diffusion, net, x, steps, None, order, clip, second, third, ease_out)


@torch.no_grad()
def dpm_solver_sde(
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    steps: Steps,
    *,
    noise: Noise,
    order: Order = 2,
    clip: Clip = True,
    second: Literal["midpoint", "heun"] = "midpoint",
    ease_out: bool = True,
) -> Iterator[State]:
    """The same for the reverse-time SDE, which adds noise in each step; order 1 is DDIM with eta = 1.

    Args:
        noise: called with the number of each step but one to s = 0.

    The other arguments and what it yields: as `dpm_solver`.
    """
    yield from _walk(diffusion, net, x, steps, noise, order, clip, second, "full", ease_out)


class Estimate(NamedTuple):
    """What the network said on the way, and where."""

    log_snr: float
    """lambda_t"""
    x0: Tensor


def log_snr(a_t: float) -> float:
    """lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), infinite at both ends."""
    if a_t in (0, 1):
        return math.inf if a_t else -math.inf
    return 0.5 * math.log(a_t / (1 - a_t))


def _walk(
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    steps: Steps,
    noise: Noise | None,
    order: Order,
    clip: Clip,
    second: str,
    third: str,
    ease_out: bool,
) -> Iterator[State]:
    past: list[Estimate] = []
    for k, (t, s) in enumerate(steps):
        a_t, a_s = alpha_bar(diffusion, x, t), alpha_bar(diffusion, x, s)
        x0 = diffusion.denoise(net, x, t, clip=clip)
        past = [*past, Estimate(log_snr(a_t), x0)][-order:]
        used = 1 if a_s == 1 else min(len(past), len(steps) - k) if ease_out and len(steps) < 15 else len(past)

        shrink = math.sqrt(a_t / a_s * (1 - a_s) / (1 - a_t))  # exp(-h)
        h = -math.log(shrink) if shrink > 0 else math.inf
        keep = math.sqrt((1 - a_s) / (1 - a_t)) * (shrink if noise else 1)
        gathered = _integral(past[-used:], h, 2 * h if noise else h, second, third)
        x = keep * x + math.sqrt(a_s) * gathered
        if noise and a_s < 1:
            x = x + math.sqrt((1 - a_s) * (1 - shrink**2)) * noise(k).to(x)
        yield State(s, x, x0)


def _integral(past: list[Estimate], h: float, decay: float, second: str, third: str) -> Tensor:
    """The integral of x_0 over the step's lambda, of width h, against a weight that falls by exp(-decay)."""
    now = past[-1]
    constant = -math.expm1(-decay)
    if len(past) == 1:
        return constant * now.x0
    # The weights of (lambda / h) and (lambda / h)^2 in the polynomial; of the slopes per h, Newton's differences.
    linear = 1 - constant / decay if decay else 0.0
    ratio = (now.log_snr - past[-2].log_snr) / h if h else math.inf
    slope = (now.x0 - past[-2].x0) / ratio
    if len(past) == 2:
        return constant * now.x0 + (constant / 2 if second == "midpoint" else linear) * slope
    quadratic = (1 - 2 * linear / decay if decay else 0.0) * (0.5 if third == "halved" else 1)
    before = (past[-2].log_snr - past[-3].log_snr) / h if h else math.inf
    bend = (slope - (past[-2].x0 - past[-3].x0) / before) / (ratio + before)
    return constant * now.x0 + linear * (slope + ratio * bend) + quadratic * bend
