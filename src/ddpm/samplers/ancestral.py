"""Ancestral sampling: Algorithm 2 of the paper, on any descending sub-sequence of timesteps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.samplers.state import Noise, State
from ddpm.schedule import Steps


@torch.no_grad()
def ancestral(
    diffusion: Diffusion, net: Net, x: Tensor, steps: Steps, *, noise: Noise, clip: Clip = True
) -> Iterator[State]:
    """Draw x_s ~ p_theta(x_s | x_t) for each pair of `steps`; at s = 0 return the mean, without noise.

    Args:
        x: x_T, standard normal, (B, C, H, W).
        steps: descending (t, s) pairs, such as `schedule.spaced_steps(T, 50)`.
        noise: called with the number of each step but the last.
        clip: how each estimate of x_0 is kept in range (see `diffusion.threshold`).

    Yields:
        The state after each step; the last one's x is the sample.
    """
    for k, (t, s) in enumerate(steps):
        gaussian, x0 = diffusion.p(net, x, t, s, clip=clip)
        x = gaussian.mean if s == 0 else gaussian.sample(noise(k).to(x))
        yield State(s, x, x0)
