"""What holds for every sampler."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ddpm
from ddpm import samplers
from ddpm.choices import EFFECTIVE, SamplerName
from ddpm.diffusion import Diffusion, Dynamic
from ddpm.samplers import by_name, network_calls
from ddpm.schedule import make_schedule, sampling_steps
from tests.reference import MODELS, close, ours
from tests.samplers.recorded import LINEAR, Watched, trajectory

Net = Callable[[Tensor, Tensor], Tensor]
GMM = ours(MODELS["gmm"])
NAMES: list[SamplerName] = list(EFFECTIVE)
OPTIONS: dict[SamplerName, dict[str, Any]] = {
    "ddim": {"eta": 0.5},
    "dpm_solver": {"order": 3},
    "dpm_solver_sde": {"order": 3},
    "unipc": {"order": 3},
    "heun": {"churn": 8.0},
    "euler": {"churn": 8.0},
}
START = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISES = torch.randn(30, 2, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _walk(
    name: SamplerName, net: Net, *, diffusion: Diffusion = LINEAR, spacing: str = "trailing", **changes: Any
) -> Tensor:
    steps = sampling_steps(diffusion.schedule, 12, spacing)  # type: ignore[arg-type]
    options = OPTIONS.get(name, {}) | changes
    return trajectory(START, by_name(name, diffusion, net, START, steps, noise=lambda k: NOISES[k], **options))


def _saying(kind: str) -> Net:
    """The network that knows what GMM knows, and predicts `kind`."""
    told = replace(LINEAR, prediction=kind)  # type: ignore[arg-type]

    def net(x: Tensor, t: Tensor) -> Tensor:
        at = float(t[0])
        eps = GMM(x, t)
        return told.target(LINEAR.to_x0(eps, x, at), eps, x, at)

    return net


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["x0", "v", "mu"])
def test_what_the_network_predicts_does_not_matter(name: SamplerName, kind: str) -> None:
    small = replace(LINEAR, variance="fixed_small")
    other = replace(small, prediction=kind)  # type: ignore[arg-type]
    close(_walk(name, _saying(kind), diffusion=other), _walk(name, GMM, diffusion=small), 1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "ancestral"])
def test_a_learned_variance_is_read_past(name: SamplerName) -> None:
    def both(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([GMM(x, t), 7 * torch.sin(x)], 1)

    for variance in ("learned", "learned_range"):
        learned = replace(LINEAR, variance=variance)  # type: ignore[arg-type]
        assert torch.equal(_walk(name, both, diffusion=learned), _walk(name, GMM))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing", "quadratic", "karras"])
def test_starts_at_T_ends_at_the_image_and_calls_as_often_as_it_says(name: SamplerName, spacing: str) -> None:
    net, drawn = Watched(GMM), []

    def noise(k: int) -> Tensor:
        drawn.append(k)
        return NOISES[k]

    steps = sampling_steps(LINEAR.schedule, 12, spacing)  # type: ignore[arg-type]
    states = list(by_name(name, LINEAR, net, START, steps, noise=noise, **OPTIONS.get(name, {})))
    assert [s.t for s in states] == [s for _, s in steps]
    assert net.times[0] == 1000
    assert min(net.times) >= 1
    assert len(net.times) == network_calls(name, LINEAR.schedule, steps)
    # Each draw once; only churn draws before the last step, to take it away again.
    assert drawn == sorted(set(drawn))
    assert 11 not in drawn or "churn" in EFFECTIVE[name]
    assert bool(states[-1].x.isfinite().all())
    if name not in ("ancestral", "pndm", "plms"):  # whose last rule mixes estimates
        assert states[-1].x0 is not None
        close(states[-1].x, states[-1].x0, 1e-12)
    assert not any(s.x.requires_grad for s in states)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [4, 12, 400])
def test_a_small_error_of_the_network_stays_small_out_of_pure_noise(name: SamplerName, count: int) -> None:
    """The cosine schedule ends at sigma = 20,000: no sampler may multiply what the network gets wrong there by that."""
    cosine = Diffusion(schedule=make_schedule("cosine", 1000))
    steps = sampling_steps(cosine.schedule, count)

    def net(x: Tensor, t: Tensor) -> Tensor:  # of pixels that are N(0, 0.5^2), but for an error that changes with t
        a = cosine.schedule.alpha_bar[t.long()].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * x / (0.25 * a + 1 - a) + 0.02 * torch.sin(t.double() / 50).view(-1, 1, 1, 1)

    watched, noises = Watched(net), torch.randn(count, 2, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    states = by_name(name, cosine, watched, START, steps, noise=lambda k: noises[k])
    largest = max(float(state.x.abs().max()) for state in states)
    assert largest < 5
    assert len(watched.times) == network_calls(name, cosine.schedule, steps)


@pytest.mark.parametrize("name", NAMES)
def test_thresholding(name: SamplerName) -> None:
    """Estimates outside [-1, 1] are kept in, or left alone, in every step."""
    wild: Net = lambda x, t: -3 * torch.ones_like(x)  # noqa: E731
    steps = sampling_steps(LINEAR.schedule, 12)
    for clip, low, high in ((True, 0.0, 1.0), (Dynamic(0.9), 0.0, 1.0), (False, 100.0, 1e9)):
        states = by_name(name, LINEAR, wild, START, steps, noise=lambda k: NOISES[k], clip=clip)
        largest = max(float(s.x0.abs().max()) for s in states if s.x0 is not None)
        assert low < largest <= high
    # Dynamic thresholding scales by the image's own quantile, static clipping does not.
    assert not torch.equal(_walk(name, wild, clip=Dynamic(0.9)), _walk(name, wild, clip=True))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_stay_off_inside_and_on_outside(name: SamplerName) -> None:
    weight = torch.ones((), requires_grad=True)
    steps = sampling_steps(LINEAR.schedule, 5)
    for state in by_name(name, LINEAR, lambda x, t: weight * x, START, steps, noise=lambda k: NOISES[k]):
        assert not state.x.requires_grad
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", NAMES)
def test_states_are_not_overwritten(name: SamplerName) -> None:
    steps = sampling_steps(LINEAR.schedule, 12)
    states = by_name(name, LINEAR, GMM, START, steps, noise=lambda k: NOISES[k])
    pairs = [(state.x, state.x.clone()) for state in states]
    assert all(torch.equal(kept, copy) for kept, copy in pairs)
    assert len({float(kept.sum()) for kept, _ in pairs}) == 12


def test_the_table_refuses_what_has_no_effect() -> None:
    for name in NAMES:
        for key in {"eta", "order", "churn"} - set(EFFECTIVE[name]):
            with pytest.raises(ValueError, match=f"{key} has no effect on the sampler '{name}'"):
                _walk(name, GMM, **{key: 1})
    with pytest.raises(ValueError, match="unknown sampler 'dadim'"):
        _walk("dadim", GMM)  # type: ignore[arg-type]


def test_a_file_does_not_hide_the_function_of_its_name() -> None:
    for module in pkgutil.iter_modules(samplers.__path__):
        importlib.import_module(f"ddpm.samplers.{module.name}")
    for name in NAMES:
        assert inspect.isfunction(getattr(samplers, name))
        assert getattr(ddpm, name) is getattr(samplers, name)
