"""Analytic optimum: with the exact noise predictor of a known distribution, each solver's error falls at its order."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks import solver_order as study

from ddpm.samplers import ancestral, ddim
from ddpm.schedule import spaced_steps

LAST = study.COUNTS[3:]


def _slope(errors: list[float]) -> float:
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


@pytest.mark.parametrize("name", study.DETERMINISTIC)
def test_order_on_two_gaussians(name: str) -> None:
    """Against the exact map of the probability flow, at 128, 256 and 512 steps."""
    order, solver = study.DETERMINISTIC[name]
    errors = [study.path_error(solver, study.TWO, count, points=11) for count in LAST]
    assert order - 0.2 < _slope(errors) < order + 0.3, errors


@pytest.mark.parametrize("name", study.DETERMINISTIC)
def test_order_on_one_gaussian(name: str) -> None:
    """The flow is affine here, and some errors change their sign as they fall: at least the order, over 16 to 512."""
    order, solver = study.DETERMINISTIC[name]
    errors = [study.path_error(solver, study.GAUSSIAN, count, points=3) for count in study.COUNTS[2:]]
    assert study.slope([1.0, 1.0, *errors]) > order - 0.4, errors
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("name", study.STOCHASTIC)
def test_order_of_the_variance(name: str) -> None:
    """The variance of what a sampler with noise draws, exactly, from the weight of each of its draws."""
    order, solver = study.STOCHASTIC[name]
    errors = [study.variance_error(solver, study.GAUSSIAN, count) for count in LAST[:2]]
    assert _slope(errors) > order - 0.12, errors
    assert errors[-1] < 0.03


def test_a_wrong_clock_would_be_noticed() -> None:
    """Negative control: a solver whose time is off by one step is of order one at best, whatever its rule."""

    def late(diffusion: object, net: study.Net, *rest: object) -> object:
        shifted = lambda x, t: net(x, (t - 8).clamp(min=1))  # noqa: E731
        return study.DETERMINISTIC["Heun"][1](diffusion, shifted, *rest)

    errors = [study.path_error(late, study.TWO, count, points=11) for count in LAST]  # type: ignore[arg-type]
    assert _slope(errors) < 1.2


def test_moments_of_the_sample_are_the_exact_ones() -> None:
    """Random draws agree with the weights: the variance that `variance_error` finds is that of real samples."""
    count, n = 16, 40_000
    generator = torch.Generator().manual_seed(0)
    draw = lambda _: torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    _, at_start, _ = study.GAUSSIAN.at(study.T)
    _, at_end, _ = study.GAUSSIAN.at(study.END)
    net, walk = study.GAUSSIAN.net, study.walk(count)
    for states in (
        ancestral(study.DIFFUSION, net, draw(0) * math.sqrt(at_start), walk, noise=draw, clip=False),
        ddim(study.DIFFUSION, net, draw(0) * math.sqrt(at_start), walk, noise=draw, eta=1, clip=False),
    ):
        *_, last = states
        error = study.variance_error(study.STOCHASTIC["ancestral"][1], study.GAUSSIAN, count)
        assert abs(abs(float(last.x.var()) / at_end - 1) - error) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing", "quadratic"])
def test_respacing_to_T_equals_no_respacing(spacing: str) -> None:
    assert spaced_steps(1000, 1000, spacing) == spaced_steps(1000) == [(t, t - 1) for t in range(1000, 0, -1)]  # type: ignore[arg-type]
