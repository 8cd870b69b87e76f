"""The diffusion process: Equations 2 to 12 of arXiv 2006.11239, for any pair of times t > s.

Everything the network may predict becomes an estimate of x_0 at once (`to_x0`); the reverse step, the
samplers and the bound speak x_0 alone. The process owns no network: it takes any callable
`net(x_t, t) -> out`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm.gaussian import Gaussian
from ddpm.schedule import NoiseSchedule, Pair, Time

Net = Callable[[Tensor, Tensor], Tensor]
"""(x_t of shape (B, C, H, W), t of shape (B,), 1..T) -> prediction, a plain tensor."""

PredictionKind = Literal["epsilon", "x0", "v", "mu"]
VarianceKind = Literal["fixed_small", "fixed_large"]


class Prediction(NamedTuple):
    """What the network says of one reverse step."""

    gaussian: Gaussian
    """p_theta(x_s | x_t)."""
    x0: Tensor
    """The estimate of x_0 behind it, (B, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The forward process q, its posterior, and the reverse process p_theta.

    A time is a number (the same for the whole batch) or an integer tensor of shape (B,), in 0..T.
    Coefficients are computed in float64 and cast last, to the images' dtype.
    """

    schedule: NoiseSchedule
    prediction: PredictionKind = "epsilon"
    variance: VarianceKind = "fixed_large"

    def q_sample(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps  (Equation 4)."""
        a_t = self.schedule.at(t, x0)
        return _cast(a_t**0.5, x0) * x0 + _cast((1 - a_t) ** 0.5, x0) * eps

    def posterior(self, x0: Tensor, x_t: Tensor, t: Time, s: Time) -> Gaussian:
        """q(x_s | x_t, x_0) for s < t (Equations 6 and 7 where s = t - 1).

        At s = 0 it is a point mass: log_var is -inf.
        """
        c_0, c_t, log_var = self._posterior_coefficients(x_t, t, s)
        return Gaussian(c_0 * x0 + c_t * x_t, log_var)

    def target(self, x0: Tensor, eps: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """What the network should answer at x_t = q_sample(x0, t, eps)."""
        match self.prediction:
            case "epsilon":
                return eps
            case "x0":
                return x0
            case "v":  # arXiv 2202.00512
                a_t = self.schedule.at(t, x0)
                return _cast(a_t**0.5, x0) * eps - _cast((1 - a_t) ** 0.5, x0) * x0
            case "mu":
                return self.posterior(x0, x_t, t, t - 1).mean

    def to_x0(self, out: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """The estimate of x_0 that the prediction `out` at x_t amounts to: the inverse of `target`."""
        a_t = self.schedule.at(t, x_t)
        match self.prediction:
            case "epsilon":  # Equation 4 solved for x_0
                return _cast(a_t**-0.5, x_t) * x_t - _cast((1 / a_t - 1) ** 0.5, x_t) * out
            case "x0":
                return out
            case "v":
                return _cast(a_t**0.5, x_t) * x_t - _cast((1 - a_t) ** 0.5, x_t) * out
            case "mu":
                c_0, c_t, _ = self._posterior_coefficients(x_t, t, t - 1)
                return (out - c_t * x_t) / c_0

    def p(
        self, net: Net, x_t: Tensor, t: Time, s: Time, *, clip: bool, floor_log_var: float | None = None
    ) -> Prediction:
        """p_theta(x_s | x_t): the posterior with the network's estimate in the place of x_0 (Equation 11).

        Args:
            clip: clamp the estimate to [-1, 1]; on in sampling, off in a training bound.
            floor_log_var: the log-variance that stands in at s = 0, where the posterior's is -inf
                (see `floor_log_var`); needed only where that variance is used.
        """
        batch_t = t if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        out = net(x_t, batch_t)
        x0 = self.to_x0(out, x_t, t)
        if clip:
            x0 = x0.clamp(-1, 1)
        posterior = self.posterior(x0, x_t, t, s)
        # mu is defined for t -> t-1, and there it is the mean itself: no round trip through a clipped x_0.
        raw_mean = self.prediction == "mu" and bool(torch.as_tensor(t - s == 1).all())
        mean = out if raw_mean else posterior.mean
        return Prediction(Gaussian(mean, self._log_var(x_t, t, s, posterior, floor_log_var)), x0)

    def floor_log_var(self, steps: Sequence[Pair]) -> float | None:
        """The finite log-variance that replaces the last pair's: the posterior's of the pair before it.

        For all timesteps this is the authors' `posterior_variance[1]`. None if there is but one pair.
        """
        if len(steps) < 2:
            return None
        t, s = steps[-2]
        a = self.schedule.alpha_bar
        return math.log(float((1 - a[s]) / (1 - a[t]) * (1 - a[t] / a[s])))

    def _log_var(self, like: Tensor, t: Time, s: Time, posterior: Gaussian, floor: float | None) -> Tensor | float:
        match self.variance:
            case "fixed_small":
                log_var = posterior.log_var
            case "fixed_large":
                beta = 1 - self.schedule.at(t, like) / self.schedule.at(s, like)
                log_var = _cast(_log(beta), like)
        if floor is None:
            return log_var
        if not isinstance(log_var, Tensor):
            return floor if s == 0 else log_var
        last = torch.as_tensor(s, device=like.device).view(-1, *[1] * (like.ndim - 1)) == 0
        return torch.where(last, floor, log_var)

    def _posterior_coefficients(
        self, like: Tensor, t: Time, s: Time
    ) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """The weights of x_0 and x_t in the posterior's mean, and its log-variance."""
        a_t, a_s = self.schedule.at(t, like), self.schedule.at(s, like)
        beta = 1 - a_t / a_s
        c_0 = a_s**0.5 * beta / (1 - a_t)
        c_t = (a_t / a_s) ** 0.5 * (1 - a_s) / (1 - a_t)
        log_var = _log((1 - a_s) / (1 - a_t) * beta)
        return _cast(c_0, like), _cast(c_t, like), _cast(log_var, like)


def _log(value: Tensor | float) -> Tensor | float:
    if isinstance(value, Tensor):
        return value.log()
    return math.log(value) if value > 0 else -math.inf


def _cast(coefficient: Tensor | float, like: Tensor) -> Tensor | float:
    return coefficient.to(like) if isinstance(coefficient, Tensor) else coefficient
