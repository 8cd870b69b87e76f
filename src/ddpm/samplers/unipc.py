"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor like DPM-Solver++'s, corrected at no further network call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.samplers.dpm_solver import Estimate, Order, log_snr
from ddpm.samplers.line import alpha_bar
from ddpm.samplers.state import State
from ddpm.schedule import Steps

Variant = Literal["bh1", "bh2"]


class _Step(NamedTuple):
    """A predictor's step, kept until the corrector takes it again."""

    x: Tensor
    a_t: float
    a_s: float
    past: list[Estimate]
    """As many as its order, newest last."""


@torch.no_grad()
def unipc(
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    steps: Steps,
    *,
    order: Order = 2,
    variant: Variant = "bh2",
    clip: Clip = True,
    correct: bool = True,
    ease_out: bool = True,
) -> Iterator[State]:
    """UniPC-p with B(h) as `variant` says, on estimates of x_0. One network call a step.

    Args:
        x: x_T, standard normal, (B, C, H, W).
        steps: (t, s) pairs; the first steps have lower orders, for want of estimates.
        order: the predictor's, p; the corrector adds one.
        variant: B(h) = h (bh1) or exp(h) - 1 (bh2, better in few steps according to the paper).
        clip: how each estimate of x_0 is kept in range (see `diffusion.threshold`).
        correct: False leaves the corrector out (UniP).
        ease_out: the last steps have orders ..., 2, 1, as the authors do. A step to s = 0 has order 1 in any case.

    Yields:
        The state after each step as predicted; the next step begins by correcting it. At s = 0 it is the
        estimate of x_0 itself.
    """
    past: list[Estimate] = []
    last: _Step | None = None
    for k, (t, s) in enumerate(steps):
        a_t, a_s = alpha_bar(diffusion, x, t), alpha_bar(diffusion, x, s)
        x0 = diffusion.denoise(net, x, t, clip=clip)
        if correct and last is not None:
            x = _take(last, variant, ahead=Estimate(log_snr(a_t), x0))
        past = [*past, Estimate(log_snr(a_t), x0)][-order:]
        used = 1 if a_s == 1 else min(len(past), len(steps) - k) if ease_out else len(past)
        # Pure noise is infinitely far off in lambda: nothing is interpolated from there.
        near = [one for one in past[-used:-1] if math.isfinite(one.log_snr)]
        step = _Step(x, a_t, a_s, [*near, past[-1]])
        last = step if a_t > 0 else None
        x = _take(step, variant)
        yield State(s, x, x0)


def _take(step: _Step, variant: Variant, ahead: Estimate | None = None) -> Tensor:
    """Equation 3's step from step.x; with the estimate at its end, `ahead`, Equation 4's."""
    *others, now = step.past
    h = log_snr(step.a_s) - now.log_snr
    keep, gain = math.sqrt((1 - step.a_s) / (1 - step.a_t)), math.sqrt(step.a_s)
    moved = keep * step.x - gain * math.expm1(-h) * now.x0
    points = [*reversed(others), *([ahead] if ahead else [])]
    if not points:
        return moved
    ratios = [(one.log_snr - now.log_snr) / h for one in points]
    scale = -h if variant == "bh1" else math.expm1(-h)
    weights = _weights(ratios, h, scale)
    slopes = (w / r * (one.x0 - now.x0) for w, r, one in zip(weights, ratios, points, strict=True))
    return moved - gain * scale * sum(slopes, torch.zeros_like(moved))


def _weights(ratios: Sequence[float], h: float, scale: float) -> list[float]:
    """rho_1..rho_p: the solution of R rho = b (Theorem 3.1); with one point 1/2 for any h, as the authors do."""
    if len(ratios) == 1:
        return [0.5]
    rows, right = [], []
    phi = math.expm1(-h) / -h - 1  # -h phi_2(-h), then -h phi_3(-h), ...
    factorial = 1
    for power in range(len(ratios)):
        rows.append([ratio**power for ratio in ratios])
        right.append(phi * factorial / scale)
        factorial *= power + 2
        phi = phi / -h - 1 / factorial
    return [float(w) for w in np.linalg.solve(np.array(rows), np.array(right))]
