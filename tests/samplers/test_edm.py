"""Heun and Euler: whole trajectories against diffusers, and the paper's algorithms in its own variables."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpm.diffusion import Diffusion
from ddpm.interop.steps import diffusers_sigma_steps
from ddpm.samplers import Churn, ddim, euler, heun
from ddpm.schedule import NoiseSchedule, Steps, karras_steps, make_schedule, spaced_steps
from tests.reference import MODELS, close, ours
from tests.samplers.recorded import LINEAR, Recorded, trajectory

GMM = ours(MODELS["gmm"])

TAGS = [
    f"{name}.{spacing}.{model}"
    for name in ("heun.n10", "euler.n20")
    for spacing, model in [*((s, "gmm") for s in ("linspace", "leading", "trailing", "karras")), ("linspace", "tanh")]
]


def _sized(x: Tensor, steps: Steps, schedule: NoiseSchedule) -> Tensor:
    """States in the peers' variables, x / sqrt(alpha_bar)."""
    times = [steps[0][0], *(s for _, s in steps)]
    return torch.stack([one * math.sqrt(1 + schedule.sigma(t) ** 2) for one, t in zip(x, times, strict=True)])


@pytest.mark.parametrize("tag", TAGS)
def test_trajectory_equals_diffusers(golden: Path, tag: str) -> None:
    """Their states live in sigma's variables, and Heun's count half steps too: those are what the network sees."""
    case = Recorded(golden, tag)
    s, schedule = case.settings, LINEAR.schedule
    assert not s.get("clip_sample")
    karras = s["use_karras_sigmas"]
    steps = (
        karras_steps(schedule, case.count)
        if karras
        else diffusers_sigma_steps(schedule, case.count, s["timestep_spacing"])
    )
    start = case.x[0] / math.sqrt(1 + schedule.sigma(steps[0][0]) ** 2)
    second = tag.startswith("heun")
    states = (heun if second else euler)(case.diffusion, case.net, start, steps, clip=False)
    walked = _sized(trajectory(start, states), steps, schedule)
    close(case.calls, case.times, 1e-2)  # between integers their sigma is linear, ours is the exponential
    if second:
        expected = torch.cat([case.x[:-1:2], case.x[-1:]])
        close(walked, expected, 1e-4)
        halves = torch.stack(
            [x * math.sqrt(1 + schedule.sigma(t) ** 2) for x, t in zip(case.net.seen, case.net.times, strict=True)]
        )
        close(halves, case.x[:-1], 1e-4)
    else:
        close(walked, case.x, 1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("name", ["heun", "euler"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_equals_diffusers_live(name: str, spacing: str) -> None:
    import diffusers

    kinds = {"heun": diffusers.HeunDiscreteScheduler, "euler": diffusers.EulerDiscreteScheduler}
    scheduler = kinds[name](
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing=spacing, prediction_type="v_prediction"
    )
    scheduler.set_timesteps(15)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(3)) * scheduler.init_noise_sigma
    steps = diffusers_sigma_steps(LINEAR.schedule, 15, spacing)  # type: ignore[arg-type]
    start = x / math.sqrt(1 + LINEAR.schedule.sigma(steps[0][0]) ** 2)
    for t in scheduler.timesteps:
        x = scheduler.step(MODELS["gmm"](scheduler.scale_model_input(x, t), t.view(1)), t, x).prev_sample
    diffusion = Diffusion(schedule=LINEAR.schedule, prediction="v")
    *_, last = (heun if name == "heun" else euler)(diffusion, GMM, start, steps, clip=False)
    close(last.x, x, 3e-4)


def _algorithm_2(
    x: Tensor, sigmas: list[float], denoised: object, churn: Churn, noises: Tensor, largest: float, second: bool
) -> Tensor:
    """arXiv 2206.00364, line by line, in its own variables."""
    x = x * sigmas[0]
    for i in range(len(sigmas) - 1):
        at, to = sigmas[i], sigmas[i + 1]
        gamma = min(churn.amount / (len(sigmas) - 1), 2**0.5 - 1) if churn.lowest <= at <= churn.highest else 0.0
        hat = min(at + gamma * at, largest)
        x_hat = x + math.sqrt(max(hat**2 - at**2, 0)) * churn.scale * noises[i]
        d = (x_hat - denoised(x_hat, hat)) / hat  # type: ignore[operator]
        x = x_hat + (to - hat) * d
        if second and to > 0:
            d_next = (x - denoised(x, to)) / to  # type: ignore[operator]
            x = x_hat + (to - hat) * (d + d_next) / 2
    return x


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize(
    "churn", [Churn(), Churn(4.0), Churn(40.0, lowest=0.05, highest=50.0, scale=1.003)], ids=["none", "4", "limited"]
)
def test_equals_the_papers_algorithm_in_its_own_variables(churn: Churn, second: bool) -> None:
    m, v, schedule = 0.3, 0.04, LINEAR.schedule
    steps = karras_steps(schedule, 18)
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(18, 2, 1, 4, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)

    def denoised(x: Tensor, sigma: float) -> Tensor:  # E[x_0 | x_0 + sigma eps], pixels from N(m, v)
        return m + v / (v + sigma**2) * (x - m)

    def net(x: Tensor, t: Tensor) -> Tensor:
        # The time reaches a network in float32; here it must not matter.
        sigma = schedule.sigma(min(times, key=lambda one: abs(one - float(t[0]))))
        return denoised(x * math.sqrt(1 + sigma**2), sigma)

    sigmas = [*(schedule.sigma(t) for t, _ in steps), 0.0]
    gamma = min(churn.amount / 18, 2**0.5 - 1)
    times = [t for t, _ in steps] + [schedule.time_of(s * (1 + gamma)) for s in sigmas]
    expected = _algorithm_2(x, sigmas, denoised, churn, noises, sigmas[0], second)
    start = x * sigmas[0] / math.sqrt(1 + sigmas[0] ** 2)
    diffusion = Diffusion(schedule=schedule, prediction="x0")
    *_, last = (heun if second else euler)(
        diffusion, net, start, steps, noise=lambda k: noises[k], churn=churn, clip=False
    )
    close(last.x, expected, 1e-8)


def test_churn_needs_noise() -> None:
    with pytest.raises(ValueError, match="churn needs noise"):
        next(heun(LINEAR, GMM, torch.zeros(1, 1, 2, 2), spaced_steps(1000, 4), churn=Churn(3)))


def test_euler_is_ddim() -> None:
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for clip in (True, False):
        for steps in (spaced_steps(1000, 9), karras_steps(LINEAR.schedule, 9)):
            close(
                trajectory(start, euler(LINEAR, GMM, start, steps, clip=clip)),
                trajectory(start, ddim(LINEAR, GMM, start, steps, clip=clip)),
                1e-10,
            )


def test_pure_noise_at_T_is_no_special_case() -> None:
    jsd = Diffusion(schedule=make_schedule("jsd", 100), prediction="v")
    x0, eps = torch.full((1, 1, 2, 2), 0.4), torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    oracle = lambda x, t: jsd.target(x0, eps, x, t)  # noqa: E731
    for sampler in (heun, euler):
        *_, last = sampler(jsd, oracle, eps, spaced_steps(100, 20), noise=lambda k: eps, churn=Churn(5))
        assert bool(last.x.isfinite().all())
        *_, last = sampler(jsd, oracle, eps, spaced_steps(100, 20))
        close(last.x, x0, 1e-5)
