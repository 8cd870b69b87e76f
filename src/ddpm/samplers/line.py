"""The deterministic step that DDIM, Heun and PNDM share."""

from __future__ import annotations

import math

from torch import Tensor

from ddpm.diffusion import Diffusion


def along(diffusion: Diffusion, x: Tensor, eps: Tensor, t: float, s: float) -> Tensor:
    """x_s from x_t if the noise in it is `eps` all the way (arXiv 2010.02502, Equation 12 with eta = 0).

    With x / sqrt(alpha_bar) for x it is Euler's step d sigma * eps. s may be above or below t; alpha_bar_t > 0.
    """
    a_t, a_s = alpha_bar(diffusion, x, t), alpha_bar(diffusion, x, s)
    keep = math.sqrt(a_s / a_t)
    return keep * x + (math.sqrt(1 - a_s) - keep * math.sqrt(1 - a_t)) * eps


PURE = 1e-5
"""The alpha_bar below which x_t counts as pure noise. A slope there, averaged from several, would blow up the network's
smallest error by sigma > 300 (20,000 at the end of the cosine schedule): solvers that mix eps take DDIM's step.
What they call `pure` is this; with 0 they mix wherever they can, as peers do."""


def alpha_bar(diffusion: Diffusion, x: Tensor, t: float) -> float:
    """alpha_bar_t, which is a plain number where t is."""
    a_t = diffusion.schedule.at(t, x)
    assert isinstance(a_t, float)
    return a_t
