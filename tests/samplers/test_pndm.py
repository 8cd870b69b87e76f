"""PNDM and PLMS: whole trajectories against diffusers, recorded and live."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddpm.diffusion import Diffusion
from ddpm.interop.steps import diffusers_ddim_steps
from ddpm.samplers import network_calls, plms, pndm
from ddpm.schedule import make_schedule, spaced_steps
from tests.reference import MODELS, close, ours
from tests.samplers.recorded import LINEAR, Recorded, Watched

GMM = ours(MODELS["gmm"])


@pytest.mark.parametrize("tag", ["pndm.n20.gmm", "pndm.n20.skip_prk.gmm", "pndm.n20.alpha1.gmm", "pndm.n20.tanh"])
def test_trajectory_equals_diffusers(golden: Path, tag: str) -> None:
    """Every state they keep, those within a step too: these are what the network sees."""
    case = Recorded(golden, tag)
    s = case.settings
    steps = diffusers_ddim_steps(1000, 20, s["timestep_spacing"], set_alpha_to_one=s["set_alpha_to_one"])
    sampler = plms if s["skip_prk_steps"] else pndm
    *_, last = sampler(case.diffusion, case.net, case.start, steps, clip=False)
    assert case.calls == case.times.tolist()
    close(torch.stack([*case.net.seen, last.x]), case.x, 1e-4)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_equals_diffusers_live(spacing: str, one: bool, skip: bool) -> None:
    import diffusers

    scheduler = diffusers.PNDMScheduler(timestep_spacing=spacing, set_alpha_to_one=one, skip_prk_steps=skip)
    scheduler.set_timesteps(25)
    x = start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    for t in scheduler.timesteps:
        x = scheduler.step(MODELS["gmm"](x, t.view(1)), t, x).prev_sample
    steps = diffusers_ddim_steps(1000, 25, spacing, set_alpha_to_one=one)  # type: ignore[arg-type]
    *_, last = (plms if skip else pndm)(LINEAR, GMM, start, steps, clip=False)
    close(last.x, x, 2e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 20])
def test_any_number_of_steps_ends_at_the_image(count: int) -> None:
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for name, sampler in (("pndm", pndm), ("plms", plms)):
        net = Watched(GMM)
        states = list(sampler(LINEAR, net, start, spaced_steps(1000, count)))
        assert len(states) == count
        assert states[-1].t == 0
        assert len(net.times) == network_calls(name, LINEAR.schedule, spaced_steps(1000, count))  # type: ignore[arg-type]
        assert min(net.times) >= 1


def test_pure_noise_at_T_is_no_special_case() -> None:
    jsd = Diffusion(schedule=make_schedule("jsd", 100), prediction="v")
    x0, eps = torch.full((1, 1, 2, 2), 0.4), torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    oracle = lambda x, t: jsd.target(x0, eps, x, t.long())  # noqa: E731
    for sampler in (pndm, plms):
        *_, last = sampler(jsd, oracle, eps, spaced_steps(100, 20))
        close(last.x, x0, 1e-5)
