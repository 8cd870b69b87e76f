"""Editing given pictures with a trained model: interpolation, inpainting, and regeneration from a rough picture.

Each takes any `net(x_t, t)` and explicit (t, s) pairs, and yields states as the samplers do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.samplers.ancestral import ancestral
from ddpm.samplers.line import alpha_bar
from ddpm.samplers.state import Noise, State
from ddpm.schedule import Steps


def steps_below(steps: Steps, t: float) -> list[tuple[float, float]]:
    """The part of a sampler's steps from time t on: the first pair starts at t. [] for t = 0."""
    return [(min(high, t), low) for high, low in steps if low < t]


@torch.no_grad()
def interpolate(
    diffusion: Diffusion,
    net: Net,
    x0: Tensor,
    other: Tensor,
    shares: Sequence[float],
    steps: Steps,
    *,
    eps: Tensor,
    other_eps: Tensor | None = None,
    noise: Noise,
    clip: Clip = True,
) -> Iterator[State]:
    """Mix pairs of images in the latent space of the first step's time t, then decode (Figures 8 and 9).

    x_t and x'_t are drawn from q(x_t | x_0), mixed as (1 - lambda) x_t + lambda x'_t, and decoded by p.

    Args:
        x0: the one source, (B, C, H, W) in [-1, 1].
        other: the other, of the same shape.
        shares: lambdas; 0 decodes x0 alone, 1 decodes `other` alone.
        steps: descending pairs from t to 0, such as `spaced_steps(500, 100)`; none mixes the pixels.
        eps: the noise of x_t, (B, C, H, W).
        other_eps: the noise of x'_t. None: `eps`, which keeps the mixture's noise as large as a latent's is;
            with independent noise its variance shrinks by lambda^2 + (1 - lambda)^2.
        noise: called with the number of each step but the last; (B, C, H, W), shared by all lambdas, so that a row
            changes with lambda alone.

    Yields:
        First the mixtures at t, then the state after each step; the last one's x are the images. Batches hold
        all lambdas of the first pair of images, then those of the next: (B * len(shares), C, H, W).
    """
    t, count = steps[0][0] if steps else 0, len(shares)
    x_t = diffusion.q_sample(x0, t, eps)
    other_t = diffusion.q_sample(other, t, eps if other_eps is None else other_eps)
    share = torch.tensor(shares, dtype=x0.dtype, device=x0.device).view(1, count, *[1] * (x0.ndim - 1))
    # Not as a + lambda (b - a): lambda = 1 is to give b to the last bit.
    mixed = ((1 - share) * x_t[:, None] + share * other_t[:, None]).flatten(0, 1)
    yield State(t, mixed, None)

    def shared(k: int) -> Tensor:
        return noise(k).repeat_interleave(count, 0)

    yield from ancestral(diffusion, net, mixed, steps, noise=shared, clip=clip)


@torch.no_grad()
def edit(
    diffusion: Diffusion,
    net: Net,
    x0: Tensor,
    steps: Steps,
    *,
    eps: Tensor,
    noise: Noise,
    clip: Clip = True,
) -> Iterator[State]:
    """SDEdit (arXiv 2108.01073): noise a picture up to the first step's time t, and let the model take it from there.

    The larger t, the more the result is the model's and the less the picture's. At t = T the chain begins as
    sampling does, with noise alone, so that nothing is left of the picture.

    Args:
        x0: the pictures, (B, C, H, W) in [-1, 1].
        steps: descending pairs from t to 0; none returns the picture.
        eps: the noise of x_t.
        noise: called with the number of each step but the last.

    Yields:
        First the noised picture at t, then the state after each step.
    """
    t = steps[0][0] if steps else 0
    x = eps if t == diffusion.schedule.T else diffusion.q_sample(x0, t, eps)
    yield State(t, x, None)
    yield from ancestral(diffusion, net, x, steps, noise=noise, clip=clip)


def repaint_walk(steps: Steps, *, jump: int = 10, repeats: int = 10) -> list[tuple[float, float]]:
    """The steps of RePaint (arXiv 2201.09865, Section 4.2): a sampler's, with jumps back to noisier times.

    Before its last step, and every `jump` steps before that, the walk goes `jump` steps back up and comes down again,
    until it has come down `repeats` times.

    Args:
        steps: descending pairs from T to 0.
        jump: steps of the sampler that one jump goes back (the paper's j).
        repeats: how often each stretch is come down (the paper's r); 1 never goes back.

    Returns:
        (t, s) pairs, each beginning where the one before ends; a pair with t < s goes up. The network is called once
        for each that goes down.

    Raises:
        ValueError: below 1, or a jump longer than the steps before the last.
    """
    if jump < 1 or repeats < 1:
        raise ValueError(f"jump and repeats are at least 1, got {jump} and {repeats}")
    if repeats > 1 and len(steps) <= jump:
        raise ValueError(f"a jump of {jump} steps needs a sampler of {jump + 1} steps or more, got {len(steps)}")
    times = [*(t for t, _ in steps), steps[-1][1]]
    end, place = len(times) - 1, 0
    left = dict.fromkeys(range(end - 1, jump - 1, -jump), repeats - 1)
    walk = []
    while place < end:
        walk.append((times[place], times[place + 1]))
        place += 1
        if left.get(place):
            left[place] -= 1
            walk += [(times[p], times[p - 1]) for p in range(place, place - jump, -1)]
            place -= jump
    return walk


@torch.no_grad()
def inpaint(
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    walk: Steps,
    *,
    x0: Tensor,
    known: Tensor,
    noise: Noise,
    clip: Clip = True,
) -> Iterator[State]:
    """RePaint (arXiv 2201.09865, Algorithm 1): a model that knows nothing of masks fills in what is not known.

    Each step down draws the unknown pixels from p(x_s | x_t) and the known ones from q(x_s | x_0), so that both are
    at the same noise; each step up noises both alike, so that they can come to agree on the way down again.

    Args:
        x: x_T, standard normal, (B, C, H, W).
        walk: pairs from T to 0 that go down and up, from `repaint_walk`; `spaced_steps` never goes back.
        x0: the pictures, (B, C, H, W) in [-1, 1]; what they hold at unknown pixels does not matter.
        known: bool, True where a pixel is given; broadcast over x0.
        noise: called with the number of each step but the last.

    Yields:
        The state after each step; the last one's x equals x0, to the last bit, where it is known.
    """
    for k, (t, s) in enumerate(walk):
        if s > t:
            x = _noised(diffusion, x, t, s, noise(k).to(x))
            yield State(s, x, None)
            continue
        gaussian, estimate = diffusion.p(net, x, t, s, clip=clip)
        if s == 0:
            x = torch.where(known, x0, gaussian.mean)
        else:  # the pixels are either known or not: one draw of noise serves both
            eps = noise(k).to(x)
            x = torch.where(known, diffusion.q_sample(x0, s, eps), gaussian.sample(eps))
        yield State(s, x, estimate)


def _noised(diffusion: Diffusion, x_s: Tensor, s: float, t: float, eps: Tensor) -> Tensor:
    """A draw from q(x_t | x_s), t > s: Equation 2 over several steps."""
    a_s, a_t = alpha_bar(diffusion, x_s, s), alpha_bar(diffusion, x_s, t)
    return math.sqrt(a_t / a_s) * x_s + math.sqrt(1 - a_t / a_s) * eps
