"""DPM-Solver++: whole trajectories against diffusers, recorded and live, and its ties to DDIM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm.diffusion import Diffusion
from ddpm.interop.steps import diffusers_dpm_steps, from_sigmas, rounded
from ddpm.samplers import ddim, dpm_solver, dpm_solver_sde
from ddpm.schedule import karras_steps, make_schedule, spaced_steps
from tests.reference import MODELS, close, ours
from tests.samplers.recorded import LINEAR, Recorded, Watched, trajectory

GMM = ours(MODELS["gmm"])

TAGS = [
    "dpmpp.o1.n20.karras_False.gmm",
    *(f"dpmpp.o{o}.n{n}.karras_{k}.gmm" for o in (2, 3) for n in (10, 20) for k in (True, False)),
    "dpmpp.o2.n10.karras_False.tanh",
    "dpmpp.o2.n10.sigma_min.gmm",
    "dpmpp.o2.n10.heun.gmm",
    "dpmpp.o2.n20.lower_order_final_False.gmm",
    "dpmpp.o2.n10.leading.gmm",
    "dpmpp.o2.n10.trailing.gmm",
]


def their_options(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "order": settings["solver_order"],
        "second": settings["solver_type"],
        "third": "halved",
        "ease_out": settings["lower_order_final"],
    }


@pytest.mark.parametrize("tag", TAGS)
def test_trajectory_equals_diffusers(golden: Path, tag: str) -> None:
    case = Recorded(golden, tag)
    s = case.settings
    if s["use_karras_sigmas"]:  # they ask the network at rounded times
        steps, net = karras_steps(LINEAR.schedule, case.count), rounded(case.net)
    else:
        steps = diffusers_dpm_steps(1000, case.count, s["timestep_spacing"], final=s["final_sigmas_type"])
        net = case.net
    close([LINEAR.schedule.sigma(t) for t, _ in steps], case.sigmas[:-1], 1e-4)  # theirs in float32
    # Nothing is clipped there, and tanh's estimates grow to hundreds: the tolerance is relative.
    states = dpm_solver(case.diffusion, net, case.start, steps, clip=False, **their_options(s))
    close(trajectory(case.start, states), case.x, 1e-4)
    assert case.calls == case.times.tolist()


LIVE = [
    *({"solver_order": o, "timestep_spacing": p} for o in (1, 2, 3) for p in ("linspace", "leading", "trailing")),
    {"solver_order": 2, "solver_type": "heun"},
    {"solver_order": 3, "prediction_type": "v_prediction"},
    {"solver_order": 2, "prediction_type": "sample"},
    *({"algorithm_type": "sde-dpmsolver++", "solver_order": o} for o in (1, 2)),
    {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": "heun"},
    {"solver_order": 2, "thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("count", [8, 25])
@pytest.mark.parametrize("changes", LIVE, ids=str)
def test_equals_diffusers_live(changes: dict[str, Any], count: int) -> None:
    import diffusers

    from ddpm.diffusion import Dynamic

    scheduler = diffusers.DPMSolverMultistepScheduler(**changes)
    scheduler.set_timesteps(count)
    s = scheduler.config
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    noises = torch.randn(count, 2, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    x, theirs = start, [start]
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(MODELS["gmm"](x, t.view(1)), t, x, variance_noise=noises[k]).prev_sample
        theirs.append(x)
    kind = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}[s["prediction_type"]]
    diffusion = Diffusion(schedule=LINEAR.schedule, prediction=kind)  # type: ignore[arg-type]
    steps = diffusers_dpm_steps(1000, count, s["timestep_spacing"])
    options = their_options(dict(s))
    clip = Dynamic(s["dynamic_thresholding_ratio"], s["sample_max_value"]) if s["thresholding"] else False
    if "sde" in s["algorithm_type"]:
        del options["third"]
        states = dpm_solver_sde(diffusion, GMM, start, steps, noise=lambda k: noises[k], clip=clip, **options)
    else:
        states = dpm_solver(diffusion, GMM, start, steps, clip=clip, **options)
    close(trajectory(start, states), torch.stack(theirs), 3e-4)


def test_order_1_is_ddim() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    noises = torch.randn(12, 2, 1, 4, 4, generator=generator, dtype=torch.float64)
    steps, noise = spaced_steps(1000, 12), lambda k: noises[k]
    for eta in (0.0, 1.0):
        same = trajectory(start, ddim(LINEAR, GMM, start, steps, noise=noise, eta=eta))
        if eta:
            states = dpm_solver_sde(LINEAR, GMM, start, steps, noise=noise, order=1)
        else:
            states = dpm_solver(LINEAR, GMM, start, steps, order=1)
        close(trajectory(start, states), same, 1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_polynomial_through_the_estimates_is_integrated_exactly(order: int) -> None:
    """Where x_0 is a polynomial of degree order - 1 in lambda, a step from exact estimates has no error at all."""
    from ddpm.samplers.dpm_solver import Estimate, _integral

    def x0(log_snr: float) -> float:
        return 0.3 + 0.5 * log_snr * (order > 1) - 0.2 * log_snr**2 * (order > 2)

    now, h = 0.4, 0.7
    past = [Estimate(at, torch.tensor(x0(at), dtype=torch.float64)) for at in (-0.9, -0.1, now)][-order:]
    for rate in (1, 2):  # the ODE's weight and the SDE's
        fine = torch.linspace(0, h, 200_001, dtype=torch.float64)
        weight = rate * torch.exp(-rate * (h - fine))
        expected = torch.trapezoid(weight * torch.tensor([x0(now + float(u)) for u in fine]).double(), fine)
        assert abs(float(_integral(past, h, rate * h, "heun", "full")) - float(expected)) < 2e-6
    if order == 3:  # as the authors weigh it, it is not
        assert abs(float(_integral(past, h, 2 * h, "heun", "halved")) - float(expected)) > 1e-3


def test_the_last_steps_orders_fall_only_in_few_steps() -> None:
    start = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for count in (14, 15):
        eased, plain = (
            trajectory(start, dpm_solver(LINEAR, GMM, start, spaced_steps(1000, count), order=3, ease_out=ease))
            for ease in (True, False)
        )
        changed = [bool((a != b).any()) for a, b in zip(eased, plain, strict=True)]
        # The last step itself has order 1 in any case, and both end in the estimate at t = 1.
        assert changed[:-2] == [False] * (count - 1)
        assert changed[-2] == (count < 15)


def test_lus_sigmas_and_karras_sigmas_are_lists_of_steps() -> None:
    steps = from_sigmas(LINEAR.schedule, [10.0, 1.0, 0.1, 0.0])
    assert [round(LINEAR.schedule.sigma(t), 9) for t, _ in steps] == [10.0, 1.0, 0.1]
    assert steps[-1][1] == 0
    net = Watched(GMM)
    list(dpm_solver(LINEAR, rounded(net), torch.zeros(1, 1, 2, 2), steps))
    assert net.times == [round(t) for t, _ in steps]


def test_pure_noise_at_T_is_no_special_case() -> None:
    """alpha_bar[T] = 0: lambda is infinite there, and the solver's steps still lead to the image."""
    jsd = Diffusion(schedule=make_schedule("jsd", 100), prediction="v")
    x0, eps = torch.full((1, 1, 2, 2), 0.4), torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    oracle = lambda x, t: jsd.target(x0, eps, x, t.long())  # noqa: E731
    for order in (1, 2, 3):
        *_, last = dpm_solver(jsd, oracle, eps, spaced_steps(100, 20), order=order)  # type: ignore[arg-type]
        close(last.x, x0, 1e-5)
