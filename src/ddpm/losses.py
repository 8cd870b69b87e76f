"""Training losses, one value per image: shape (B,). The caller averages."""

from __future__ import annotations

from torch import Tensor

from ddpm.diffusion import Diffusion, Net


def simple(diffusion: Diffusion, net: Net, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """L_simple: the mean squared error of the prediction (Equation 14).

    Args:
        x0: (B, C, H, W) in [-1, 1].
        t: integers (B,) in 1..T.
        eps: standard normal, of x0's shape.

    Returns:
        (B,), the mean over channels and pixels.
    """
    x_t = diffusion.q_sample(x0, t, eps)
    error = net(x_t, t) - diffusion.target(x0, eps, x_t, t)
    return error.square().flatten(1).mean(1)
