"""The variational bound on the likelihood, term by term (Equation 5), and what it says of lossy coding (Section 4.3).

-log p(x_0) <= L_T + sum_t L_{t-1} + L_0. Each L_{t-1} is measured at one sample x_t of q(x_t | x_0), so that a term
is an unbiased estimate of its expectation, and so is their sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.gaussian import DecoderForm, Gaussian
from ddpm.losses import bound_term, mean_square
from ddpm.samplers import Noise
from ddpm.schedule import Pair, Time


class Term(NamedTuple):
    """One timestep's share of the bound, of each image; float64, on the CPU."""

    bits: Tensor
    """(B,), bits per dimension: L_{t-1}, or L_0 where s = 0."""
    x0_mse: Tensor
    """(B,), mean squared error of the estimate of x_0 at x_t, in units of [-1, 1]: the distortion."""
    eps_mse: Tensor
    """(B,), mean squared error of the noise that this estimate leaves in x_t."""


class Bound(NamedTuple):
    """The raw terms of some images over K timesteps; float64, on the CPU. Columns go up with time."""

    bits: Tensor
    """(B, K + 1), bits per dimension: L_0, L_1, ..., and L_T last. Column k is the rate of the step x_t -> x_s."""
    x0_mse: Tensor
    """(B, K): column k is the distortion at the time t of column k of `bits`."""
    eps_mse: Tensor
    """(B, K)."""

    @property
    def total(self) -> Tensor:
        """(B,), the bound on -log2 p(x_0) per dimension."""
        return self.bits.sum(1)

    @property
    def rate(self) -> Tensor:
        """(B, K), bits per dimension that tell the receiver x_t: L_T and all terms of later times (Section 4.3)."""
        return self.bits[:, 1:].flip(1).cumsum(1).flip(1)


def prior_term(diffusion: Diffusion, x0: Tensor, T: int | None = None) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)), (B,) in bits per dimension; float64, on the CPU.

    Args:
        T: the time that the reverse process starts from, where that is not the schedule's last.
    """
    a_T = float(diffusion.schedule.alpha_bar[diffusion.schedule.T if T is None else T])
    last = Gaussian(math.sqrt(a_T) * x0.cpu().double(), math.log1p(-a_T))
    return last.kl(Gaussian(torch.zeros_like(last.mean), 0.0)).flatten(1).mean(1) / math.log(2)


@torch.no_grad()
def term_at(
    diffusion: Diffusion,
    net: Net,
    x0: Tensor,
    t: Time,
    s: Time,
    eps: Tensor,
    *,
    floor_log_var: float | None,
    clip: Clip = True,
    decoder: DecoderForm = "exact",
) -> Term:
    """The bound's term of the step t -> s, at x_t = q_sample(x0, t, eps): one network call.

    Args:
        x0: 8-bit levels in [-1, 1], (B, C, H, W).
        t: the time of x_t, a number or integers (B,).
        s: likewise; s = 0 asks for L_0.
        eps: standard normal, of x0's shape.
        floor_log_var: `Diffusion.floor_log_var` of the reverse process' pairs.
        clip: how each estimate of x_0 is kept in range; on in the authors' evaluation.
        decoder: see `Gaussian.log_likelihood`.
    """
    x_t = diffusion.q_sample(x0, t, eps)
    bits, estimate = bound_term(diffusion, net, x0, x_t, t, s, clip=clip, floor_log_var=floor_log_var, decoder=decoder)
    noise_error = diffusion.eps_of(estimate, x_t, t) - eps
    values = (bits, mean_square(estimate - x0), mean_square(noise_error))
    return Term(*(value.cpu().double() for value in values))  # not all devices have float64


def bound_terms(
    diffusion: Diffusion,
    net: Net,
    x0: Tensor,
    steps: Sequence[Pair],
    *,
    noise: Noise,
    clip: Clip = True,
    decoder: DecoderForm = "exact",
) -> Iterator[Term]:
    """The terms of the reverse process that visits `steps`, in their order, L_0 last.

    A shortened list is a process of its own, and its bound is a true one (a looser one than that of all timesteps).

    Args:
        steps: descending (t, s) pairs, such as `schedule.spaced_steps(T)`.
        noise: number of the step (0 is the first) -> the noise of its x_t.
    """
    floor = diffusion.floor_log_var(steps)
    for k, (t, s) in enumerate(steps):
        yield term_at(diffusion, net, x0, t, s, noise(k).to(x0), floor_log_var=floor, clip=clip, decoder=decoder)


def collect(terms: Iterable[Term], prior: Tensor) -> Bound:
    """The terms of descending times, L_0 last, as a table; `prior`: L_T, (B,)."""
    bits, x0_mse, eps_mse = (torch.stack(columns[::-1], 1) for columns in zip(*terms, strict=True))
    return Bound(torch.cat([bits, prior[:, None]], 1), x0_mse, eps_mse)


def strata(T: int, count: int | None = None) -> list[range]:
    """The timesteps 1..T in `count` consecutive parts, ascending; the first is t = 1 alone.

    A strided estimate asks for one timestep of each part and counts it for all of them. L_{t-1} falls off roughly as
    1/t, so the parts grow with t: each then carries a like share of the sum. With count = T (or None) every part is
    one timestep and nothing is estimated.

    Raises ValueError if count is not in 1..T, or is 1 while T is more.
    """
    count = T if count is None else count
    if not min(2, T) <= count <= T:
        raise ValueError(f"the number of timesteps must be in {min(2, T)}..{T}, got {count}")
    parts, start = [range(1, 2)], 2
    for left in range(count - 1, 0, -1):
        stop = round(start * ((T + 1) / start) ** (1 / left))
        stop = min(max(stop, start + 1), T + 2 - left)
        parts.append(range(start, stop))
        start = stop
    return parts


def isolate(parts: Iterable[range], times: Iterable[int]) -> list[range]:
    """`parts`, cut so that each of `times` is a part of its own: what is measured there is no estimate."""
    cuts = {t + offset for t in times for offset in (0, 1)}
    pieces = []
    for part in parts:
        edges = [part.start, *sorted(cut for cut in cuts if part.start < cut < part.stop), part.stop]
        pieces += [range(*pair) for pair in itertools.pairwise(edges)]
    return pieces


def rmse_of_levels(mse: Tensor) -> Tensor:
    """A mean squared error in units of [-1, 1] as a root-mean-square error on the scale 0..255."""
    return mse.sqrt() * 127.5
