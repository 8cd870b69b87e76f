"""The loops that diffusers' own tests run: the sums that they assert, and every element of what is left at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.diffusion import Clip, Diffusion, Dynamic
from ddpm.interop.steps import diffusers_ddim_steps, diffusers_dpm_steps, from_sigmas, rounded
from ddpm.samplers import State, ancestral, ddim, dpm_solver, pndm, unipc
from ddpm.schedule import Steps, karras_steps, make_schedule, spaced_steps
from tests.reference import arrays, close, index
from tests.samplers.recorded import KINDS

NAMES = [
    *(f"ddpm.full_loop_{rest}" for rest in ("no_noise", "with_v_prediction", "with_noise")),
    *(
        f"ddim.full_loop_{rest}"
        for rest in ("no_noise", "with_v_prediction", "with_set_alpha_to_one", "with_no_set_alpha_to_one", "with_noise")
    ),
    *(
        f"dpm_multi.full_loop_{rest}"
        for rest in (
            "no_noise",
            "no_noise_thres",
            "with_v_prediction",
            "with_karras_and_v_prediction",
            "with_lu_and_v_prediction",
            "with_noise",
        )
    ),
    *(
        f"{unipc}.full_loop_{rest}"
        for unipc in ("unipc", "unipc1d")
        for rest in ("no_noise", "with_karras", "with_v_prediction", "with_karras_and_v_prediction", "with_noise")
    ),
    *(f"pndm.full_loop_{rest}" for rest in ("no_noise", "with_set_alpha_to_one", "with_no_set_alpha_to_one")),
]


def dummy_net(x: Tensor, t: Tensor) -> Tensor:
    """x t / (t + 1), with t counted from 0."""
    at = (t.double() - 1).view(-1, *[1] * (x.ndim - 1))
    return (x.double() * at / (at + 1)).to(x.dtype)


def ramp(one_dim: bool) -> Tensor:
    """All numbers 0..n-1, divided by n, over (channel, height, width, batch); then the batch comes first."""
    shape = (3, 8, 4) if one_dim else (3, 8, 8, 4)
    n = int(np.prod(shape))
    return (torch.arange(n).float() / n).reshape(shape).movedim(-1, 0)


@pytest.mark.parametrize("name", NAMES)
def test_loop_ends_where_diffusers_tests_say(golden: Path, name: str) -> None:
    entry = next(e for e in index(golden / "tests_expected.json")["full_loops"] if e["name"] == name)
    c = entry["config"]
    schedule = make_schedule("linear", 1000, beta_start=c["beta_start"], beta_end=c["beta_end"])
    diffusion = Diffusion(
        schedule=schedule,
        prediction=KINDS[c.get("prediction_type", "epsilon")],  # type: ignore[arg-type]
        variance="fixed_small",
    )
    sample = ramp(entry.get("one_dim", False))
    steps = _steps(entry, diffusion)[entry.get("t_start", 0) :]
    if "t_start" in entry:
        last = (sample.numel() - 1) / sample.numel()
        sample = diffusion.q_sample(sample, steps[0][0], last - sample)
    *_, end = _walk(entry, diffusion, sample, steps)
    close(end.x, arrays(golden / "tests_expected_final.npz")[name], 2e-4)
    # Near the image their coefficients, of numbers like 1 - 1e-4, are rounded to float32.
    loose = 3 if name == "ddpm.full_loop_with_noise" else 1
    for reduced, key in ((end.x.abs().sum(), "sum"), (end.x.abs().mean(), "mean")):
        if entry[f"expected_{key}"] is not None:
            # Their 1-D v-prediction expects the 2-D number; 0.1005 is within their tolerance.
            assert abs(float(reduced) - entry[f"expected_{key}"]) < loose * entry[f"tol_{key}"]


def _steps(entry: dict[str, Any], diffusion: Diffusion) -> Steps:
    c, schedule = entry["config"], diffusion.schedule
    match entry["scheduler"]:
        case "DDPMScheduler":
            return spaced_steps(1000)
        case "DDIMScheduler" | "PNDMScheduler":
            default = entry["scheduler"] == "DDIMScheduler"
            return diffusers_ddim_steps(1000, 10, set_alpha_to_one=c.get("set_alpha_to_one", default))
        case _ if c.get("use_karras_sigmas"):
            return [*karras_steps(schedule, 10)[:-1], (1, 1)]
        case _ if c.get("use_lu_lambdas"):
            sigmas = np.geomspace(schedule.sigma(1000), schedule.sigma(1), 10).tolist()
            return [*from_sigmas(schedule, sigmas), (1, 1)]
        case _:
            return diffusers_dpm_steps(1000, 10, final=c["final_sigmas_type"])


def _walk(entry: dict[str, Any], diffusion: Diffusion, x: Tensor, steps: Steps) -> Iterator[State]:
    c = entry["config"]
    generator = torch.Generator().manual_seed(0)
    noises = (torch.randn(x.shape, generator=generator) for _ in steps)
    match entry["scheduler"]:
        case "DDPMScheduler":
            return ancestral(diffusion, dummy_net, x, steps, noise=lambda k: next(noises), clip=True)
        case "DDIMScheduler":
            return ddim(diffusion, dummy_net, x, steps, clip=True, rederive=False)
        case "PNDMScheduler":
            return pndm(diffusion, dummy_net, x, steps, clip=False, pure=0)
        case "UniPCMultistepScheduler":
            return unipc(diffusion, rounded(dummy_net), x, steps, variant=c["solver_type"], clip=False)
        case _:
            clip: Clip = False
            if c["thresholding"]:
                clip = Dynamic(c["dynamic_thresholding_ratio"], c["sample_max_value"])
            return dpm_solver(diffusion, rounded(dummy_net), x, steps, clip=clip, ease_out=c["lower_order_final"])
