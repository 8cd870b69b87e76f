"""Training losses, one value per image: shape (B,). The caller averages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.gaussian import DecoderForm
from ddpm.schedule import Time, pairs

LossKind = Literal["simple", "bound", "hybrid"]


@dataclass(frozen=True)
class Objective:
    """What training minimises, one value per image."""

    loss: LossKind = "simple"
    """`simple` is Equation 14, `bound` the bound's term L_{t-1} in bits per dimension (Equation 5), and
    `hybrid` the first plus a little of the second for the sake of a learned variance (arXiv 2102.09672)."""
    vlb_weight: float = 1e-3
    """lambda of the hybrid, L_simple + lambda L_vlb; L_vlb is the sum over all T terms, T times a term's mean."""
    min_snr_gamma: float | None = None
    """gamma of the min-SNR weights of L_simple (arXiv 2303.09556); None: no weights."""
    decoder: DecoderForm = "exact"
    """How L_0 is computed."""

    def __call__(self, diffusion: Diffusion, net: Net, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """(B,); the arguments are those of `simple`."""
        if self.loss == "bound":
            return bound(diffusion, net, x0, t, eps, decoder=self.decoder)
        x_t = diffusion.q_sample(x0, t, eps)
        out, spread = diffusion.ask(net, x_t, t)
        loss = mean_square(out - diffusion.target(x0, eps, x_t, t))
        if self.min_snr_gamma is not None:
            loss = diffusion.min_snr_weight(t, self.min_snr_gamma, loss) * loss
        if self.loss == "simple":
            return loss
        assert spread is not None, "the hybrid loss trains a learned variance"
        answer = torch.cat([out.detach(), spread], 1)  # the bound's share shapes the variance alone
        terms = _training_term(diffusion, lambda *_: answer, x0, x_t, t, self.decoder)
        return loss + self.vlb_weight * diffusion.schedule.T * terms


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
    out, _ = diffusion.ask(net, x_t, t)
    return mean_square(out - diffusion.target(x0, eps, x_t, t))


def bound(
    diffusion: Diffusion, net: Net, x0: Tensor, t: Tensor, eps: Tensor, *, decoder: DecoderForm = "exact"
) -> Tensor:
    """L_{t-1}, or L_0 where t = 1, at x_t = q_sample(x0, t, eps): (B,), bits per dimension, nothing clipped.

    T times its mean over t is the bound without L_T. The arguments are those of `simple`, and x0 holds 8-bit levels.
    """
    return _training_term(diffusion, net, x0, diffusion.q_sample(x0, t, eps), t, decoder)


def _training_term(diffusion: Diffusion, net: Net, x0: Tensor, x_t: Tensor, t: Tensor, decoder: DecoderForm) -> Tensor:
    floor = diffusion.floor_log_var(pairs(range(1, min(diffusion.schedule.T, 2) + 1)))
    return bound_term(diffusion, net, x0, x_t, t, t - 1, clip=False, floor_log_var=floor, decoder=decoder).bits


def mean_square(error: Tensor) -> Tensor:
    """(B, ...) -> (B,), over all dimensions of an image."""
    return error.square().flatten(1).mean(1)


class BoundTerm(NamedTuple):
    """One timestep's share of the variational bound (Equation 5)."""

    bits: Tensor
    """(B,), bits per dimension: L_{t-1} = KL(q(x_s | x_t, x_0) || p_theta(x_s | x_t)), or L_0 where s = 0."""
    x0: Tensor
    """The network's estimate of x_0 behind it, (B, C, H, W)."""


def bound_term(
    diffusion: Diffusion,
    net: Net,
    x0: Tensor,
    x_t: Tensor,
    t: Time,
    s: Time,
    *,
    clip: Clip,
    floor_log_var: float | None,
    decoder: DecoderForm = "exact",
) -> BoundTerm:
    """The bound's term for x_t -> x_s.

    Args:
        x0: 8-bit levels in [-1, 1], (B, C, H, W).
        x_t: a sample of q(x_t | x_0).
        t: the time of x_t, a number or integers (B,).
        s: likewise; s < t, and s = 0 asks for L_0, the decoder's
            -log p(x_0 | x_t).
        clip: off in training; on in evaluation, as the authors do.
        floor_log_var: see `Diffusion.floor_log_var`; of the list of pairs that (t, s) is from.
        decoder: see `Gaussian.log_likelihood`.
    """
    gaussian, estimate = diffusion.p(net, x_t, t, s, clip=clip, floor_log_var=floor_log_var)

    def decoder_term() -> Tensor:
        return -gaussian.log_likelihood(x0, form=decoder)

    def transition_term() -> Tensor:
        return diffusion.posterior(x0, x_t, t, s).kl(gaussian)

    if not isinstance(s, Tensor):
        nats = decoder_term() if s == 0 else transition_term()
    else:
        last = (s == 0).view(-1, *[1] * (x0.ndim - 1))
        nats = torch.where(last, decoder_term(), transition_term())
    return BoundTerm(nats.flatten(1).mean(1) / math.log(2), estimate)
