"""UniPC: whole trajectories against diffusers, recorded and live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm.diffusion import Diffusion
from ddpm.interop.steps import diffusers_dpm_steps, rounded
from ddpm.samplers import dpm_solver, unipc
from ddpm.schedule import karras_steps, make_schedule, spaced_steps
from tests.reference import MODELS, close, ours
from tests.samplers.recorded import LINEAR, Recorded, trajectory

GMM = ours(MODELS["gmm"])

TAGS = [
    "unipc.o2.n10.gmm",
    "unipc.o3.n10.gmm",
    "unipc.o2.n10.tanh",
    "unipc.o2.n10.bh1.sigma_min.gmm",
    "unipc.o2.n10.karras.gmm",
]


@pytest.mark.parametrize("tag", TAGS)
def test_trajectory_equals_diffusers(golden: Path, tag: str) -> None:
    case = Recorded(golden, tag)
    s = case.settings
    if s["use_karras_sigmas"]:
        steps, net = karras_steps(LINEAR.schedule, case.count), rounded(case.net)
    else:
        steps = diffusers_dpm_steps(1000, case.count, s["timestep_spacing"], final=s["final_sigmas_type"])
        net = case.net
    states = unipc(
        case.diffusion, net, case.start, steps, order=s["solver_order"], variant=s["solver_type"], clip=False
    )
    close(trajectory(case.start, states), case.x, 1e-4)
    assert case.calls == case.times.tolist()


LIVE = [
    *(
        {"solver_order": o, "solver_type": v, "final_sigmas_type": "sigma_min", "lower_order_final": ease}
        for o in (1, 2, 3)
        for v in ("bh1", "bh2")
        for ease in (True, False)
    ),
    *({"solver_order": 2, "timestep_spacing": p} for p in ("leading", "trailing")),
    {"solver_order": 3, "prediction_type": "v_prediction"},
    {"solver_order": 2, "disable_corrector": list(range(20))},
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("changes", LIVE, ids=str)
def test_equals_diffusers_live(changes: dict[str, Any]) -> None:
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(**changes)
    scheduler.set_timesteps(12)
    s = scheduler.config
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    x, theirs = start, [start]
    for t in scheduler.timesteps:
        x = scheduler.step(MODELS["gmm"](x, t.view(1)), t, x).prev_sample
        theirs.append(x)
    kind = {"epsilon": "epsilon", "v_prediction": "v"}[s["prediction_type"]]
    states = unipc(
        Diffusion(schedule=LINEAR.schedule, prediction=kind),  # type: ignore[arg-type]
        GMM,
        start,
        diffusers_dpm_steps(1000, 12, s["timestep_spacing"], final=s["final_sigmas_type"]),
        order=s["solver_order"],
        variant=s["solver_type"],
        clip=False,
        correct=not s["disable_corrector"],
        ease_out=s["lower_order_final"],
    )
    close(trajectory(start, states), torch.stack(theirs), 3e-4)


def test_both_variants_end_finite_at_the_image() -> None:
    """diffusers' bh1 is not a number at s = 0."""
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for variant in ("bh1", "bh2"):
        for ease_out in (True, False):
            *_, last = unipc(LINEAR, GMM, start, spaced_steps(1000, 10), order=3, variant=variant, ease_out=ease_out)  # type: ignore[arg-type]
            assert bool(last.x.isfinite().all())
            assert last.x0 is not None
            close(last.x, last.x0, 0)


def test_without_the_corrector_order_1_and_2_are_dpm_solvers() -> None:
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = spaced_steps(1000, 20)
    for order in (1, 2):
        same = trajectory(start, dpm_solver(LINEAR, GMM, start, steps, order=order))  # type: ignore[arg-type]
        close(trajectory(start, unipc(LINEAR, GMM, start, steps, order=order, correct=False)), same, 1e-10)  # type: ignore[arg-type]


def test_pure_noise_at_T_is_no_special_case() -> None:
    jsd = Diffusion(schedule=make_schedule("jsd", 100), prediction="v")
    x0, eps = torch.full((1, 1, 2, 2), 0.4), torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    oracle = lambda x, t: jsd.target(x0, eps, x, t.long())  # noqa: E731
    for order in (1, 2, 3):
        for variant in ("bh1", "bh2"):
            *_, last = unipc(jsd, oracle, eps, spaced_steps(100, 20), order=order, variant=variant)  # type: ignore[arg-type]
            close(last.x, x0, 1e-5)
