"""Trajectories that peers' samplers recorded, and ours from the same start, steps, model and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion import Diffusion
from ddpm.samplers import State
from ddpm.schedule import make_schedule
from tests.reference import MODELS, arrays, index, ours

LINEAR = Diffusion(schedule=make_schedule("linear", 1000))
KINDS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}


class Recorded:
    """One case of diffusers' recorded trajectories."""

    def __init__(self, golden: Path, tag: str) -> None:
        case = next(c for c in index(golden / "samplers_diffusers_index.json") if c["tag"] == tag)
        tables = arrays(golden / case["file"])
        self.settings: dict[str, Any] = case["constructor_args"]
        self.count: int = case["set_timesteps"]["num_inference_steps"]
        self.times = tables[f"{tag}.timesteps"]
        self.x = torch.from_numpy(tables[f"{tag}.x"])
        self.start = torch.from_numpy(tables["x_T"])
        self.sigmas = tables.get(f"{tag}.sigmas")
        self.noise = noise_of(arrays(golden / "samplers_diffusers_1.npz")["noise"])
        self.net = Watched(ours(MODELS[tag.rpartition(".")[2]]))
        kind = KINDS[self.settings["prediction_type"]]
        self.diffusion = Diffusion(schedule=LINEAR.schedule, prediction=kind)  # type: ignore[arg-type]
        for key in ("beta_start", "beta_end", "beta_schedule"):  # what LINEAR is
            assert self.settings[key] == {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}[key]

    @property
    def calls(self) -> list[float]:
        """The times our sampler has asked the network at, on their clock."""
        return [t - 1 for t in self.net.times]


class Watched:
    """A network that keeps what it is asked."""

    def __init__(self, net: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._net = net
        self.times: list[float] = []
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(float(t[0]))
        self.seen.append(x)
        return self._net(x, t)


def noise_of(array: np.ndarray) -> Callable[[int], Tensor]:
    return lambda k: torch.from_numpy(array[k])


def trajectory(start: Tensor, states: Iterable[State]) -> Tensor:
    """The start and every state."""
    return torch.stack([start, *(s.x for s in states)])
