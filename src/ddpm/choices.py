"""The samplers' names, and which settings affect which: plain words, so that reading them imports nothing heavy."""

from __future__ import annotations

from typing import Literal

SamplerName = Literal["ancestral", "ddim", "dpm_solver", "dpm_solver_sde", "unipc", "heun", "euler", "pndm", "plms"]
Spacing = Literal["linspace", "leading", "trailing", "quadratic", "karras"]

EFFECTIVE: dict[SamplerName, tuple[str, ...]] = {
    "ancestral": (),
    "ddim": ("eta",),
    "dpm_solver": ("order",),
    "dpm_solver_sde": ("order",),
    "unipc": ("order",),
    "heun": ("churn",),
    "euler": ("churn",),
    "pndm": (),
    "plms": (),
}
"""The settings that have an effect on each sampler, of those that not every sampler has."""

PARTICULAR = ("eta", "order", "churn")
"""All of them."""


def network_calls(sampler: SamplerName, steps: int) -> int:
    """How often each image goes through the network in `steps` steps of a sampler."""
    match sampler:
        case "heun":  # twice a step, but for the last
            return 2 * steps - 1
        case "pndm":  # four times in each of the three steps of the Runge-Kutta warm-up
            return steps + 3 * min(3, steps - 1)
        case "plms":  # the first step twice
            return steps + min(1, steps - 1)
        case _:
            return steps
