"""DDIM (Song, Meng, Ermon 2020, arXiv 2010.02502): fewer steps, with as much noise as wanted; and backwards."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm.diffusion import Clip, Diffusion, Net, threshold
from ddpm.samplers.line import along, alpha_bar
from ddpm.samplers.state import Noise, State
from ddpm.schedule import Steps


@torch.no_grad()
def ddim(
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    steps: Steps,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    clip: Clip = True,
    rederive: bool = True,
) -> Iterator[State]:
    """Equation 12, with sigma = eta times the posterior's standard deviation (Equation 16). One network call a step.

    Args:
        x: x_T, standard normal, (B, C, H, W).
        steps: (t, s) pairs; each is taken as it stands.
        noise: called with the number of each step that adds some; needed for eta > 0.
        eta: 0 is deterministic, 1 is ancestral sampling with the posterior's variance.
        clip: how each estimate of x_0 is kept in range (see `diffusion.threshold`).
        rederive: the noise is what the clipped estimate leaves in x_t, as in improved-diffusion. False takes
            the noise that the network meant, as diffusers does unless it is told `use_clipped_model_output`.

    Yields:
        The state after each step. At s = 0 it is the estimate of x_0 itself.

    Raises:
        ValueError: eta > 0 without noise.
    """
    if eta and noise is None:
        raise ValueError("eta > 0 needs noise")
    for k, (t, s) in enumerate(steps):
        meant = diffusion.denoise(net, x, t, clip=False)
        x0 = threshold(meant, clip)
        eps = diffusion.eps_of(x0 if rederive else meant, x, t)
        a_t, a_s = alpha_bar(diffusion, x, t), alpha_bar(diffusion, x, s)
        variance = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        x = math.sqrt(a_s) * x0 + math.sqrt(max(1 - a_s - variance, 0)) * eps
        if variance > 0 and noise is not None:
            x = x + math.sqrt(variance) * noise(k).to(x)
        yield State(s, x, x0)


@torch.no_grad()
def ddim_invert(diffusion: Diffusion, net: Net, x: Tensor, steps: Steps, *, clip: Clip = False) -> Iterator[State]:
    """DDIM with eta = 0 walked from the image to the latent: `ddim` on the same steps leads back, but for
    an error that falls as the steps grow in number. One network call a step.

    Args:
        x: x_s of the last pair of `steps`: the image, in [-1, 1], where that pair ends at 0.
        steps: the pairs that sampling takes, from T down. They are visited from the last to the first.
        clip: off, because a clipped estimate cannot be undone.

    Yields:
        The state after each step; the last one's x is the latent, x_T. An image has no noise to be asked
        for, so that the network sees it at t = 1.
    """
    for t, s in reversed(steps):
        seen = s if s > 0 else min(1, t)
        x0 = diffusion.denoise(net, x, seen, clip=clip)
        x = along(diffusion, x, diffusion.eps_of(x0, x, seen), s, t)
        yield State(t, x, x0)
