"""Peers' lists of timesteps, as our (t, s) pairs.

Peers count from 0, where 0 means one noising step: their t is our t + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ddpm.schedule import Pair, pairs


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


def diffusers_steps(T: int, count: int, spacing: Literal["leading", "trailing", "linspace"]) -> list[Pair]:
    """The pairs that diffusers' DDPMScheduler visits: `leading` and `linspace` end at our t = 1,
    `leading` starts below T, `trailing` leaps to 0 from a larger t."""
    match spacing:
        case "leading":
            times = np.arange(count) * (T // count) + 1
        case "trailing":
            times = np.round(np.arange(T, 0, -T / count)).astype(int)
        case "linspace":
            times = np.round(np.linspace(0, T - 1, count)).astype(int) + 1
    return pairs([int(t) for t in times])
