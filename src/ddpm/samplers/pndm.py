"""PNDM (Liu et al. 2022, arXiv 2202.09778): classical Runge-Kutta and multistep rules for eps, on DDIM's curve."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.samplers.line import PURE, along, alpha_bar
from ddpm.samplers.state import State
from ddpm.schedule import Steps

_ADAMS = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
"""Adams-Bashforth: weights of the newest eps, the one before, ..."""


@torch.no_grad()
def pndm(
    diffusion: Diffusion, net: Net, x: Tensor, steps: Steps, *, clip: Clip = True, pure: float = PURE
) -> Iterator[State]:
    """F-PNDM: three Runge-Kutta steps (Equation 13), then linear multistep ones (Equation 12).

    K + 9 network calls for K >= 4 steps. The rules take the steps for equally long: spacings `linspace`, `leading`
    and `trailing`.

    Args:
        x: x_T, standard normal, (B, C, H, W).
        steps: (t, s) pairs.
        clip: how each estimate of x_0 is kept in range (see `diffusion.threshold`).
        pure: the alpha_bar below which a step is DDIM's (see `line.PURE`).

    Yields:
        The state after each step. A step to s = 0, or out of pure noise, needs no more than one call.
    """
    yield from _walk(diffusion, net, x, steps, clip, pure, runge_kutta=True)


@torch.no_grad()
def plms(
    diffusion: Diffusion, net: Net, x: Tensor, steps: Steps, *, clip: Clip = True, pure: float = PURE
) -> Iterator[State]:
    """The linear multistep rule from the start, whose first step is Heun's: K + 1 network calls for K steps.

    This is the PLMS sampler of latent diffusion, and diffusers' PNDM with `skip_prk_steps`.
    Args and yields: as `pndm`.
    """
    yield from _walk(diffusion, net, x, steps, clip, pure, runge_kutta=False)


def _walk(
    diffusion: Diffusion, net: Net, x: Tensor, steps: Steps, clip: Clip, pure: float, *, runge_kutta: bool
) -> Iterator[State]:
    past: list[Tensor] = []

    def ask(x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        x0 = diffusion.denoise(net, x_t, t, clip=clip)
        return x0, diffusion.eps_of(x0, x_t, t)

    for k, (t, s) in enumerate(steps):
        x0, eps = ask(x, t)
        past = [eps, *past][:4]
        if alpha_bar(diffusion, x, t) <= pure:
            x = diffusion.q_sample(x0, s, eps)  # DDIM's step
        elif s == 0:
            mixed = _mixed(past)
            x = x0 if mixed is eps else along(diffusion, x, mixed, t, s)
        elif runge_kutta and k < 3:
            middle = t - (t - s) // 2 if t == int(t) and s == int(s) else (t + s) / 2
            _, second = ask(along(diffusion, x, eps, t, middle), middle)
            _, third = ask(along(diffusion, x, second, t, middle), middle)
            _, fourth = ask(along(diffusion, x, third, t, s), s)
            x = along(diffusion, x, (eps + 2 * second + 2 * third + fourth) / 6, t, s)
        elif not runge_kutta and k == 0:
            _, end = ask(along(diffusion, x, eps, t, s), s)
            x = along(diffusion, x, (eps + end) / 2, t, s)
        else:
            x = along(diffusion, x, _mixed(past), t, s)
        yield State(s, x, x0)


def _mixed(past: list[Tensor]) -> Tensor:
    """The eps that stands for the whole step, from those at the last one to four steps' starts, newest first."""
    if len(past) == 1:
        return past[0]
    mixed = past[0] * _ADAMS[len(past)][0]
    for weight, eps in zip(_ADAMS[len(past)][1:], past[1:], strict=True):
        mixed = mixed + weight * eps
    return mixed
