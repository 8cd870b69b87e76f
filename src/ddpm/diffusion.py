"""The diffusion process: Equations 2 to 12 of arXiv 2006.11239, for any pair of times t > s.

Everything the network may predict becomes an estimate of x_0 at once (`to_x0`); the reverse step, the
samplers and the bound speak x_0 alone. The process owns no network: it takes any callable
`net(x_t, t) -> out`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm.gaussian import Gaussian
from ddpm.schedule import NoiseSchedule, Steps, Time

Net = Callable[[Tensor, Tensor], Tensor]
"""(x_t of shape (B, C, H, W), t of shape (B,), 1..T) -> prediction, a plain tensor."""

PredictionKind = Literal["epsilon", "x0", "v", "mu"]
VarianceKind = Literal["fixed_small", "fixed_large", "learned", "learned_range"]


@dataclass(frozen=True)
class Dynamic:
    """Dynamic thresholding (arXiv 2205.11487, Section 2.3): clip to the image's own quantile, then scale it to 1."""

    quantile: float = 0.995
    """Of the absolute values of each image's estimate."""
    largest: float = math.inf
    """Upper bound of the value clipped to; the lower is 1."""


Clip = bool | Dynamic
"""What keeps an estimate of x_0 in range: True clamps it to [-1, 1], False leaves it alone."""


def threshold(x0: Tensor, clip: Clip) -> Tensor:
    """The estimate x0, (B, C, H, W), kept in range as `clip` says."""
    if clip is False:
        return x0
    if clip is True:
        return x0.clamp(-1, 1)
    sizes = x0.flatten(1).abs().float().quantile(clip.quantile, 1).clamp(1, clip.largest)
    bound = sizes.to(x0).view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-bound, bound) / bound


class Prediction(NamedTuple):
    """What the network says of one reverse step."""

    gaussian: Gaussian
    """p_theta(x_s | x_t)."""
    x0: Tensor
    """The estimate of x_0 behind it, (B, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The forward process q, its posterior, and the reverse process p_theta.

    A time is a number (the same for the whole batch) or a tensor of shape (B,), in 0..T.
    Coefficients are computed in float64 and cast last, to the images' dtype.
    """

    schedule: NoiseSchedule
    prediction: PredictionKind = "epsilon"
    variance: VarianceKind = "fixed_large"

    @property
    def learns_variance(self) -> bool:
        """Whether the network answers with twice the images' channels: the prediction, then the variance."""
        return self.variance in ("learned", "learned_range")

    def with_posterior_variance(self, net: Net) -> tuple[Diffusion, Net]:
        """The same predictions with the posterior's variance, for any pair of times; a learned one is left out."""
        fixed = replace(self, variance="fixed_small")
        if not self.learns_variance:
            return fixed, net
        return fixed, lambda x_t, t: net(x_t, t).chunk(2, 1)[0]

    def for_steps(self, count: int) -> Diffusion:
        """The process for a chain of `count` steps: over long ones beta leaves visible noise, the posterior's does not.

        A learned variance stays as it is.
        """
        respaced = count < self.schedule.T
        return replace(self, variance="fixed_small") if respaced and self.variance == "fixed_large" else self

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

    def eps_of(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """The noise that an estimate of x_0 leaves in x_t: Equation 4 solved for eps (t > 0)."""
        a_t = self.schedule.at(t, x_t)
        return (x_t - _cast(a_t**0.5, x_t) * x0) / _cast((1 - a_t) ** 0.5, x_t)

    def min_snr_weight(self, t: Time, gamma: float, like: Tensor) -> Tensor | float:
        """The weight of a squared error of the prediction under min-SNR (arXiv 2303.09556), shaped like `at`'s.

        An error of x_0 weighs min(SNR_t, gamma), with SNR_t = alpha_bar_t / (1 - alpha_bar_t). The error of
        another prediction is a multiple of it, whose square the weight is divided by.
        """
        a_t = self.schedule.at(t, like)
        snr = a_t / (1 - a_t)
        least = snr.clamp(max=gamma) if isinstance(snr, Tensor) else min(snr, gamma)
        match self.prediction:
            case "x0":
                weight = least
            case "epsilon":
                weight = least / snr
            case "v":
                weight = least / (snr + 1)
            case "mu":
                weight = least / self._coefficients(like, t, t - 1)[0] ** 2
        return _cast(weight, like)

    def denoise(self, net: Net, x_t: Tensor, t: Time, *, clip: Clip) -> Tensor:
        """The network's estimate of x_0 from x_t: all that a deterministic sampler asks of it."""
        out, _ = self.ask(net, x_t, t)
        return threshold(self.to_x0(out, x_t, t), clip)

    def p(
        self, net: Net, x_t: Tensor, t: Time, s: Time, *, clip: Clip, floor_log_var: float | None = None
    ) -> Prediction:
        """p_theta(x_s | x_t): the posterior with the network's estimate in the place of x_0 (Equation 11).

        Args:
            clip: how to keep the estimate in [-1, 1]; on in sampling, off in a training bound.
            floor_log_var: the log-variance that stands in at s = 0, where the posterior's is -inf
                (see `floor_log_var`); needed only where that variance is used.
        """
        out, spread = self.ask(net, x_t, t)
        x0 = threshold(self.to_x0(out, x_t, t), clip)
        posterior = self.posterior(x0, x_t, t, s)
        # mu is defined for t -> t-1, and there it is the mean itself: no round trip through a clipped x_0.
        mean = out if self.prediction == "mu" and _neighbours(t, s) else posterior.mean
        return Prediction(Gaussian(mean, self._log_var(x_t, t, s, posterior, spread, floor_log_var)), x0)

    def floor_log_var(self, steps: Steps) -> float | None:
        """The finite log-variance that replaces the last pair's: the posterior's of the pair before it.

        For all timesteps this is the authors' `posterior_variance[1]`. None if there is but one pair.
        """
        if len(steps) < 2:
            return None
        t, s = steps[-2]
        _, _, log_var = self._posterior_coefficients(self.schedule.alpha_bar, t, s)
        assert isinstance(log_var, float)
        return log_var

    def ask(self, net: Net, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor | None]:
        """The network's prediction and, where it is learned, its word on the variance, in x_t's dtype."""
        batch_t = t if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        out = net(x_t, batch_t).to(x_t.dtype)  # a network may compute in fewer bits; the process does not
        channels = x_t.shape[1] * (2 if self.learns_variance else 1)
        if out.shape[1] != channels:
            raise ValueError(f"the network answers with {out.shape[1]} channels; {self.variance} needs {channels}")
        if not self.learns_variance:
            return out, None
        prediction, spread = out.chunk(2, 1)
        return prediction, spread

    def _log_var(
        self, like: Tensor, t: Time, s: Time, posterior: Gaussian, spread: Tensor | None, floor: float | None
    ) -> Tensor | float:
        if self.variance == "learned" and spread is not None:  # Table 2's ablation: the raw logarithm
            if not _neighbours(t, s):
                raise ValueError("a variance learned for t -> t-1 says nothing of longer steps: visit every timestep")
            return spread
        small = self._floored(like, s, posterior.log_var, floor)
        if self.variance == "fixed_small":
            return small
        large = _cast(_log(1 - self.schedule.at(t, like) / self.schedule.at(s, like)), like)
        if spread is None:
            return self._floored(like, s, large, floor)
        if not isinstance(small, Tensor) and math.isinf(small):
            return small  # the end of a sampler, which takes the mean
        share = (spread + 1) / 2  # arXiv 2102.09672, Equation 15
        return share * large + (1 - share) * small

    def _floored(self, like: Tensor, s: Time, log_var: Tensor | float, floor: float | None) -> Tensor | float:
        """log_var, with `floor` (if there is one) where s = 0."""
        if floor is None:
            return log_var
        if not isinstance(log_var, Tensor):
            return floor if s == 0 else log_var
        last = torch.as_tensor(s, device=like.device).view(-1, *[1] * (like.ndim - 1)) == 0
        return torch.where(last, floor, log_var)

    def _posterior_coefficients(
        self, like: Tensor, t: Time, s: Time
    ) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """The weights of x_0 and x_t in the posterior's mean, and its log-variance, in `like`'s dtype."""
        c_0, c_t, variance = self._coefficients(like, t, s)
        return _cast(c_0, like), _cast(c_t, like), _cast(_log(variance), like)

    def _coefficients(self, like: Tensor, t: Time, s: Time) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """The weights of x_0 and x_t in the posterior's mean, and its variance, in float64."""
        a_t, a_s = self.schedule.at(t, like), self.schedule.at(s, like)
        beta = 1 - a_t / a_s
        c_0 = a_s**0.5 * beta / (1 - a_t)
        c_t = (a_t / a_s) ** 0.5 * (1 - a_s) / (1 - a_t)
        return c_0, c_t, (1 - a_s) / (1 - a_t) * beta


def _neighbours(t: Time, s: Time) -> bool:
    return bool(torch.as_tensor(t - s == 1).all())


def _log(value: Tensor | float) -> Tensor | float:
    if isinstance(value, Tensor):
        return value.log()
    return math.log(value) if value > 0 else -math.inf


def _cast(coefficient: Tensor | float, like: Tensor) -> Tensor | float:
    return coefficient.to(like) if isinstance(coefficient, Tensor) else coefficient
