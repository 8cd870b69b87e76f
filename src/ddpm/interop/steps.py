"""Peers' lists of timesteps, as our (t, s) pairs, and what else their samplers do at the ends.

Peers count from 0, where 0 means one noising step: their t is our t + 1. Their lists may start below T, step
to times that they do not visit next, or end at t = 1: a sampler of ours takes each pair as it stands.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ddpm.choices import SamplerName
from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.samplers import Noise, State, ancestral, ddim
from ddpm.schedule import NoiseSchedule, Pair, Steps, pairs

DiffusersSpacing = Literal["leading", "trailing", "linspace"]


def improved_steps(T: int, sections: Sequence[int] | str) -> list[Pair]:
    """The pairs of improved-diffusion's respacing (its `space_timesteps`).

    Args:
        sections: steps to take from each of len(sections) equal parts of 1..T, evenly spaced with both
            ends of a part included; or "ddimN": N steps at one constant integer stride, from 1 upwards;
            or the same list as text, "10,20".

    Raises:
        ValueError: more steps than a section has, or no stride gives N.
    """
    if isinstance(sections, str):
        if sections.startswith("ddim"):
            count = int(sections[4:])
            for stride in range(1, T):
                if len(range(0, T, stride)) == count:
                    return pairs([1 + t for t in range(0, T, stride)])
            raise ValueError(f"no integer stride takes exactly {count} of {T} steps")
        sections = [int(part) for part in sections.split(",")]
    times: list[int] = []
    start = 1
    for i, count in enumerate(sections):
        length = T // len(sections) + (i < T % len(sections))
        if count > length:
            raise ValueError(f"cannot take {count} steps from a section of {length}")
        gap = 1.0 if count <= 1 else (length - 1) / (count - 1)
        # Summed, not multiplied: the published rounding.
        position = 0.0
        for _ in range(count):
            times.append(start + round(position))
            position += gap
        start += length
    return pairs(times)


def diffusers_steps(T: int, count: int, spacing: DiffusersSpacing) -> list[Pair]:
    """The pairs that diffusers' DDPMScheduler visits: `leading` and `linspace` end at our t = 1,
    `leading` starts below T, `trailing` leaps to 0 from a larger t."""
    return pairs(_times(T, count, spacing))


def diffusers_ddim_steps(
    T: int, count: int, spacing: DiffusersSpacing = "leading", *, offset: int = 0, set_alpha_to_one: bool = True
) -> list[Pair]:
    """The pairs of diffusers' DDIMScheduler, and of its PNDMScheduler: from each time T // count downwards,
    which for `linspace` is not the time it visits next.

    Args:
        offset: its `steps_offset`, with which `leading` starts above our t = 1.
        set_alpha_to_one: False ends at t = 1, where a little noise is left, instead of 0.
    """
    end = 0 if set_alpha_to_one else 1
    times = sorted((t + (offset if spacing == "leading" else 0) for t in _times(T, count, spacing)), reverse=True)
    return [(t, t - T // count if t > T // count else end) for t in times]


def diffusers_dpm_steps(
    T: int, count: int, spacing: DiffusersSpacing = "linspace", *, final: Literal["zero", "sigma_min"] = "zero"
) -> list[Pair]:
    """The pairs of diffusers' DPMSolverMultistepScheduler and UniPCMultistepScheduler: `linspace` and `leading`
    take one time more and leave out the lowest.

    Args:
        final: its `final_sigmas_type`: end at the image, or at our t = 1.
    """
    end = 0 if final == "zero" else 1
    times = _times(T, count, spacing) if spacing == "trailing" else sorted(_times(T, count + 1, spacing))[1:]
    return list(itertools.pairwise([*sorted(times, reverse=True), end]))


def diffusers_sigma_steps(schedule: NoiseSchedule, count: int, spacing: DiffusersSpacing = "linspace") -> Steps:
    """The pairs of diffusers' EulerDiscreteScheduler and HeunDiscreteScheduler: `linspace` is not rounded to integers.

    Between two integers they interpolate sigma, we its logarithm; our times have their sigmas.
    """
    T = schedule.T
    if spacing != "linspace":
        return diffusers_steps(T, count, spacing)
    sigmas = [schedule.sigma(t) for t in range(1, T + 1)]
    wanted = np.interp(np.linspace(0, T - 1, count)[::-1], np.arange(T), sigmas)
    return from_sigmas(schedule, [*wanted.tolist(), 0.0])


def from_sigmas(schedule: NoiseSchedule, sigmas: Sequence[float]) -> Steps:
    """The pairs that visit descending `sigmas` = sqrt(1 / alpha_bar - 1); 0 is the image."""
    return list(itertools.pairwise(schedule.time_of(sigma) for sigma in sigmas))


def rounded(net: Net) -> Net:
    """`net` asked at the nearest integer time, as diffusers' DPM-Solver and UniPC do with Karras' and Lu's sigmas."""
    return lambda x_t, t: net(x_t, t.round())


def noisy_end(diffusion: Diffusion, states: Iterator[State], steps: Steps, noise: Noise) -> Iterator[State]:
    """`ancestral`'s states with noise in the last step too, as diffusers' DDPMScheduler adds it where that step does
    not start at our t = 1 (spacing `trailing`): of variance beta for `fixed_large`, next to none for `fixed_small`."""
    for k, state in enumerate(states):
        if state.t == 0 and steps[k][0] > 1 and diffusion.variance == "fixed_large":
            missing: Tensor | float = 1 - diffusion.schedule.at(steps[k][0], state.x)
            state = state._replace(x=state.x + torch.as_tensor(missing).sqrt().to(state.x) * noise(k).to(state.x))
        yield state


def diffusers_states(
    sampler: SamplerName,
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    steps: Steps,
    *,
    noise: Noise,
    clip: Clip = True,
    eta: float | None = None,
) -> Iterator[State]:
    """The states of diffusers' DDPMPipeline (`ancestral`) or DDIMPipeline (`ddim`) on its own list of steps.

    Args:
        steps: from `diffusers_steps` or `diffusers_ddim_steps`.
        noise: called with the number of each step that adds some.
        eta: of ddim (None: 0).

    Raises:
        ValueError: another sampler.
    """
    match sampler:
        case "ancestral":
            walked = ancestral(diffusion, net, x, steps, noise=noise, clip=clip)
            return noisy_end(diffusion, walked, steps, noise)
        case "ddim":
            return ddim(diffusion, net, x, steps, noise=noise, eta=eta or 0.0, clip=clip, rederive=False)
        case _:
            raise ValueError(f"the sampler {sampler!r} has none of diffusers' conventions; ancestral and ddim have")


def _times(T: int, count: int, spacing: DiffusersSpacing) -> list[int]:
    """`count` times by one of diffusers' names, on our clock."""
    match spacing:
        case "leading":
            times = np.arange(count) * (T // count) + 1
        case "trailing":
            times = np.round(np.arange(T, 0, -T / count)).astype(int)
        case "linspace":
            times = np.round(np.linspace(0, T - 1, count)).astype(int) + 1
    return [int(t) for t in times]
