"""The diagonal Gaussian that every transition is, and the likelihood of 8-bit levels under it (Section 3.3)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

DecoderForm = Literal["exact", "tanh"]
"""How Equation 13 is computed: without loss in the tails, or with the authors' approximation of the normal CDF."""

HALF_BIN = 1 / 255
"""Half the distance between neighbouring levels in [-1, 1]."""


class Gaussian(NamedTuple):
    """N(mean, exp(log_var)), independent in each dimension."""

    mean: Tensor
    """(B, C, H, W)."""
    log_var: Tensor | float
    """Natural logarithm of the variance, broadcastable to the mean; -inf for a point mass."""

    def sample(self, eps: Tensor) -> Tensor:
        """mean + sigma * eps, for standard normal eps of the mean's shape."""
        half = 0.5 * self.log_var
        return self.mean + _exp(half) * eps

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) in nats, one value a dimension: the mean's shape.

        Infinite where one of the two is a point mass.
        """
        ratio = self.log_var - other.log_var
        distance = (self.mean - other.mean).square() * _exp(-other.log_var)
        return 0.5 * (_exp(ratio) - 1 - ratio + distance)

    def log_likelihood(self, x0: Tensor, *, form: DecoderForm = "exact") -> Tensor:
        """log p(x0) of 8-bit levels in nats, one value a dimension (Equation 13).

        A level's probability is the mass of its bin, x0 - 1/255 to x0 + 1/255; the bins of the darkest and
        the brightest level are open.

        Args:
            x0: levels k/127.5 - 1, of the mean's shape.
            form: `exact` computes in float64 and in logarithms, finite however far off the mean is;
                `tanh` is the authors' code: an approximate normal CDF, floored at 1e-12 (-27.6 nats).

        Returns:
            The shape, dtype and device of the mean.
        """
        scale = -0.5 * torch.as_tensor(self.log_var, dtype=self.mean.dtype, device=self.mean.device)
        if form == "tanh":
            return _tanh_log_mass(x0, self.mean, scale.exp())
        device = torch.device("cpu") if self.mean.device.type == "mps" else self.mean.device  # mps has no float64
        x, mean, wide = (value.to(device).double() for value in (x0, self.mean, scale))
        return _log_mass(x, mean, wide.exp()).to(self.mean)


def _log_mass(x: Tensor, mean: Tensor, per_std: Tensor) -> Tensor:
    """The logarithm of each level's mass, float64."""
    # By symmetry the bin may lie on either side of the mean: on the left, where log Phi keeps its digits.
    side = torch.where(x > mean, -1.0, 1.0)
    centre, half = side * (x - mean) * per_std, HALF_BIN * per_std
    upper = _log_cdf(centre + half)
    lower = _log_cdf(centre - half)
    # A bin much narrower than sigma: density times width, where the difference below would lose its digits.
    narrow = half * (1 + centre.abs()) < 1e-6
    density = math.log(2 / math.sqrt(2 * math.pi)) + half.log() - 0.5 * centre.square()
    gap = torch.where(narrow, -1.0, lower - upper)
    inside = torch.where(narrow, density, upper + torch.log(-torch.expm1(gap)))
    darkest, brightest = _edges(x)
    outwards = torch.where(darkest, 1.0, -1.0) * (x - mean) * per_std + half
    return torch.where(darkest | brightest, _log_cdf(outwards), inside)


def _log_cdf(z: Tensor) -> Tensor:
    """The logarithm of the normal CDF, with a gradient that holds: torch's is lost in rounding from -1e6 on."""
    far = z < -1e4
    tail = torch.where(far, z, -1e4)
    series = -0.5 * tail.square() - torch.log(-tail * math.sqrt(2 * math.pi)) + torch.log1p(-tail.pow(-2))
    return torch.where(far, series, torch.special.log_ndtr(torch.where(far, -1.0, z)))


def _tanh_log_mass(x: Tensor, mean: Tensor, per_std: Tensor) -> Tensor:
    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper, lower = cdf(per_std * (x - mean + HALF_BIN)), cdf(per_std * (x - mean - HALF_BIN))
    darkest, brightest = _edges(x)
    mass = torch.where(darkest, upper, torch.where(brightest, 1 - lower, upper - lower))
    return mass.clamp(min=1e-12).log()


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which values are the darkest level, and which the brightest."""
    return x < -1 + HALF_BIN, x > 1 - HALF_BIN


def _exp(value: Tensor | float) -> Tensor | float:
    return value.exp() if isinstance(value, Tensor) else math.exp(value)
