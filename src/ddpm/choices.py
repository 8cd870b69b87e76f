"""The samplers' names, and which settings affect which: plain words, so that reading them imports nothing heavy."""

from __future__ import annotations

from typing import Literal

SamplerName = Literal["ancestral", "ddim", "dpm_solver", "dpm_solver_sde", "unipc", "heun", "euler", "pndm", "plms"]
Spacing = Literal["linspace", "leading", "trailing", "quadratic", "karras"]
DEFAULT_SPACING: Spacing = "trailing"
"""The best at few steps of those that suit every sampler (docs/samplers.md has the measurement)."""

TrackerName = Literal["wandb", "mlflow"]

EFFECTIVE: dict[SamplerName, tuple[str, ...]] = {
    "ancestral": ("conventions",),
    "ddim": ("eta", "conventions"),
    "dpm_solver": ("order",),
    "dpm_solver_sde": ("order",),
    "unipc": ("order",),
    "heun": ("churn",),
    "euler": ("churn",),
    "pndm": (),
    "plms": (),
}
"""The settings that have an effect on each sampler, of those that not every sampler has."""

PARTICULAR = ("eta", "order", "churn", "conventions")
"""All of them."""
