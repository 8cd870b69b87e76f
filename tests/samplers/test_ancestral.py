"""Algorithm 2: whole trajectories against two peers, a closed form, and the classic mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.diffusion import Diffusion
from ddpm.interop.steps import diffusers_steps, improved_steps, noisy_end
from ddpm.samplers import ancestral
from ddpm.schedule import from_betas, make_schedule, pairs, spaced_steps, zero_terminal_snr
from tests.reference import MODELS, arrays, close, index, model_with_variance, ours
from tests.samplers.recorded import Recorded, trajectory

LINEAR = Diffusion(schedule=make_schedule("linear", 1000))


def _noise(array: np.ndarray) -> Callable[[int], Tensor]:
    return lambda k: torch.from_numpy(array[k])


IMPROVED = [
    (f"ancestral.{model}.{variance}.{spacing}.{clip}", model, variance.lower(), sections, clip == "clip")
    for model in ("gmm", "tanh")
    for variance in ("FIXED_SMALL", "FIXED_LARGE")
    for spacing, sections in (("sp20", [20]), ("spddim20", "ddim20"))
    for clip in ("clip", "noclip")
    if clip == "clip" or (model, variance, spacing) == ("gmm", "FIXED_SMALL", "sp20")
]


@pytest.mark.parametrize(("tag", "model", "variance", "sections", "clip"), IMPROVED)
def test_trajectory_equals_improved_diffusion(
    golden: Path, tag: str, model: str, variance: str, sections: list[int] | str, clip: bool
) -> None:
    """Every state and x_0 estimate of their respaced sampler, with their noise."""
    tables = arrays(golden / "samplers_improved.npz")
    steps = improved_steps(1000, sections)
    assert [t - 1 for t, _ in steps] == tables[f"{tag}.timesteps"].tolist()
    diffusion = replace(LINEAR, variance=variance)  # type: ignore[arg-type]
    # A respaced process is a process: their recomputed betas are those of our pairs.
    respaced = from_betas(torch.from_numpy(tables[f"{tag}.betas"]))
    close(respaced.alpha_bar[1:], LINEAR.schedule.alpha_bar[[t for t, _ in reversed(steps)]], 1e-12)
    start = torch.from_numpy(tables["x_T"])
    states = list(ancestral(diffusion, ours(MODELS[model]), start, steps, noise=_noise(tables["noise"]), clip=clip))
    close(torch.stack([start, *(s.x for s in states)]), tables[f"{tag}.x"], 1e-4)
    if f"{tag}.pred_xstart" in tables:
        close(torch.stack([s.x0 for s in states if s.x0 is not None]), tables[f"{tag}.pred_xstart"], 1e-4)


def test_learned_range_equals_improved_diffusion(golden: Path) -> None:
    """The variance that the network picks between the two, for the pairs of a sub-sequence."""
    tables, tag = arrays(golden / "samplers_improved.npz"), "ancestral.gmm.LEARNED_RANGE.sp20.clip"
    start, steps = torch.from_numpy(tables["x_T"]), improved_steps(1000, [20])
    assert [t - 1 for t, _ in steps] == tables[f"{tag}.timesteps"].tolist()
    net = ours(model_with_variance("gmm", "LEARNED_RANGE"))
    learned = replace(LINEAR, variance="learned_range")
    states = ancestral(learned, net, start, steps, noise=_noise(tables["noise"]))
    close(trajectory(start, states), tables[f"{tag}.x"], 1e-4)


def test_learned_range_equals_diffusers(golden: Path) -> None:
    case = Recorded(golden, "ddpm.leading.learned_range.gmm")
    assert case.settings["variance_type"] == "learned_range"
    net, learned = ours(model_with_variance("gmm", "LEARNED_RANGE")), replace(LINEAR, variance="learned_range")
    states = ancestral(learned, net, case.start, diffusers_steps(1000, 20, "leading"), noise=case.noise)
    close(trajectory(case.start, states), case.x, 1e-4)


def test_short_chain_with_rescaled_clock_equals_improved_diffusion(golden: Path) -> None:
    tables, tag = arrays(golden / "samplers_improved.npz"), "ancestral.gmm.FIXED_LARGE.full_T25.rescale.clip"
    schedule = make_schedule("linear", 25, beta_start=1e-4 * 40, beta_end=0.02 * 40)
    start = torch.from_numpy(tables["x_T"])
    states = ancestral(
        Diffusion(schedule=schedule),
        lambda x, t: MODELS["gmm"](x, (t - 1) * 40.0),
        start,
        spaced_steps(25),
        noise=_noise(tables["noise"]),
    )
    close(torch.stack([start, *(s.x for s in states)]), tables[f"{tag}.x"], 1e-4)


def _diffusers_cases() -> Iterator[tuple[str, bool]]:
    for spacing in ("leading", "trailing", "linspace"):
        for variance in ("fixed_small", "fixed_large"):
            yield f"ddpm.{spacing}.{variance}.gmm", True
    yield "ddpm.leading.fixed_small.tanh", True
    yield "ddpm.leading.fixed_small.noclip.gmm", False
    yield "ddpm.leading.fixed_small.v_prediction.gmm", True
    yield "ddpm.leading.fixed_small.sample.gmm", True
    yield "ddpm.custom_timesteps.fixed_small.gmm", True
    yield "ddpm.leading.fixed_small.squaredcos.gmm", True
    yield "ddpm.trailing.fixed_small.zero_snr.v_prediction.gmm", True


@pytest.mark.parametrize(("tag", "clip"), list(_diffusers_cases()))
def test_trajectory_equals_diffusers(golden: Path, tag: str, clip: bool) -> None:
    tables = arrays(golden / "samplers_diffusers_1.npz")
    case = next(c for c in index(golden / "samplers_diffusers_index.json") if c["tag"] == tag)
    settings = case["constructor_args"]
    assert settings["clip_sample"] == clip
    times = tables[f"{tag}.timesteps"].tolist()
    if "custom" in tag:
        steps = pairs([t + 1 for t in times])
    else:
        steps = diffusers_steps(1000, 20, settings["timestep_spacing"])
    assert [t - 1 for t, _ in steps] == times
    schedule = {"linear": "linear", "squaredcos_cap_v2": "cosine"}[settings["beta_schedule"]]
    alpha_bar = make_schedule(schedule, 1000)  # type: ignore[arg-type]
    diffusion = Diffusion(
        schedule=zero_terminal_snr(alpha_bar) if settings["rescale_betas_zero_snr"] else alpha_bar,
        prediction={"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}[settings["prediction_type"]],  # type: ignore[arg-type]
        variance=settings["variance_type"],
    )
    start = torch.from_numpy(tables["x_T"])
    model = MODELS[tag.rpartition(".")[2]]
    noise, expected = _noise(tables["noise"]), tables[f"{tag}.x"]
    walked = trajectory(start, ancestral(diffusion, ours(model), start, steps, noise=noise, clip=clip))
    if ".trailing." in tag:
        # They add noise at the last step too when it starts above their t = 0; we return the mean.
        if "fixed_large" in tag:
            assert np.abs(walked[-1].numpy() - expected[-1]).max() > 0.1
        states = ancestral(diffusion, ours(model), start, steps, noise=noise, clip=clip)
        walked = trajectory(start, noisy_end(diffusion, states, steps, noise))
    close(walked, expected, 1e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("count", [20, 1000])
def test_equals_diffusers_live(variance: str, count: int) -> None:
    """DDPMScheduler step by step, with the same noise and model."""
    import diffusers

    scheduler = diffusers.DDPMScheduler(variance_type=variance, timestep_spacing="linspace")
    scheduler.set_timesteps(count)
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(2, 1, 4, 4, generator=generator)
    # Their noise comes from a generator: record it, then give ours the same.
    x, theirs, drawn = start, [], torch.Generator().manual_seed(5)
    for t in scheduler.timesteps:
        x = scheduler.step(MODELS["gmm"](x, t.view(1)), t, x, generator=drawn).prev_sample
        theirs.append(x)
    again = torch.Generator().manual_seed(5)
    noises = [torch.randn(start.shape, generator=again) for _ in range(count)]
    steps = diffusers_steps(1000, count, "linspace")
    diffusion = replace(LINEAR, variance=variance)  # type: ignore[arg-type]
    ours_all = [s.x for s in ancestral(diffusion, ours(MODELS["gmm"]), start, steps, noise=lambda k: noises[k])]
    close(torch.stack(ours_all), torch.stack(theirs), 2e-4)


def _gaussian_net(mean: float, variance: float, diffusion: Diffusion) -> Callable[[Tensor, Tensor], Tensor]:
    """The best predictor of the noise when every pixel of the data is N(mean, variance)."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        a = diffusion.schedule.alpha_bar[t.long()].view(-1, 1, 1, 1).to(x)
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * variance + 1 - a)

    return net


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("count", [1000, 50, 10])
def test_gaussian_data_end_in_the_exact_moments(variance: str, count: int) -> None:
    """With the optimal predictor each step is affine, so the samples' mean and variance are known exactly."""
    m, v = 0.3, 0.04
    diffusion = replace(LINEAR, variance=variance)  # type: ignore[arg-type]
    net, steps = _gaussian_net(m, v, diffusion), spaced_steps(1000, count)
    mean, var = 0.0, 1.0
    a = diffusion.schedule.alpha_bar
    for t, s in steps:
        a_t, a_s = float(a[t]), float(a[s])
        beta = 1 - a_t / a_s
        gain = a_t**0.5 * v / (a_t * v + 1 - a_t)  # E[x_0 | x_t] = m + gain (x_t - sqrt(a_t) m)
        c_0, c_t = a_s**0.5 * beta / (1 - a_t), (a_t / a_s) ** 0.5 * (1 - a_s) / (1 - a_t)
        added = {"fixed_small": (1 - a_s) / (1 - a_t) * beta, "fixed_large": beta}[variance] if s else 0.0
        mean = c_0 * (m + gain * (mean - a_t**0.5 * m)) + c_t * mean
        var = (c_0 * gain + c_t) ** 2 * var + added
    n = 40_000
    generator = torch.Generator().manual_seed(0)
    draw = lambda _: torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    *_, last = ancestral(diffusion, net, draw(0), steps, noise=draw, clip=False)
    assert abs(float(last.x.mean()) - mean) < 4 * (var / n) ** 0.5
    assert abs(float(last.x.var()) / var - 1) < 4 * (2 / n) ** 0.5
    # The chain itself is biased: its variance is not the data's.
    assert abs(var / v - 1) > 1e-3


def test_starts_at_T_and_adds_no_noise_at_the_end() -> None:
    seen: list[float] = []
    drawn: list[int] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    def noise(k: int) -> Tensor:
        drawn.append(k)
        return torch.ones(1, 1, 2, 2)

    states = list(ancestral(LINEAR, net, torch.ones(1, 1, 2, 2), spaced_steps(1000, 5), noise=noise))
    assert seen[0] == 1000
    assert seen[-1] == 200
    assert drawn == [0, 1, 2, 3]
    assert [s.t for s in states][-1] == 0


def test_clipping_bounds_the_estimate() -> None:
    x = torch.full((1, 1, 2, 2), 3.0)
    zero = lambda k: torch.zeros(1, 1, 2, 2)  # noqa: E731
    wild = lambda x, t: -5 * torch.ones_like(x)  # noqa: E731
    first = next(ancestral(LINEAR, wild, x, spaced_steps(1000), noise=zero))
    assert first.x0 is not None
    assert first.x0.abs().max() == 1
    loose = next(ancestral(LINEAR, wild, x, spaced_steps(1000), noise=zero, clip=False))
    assert loose.x0 is not None
    assert loose.x0.abs().max() > 100


def test_gradients_stay_off_inside_and_on_outside() -> None:
    weight = torch.ones((), requires_grad=True)
    zero = lambda k: torch.zeros(1, 1, 2, 2)  # noqa: E731
    for state in ancestral(LINEAR, lambda x, t: weight * x, torch.ones(1, 1, 2, 2), spaced_steps(1000, 3), noise=zero):
        assert not state.x.requires_grad
        assert torch.is_grad_enabled()


def test_states_are_not_overwritten() -> None:
    zero = lambda k: torch.zeros(1, 1, 2, 2)  # noqa: E731
    run = lambda: ancestral(LINEAR, lambda x, t: x, torch.ones(1, 1, 2, 2), spaced_steps(1000, 4), noise=zero)  # noqa: E731
    kept = [s.x for s in run()]
    assert all(torch.equal(a, b.x.clone()) for a, b in zip(kept, run(), strict=True))
    assert len({float(x.mean()) for x in kept}) == 4
