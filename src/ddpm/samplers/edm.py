"""Euler and Heun, deterministic or with churn (Karras et al. 2022, arXiv 2206.00364, Algorithms 1 and 2).

They speak of x / sqrt(alpha_bar), in which the noise has the size sigma, and solve d x / d sigma = eps. Here x
stays the process's own; `line.along` is Euler's step in their variables, written in ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.samplers.line import PURE, along, alpha_bar
from ddpm.samplers.state import Noise, State
from ddpm.schedule import Steps


@dataclass(frozen=True)
class Churn:
    """Noise that is added before each step and taken away by it (Algorithm 2)."""

    amount: float = 0.0
    """S_churn: spread over all steps; each raises sigma by at most a factor of sqrt(2)."""
    lowest: float = 0.0
    """S_tmin: no noise is added where sigma is below."""
    highest: float = math.inf
    """S_tmax: nor where it is above."""
    scale: float = 1.0
    """S_noise: standard deviation of what is added."""


@torch.no_grad()
def euler(
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    steps: Steps,
    *,
    noise: Noise | None = None,
    churn: Churn | None = None,
    clip: Clip = True,
) -> Iterator[State]:
    """Euler's method in sigma. One network call a step; without churn it is DDIM with eta = 0.

    Args and yields: as `heun`.
    """
    yield from _walk(diffusion, net, x, steps, noise, churn, clip, PURE, second=False)


@torch.no_grad()
def heun(
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    steps: Steps,
    *,
    noise: Noise | None = None,
    churn: Churn | None = None,
    clip: Clip = True,
    pure: float = PURE,
) -> Iterator[State]:
    """Heun's method in sigma, second order: 2 K - 1 network calls for K steps that end at 0.

    Steps out of pure noise are Euler's, with one call.

    Args:
        x: x_T, standard normal, (B, C, H, W).
        steps: (t, s) pairs; times may lie between two integers.
        noise: called with the number of each step that adds some; needed for churn.
        churn: None is deterministic. Where the noise would exceed the model's largest, at the start, less is added.
        clip: how each estimate of x_0 is kept in range (see `diffusion.threshold`).
        pure: the alpha_bar below which a step is Euler's (see `line.PURE`).

    Yields:
        The state after each step, whose x0 is the estimate at the step's start. A step to s = 0 is Euler's, and
        ends in that estimate.

    Raises:
        ValueError: churn without noise.
    """
    yield from _walk(diffusion, net, x, steps, noise, churn, clip, pure, second=True)


def _walk(
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    steps: Steps,
    noise: Noise | None,
    churn: Churn | None,
    clip: Clip,
    pure: float,
    *,
    second: bool,
) -> Iterator[State]:
    if churn and churn.amount and noise is None:
        raise ValueError("churn needs noise")
    for k, (t, s) in enumerate(steps):
        if churn and churn.amount and noise:
            t, x = _churned(diffusion, x, t, min(churn.amount / len(steps), math.sqrt(2) - 1), churn, noise, k)
        x0 = diffusion.denoise(net, x, t, clip=clip)
        eps = diffusion.eps_of(x0, x, t)
        ahead = diffusion.q_sample(x0, s, eps)
        # There is no eps in an image, and none that is exact enough for a slope in pure noise.
        if second and s > 0 and alpha_bar(diffusion, x, t) > pure:
            eps_ahead = diffusion.eps_of(diffusion.denoise(net, ahead, s, clip=clip), ahead, s)
            ahead = along(diffusion, x, (eps + eps_ahead) / 2, t, s)
        x = ahead
        yield State(s, x, x0)


def _churned(
    diffusion: Diffusion, x: Tensor, t: float, gamma: float, churn: Churn, noise: Noise, k: int
) -> tuple[float, Tensor]:
    """A higher time and the images with the noise that belongs there (Algorithm 2, lines 4 to 6)."""
    sigma = diffusion.schedule.sigma(t)
    if not churn.lowest <= sigma <= churn.highest or math.isinf(sigma):
        return t, x
    higher = diffusion.schedule.time_of(sigma * (1 + gamma))
    added = diffusion.schedule.sigma(higher) ** 2 - sigma**2
    if added <= 0:
        return t, x
    a_t, a_higher = alpha_bar(diffusion, x, t), alpha_bar(diffusion, x, higher)
    return higher, math.sqrt(a_higher) * (x / math.sqrt(a_t) + math.sqrt(added) * churn.scale * noise(k).to(x))
