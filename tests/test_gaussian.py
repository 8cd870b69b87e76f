"""The Gaussian's divergence and the decoder of Equation 13, against vectors and arithmetic of 60 digits."""

from __future__ import annotations

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.gaussian import Gaussian
from tests.reference import arrays, close

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def _grid(golden: Path) -> tuple[Tensor, Gaussian, dict[str, np.ndarray]]:
    """Levels and Gaussians of the reference grid, (256, means, scales); its float32 axes are rounded decimals."""
    file = arrays(golden / "likelihood.npz")
    means, scales = (
        torch.from_numpy(file[f"dgll.{k}"]).double().mul(1e3).round() / 1e3 for k in ("means", "log_scales")
    )
    shape = (256, len(means), len(scales))
    gaussian = Gaussian(means.view(1, -1, 1).expand(shape), 2 * scales.expand(shape))
    return LEVELS.view(-1, 1, 1).expand(shape), gaussian, file


def test_kl(golden: Path) -> None:
    file = arrays(golden / "likelihood.npz")
    mean, log_var, other_mean, other_log_var = torch.from_numpy(file["kl.in"]).T
    close(Gaussian(mean, log_var).kl(Gaussian(other_mean, other_log_var)), file["kl.out"], 1e-5)


def test_kl_takes_numbers_and_equals_torchs_own() -> None:
    mean, other = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for a, b in ((0.3, -1.2), (torch.full((3, 1, 1), 0.3), -1.2), (0.3, torch.full((3, 1, 1), -1.2))):
        expected = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, math.exp(0.15)), torch.distributions.Normal(other, math.exp(-0.6))
        )
        close(Gaussian(mean, a).kl(Gaussian(other, b)), expected, 1e-7)
    assert Gaussian(mean, 0.3).kl(Gaussian(mean, 0.3)).abs().max() == 0


def test_the_tanh_decoder_is_the_peers(golden: Path) -> None:
    x, gaussian, file = _grid(golden)
    # Where the mass is near their floor, differences of two numbers near 1 keep four digits.
    close(gaussian.log_likelihood(x, form="tanh"), file["dgll.out_f64"], 1e-7)
    single = Gaussian(gaussian.mean.float(), gaussian.log_var.float())  # type: ignore[union-attr]
    value, expected = single.log_likelihood(x.float(), form="tanh").numpy(), file["dgll.out"]
    trusted = expected > -8
    assert trusted.mean() > 0.3
    close(value[trusted], expected[trusted], 1e-3)


def _mass(x: float, mean: float, log_scale: float) -> float:
    """The logarithm of a level's mass with 60 digits."""
    with mpmath.workdps(60):
        std = mpmath.exp(mpmath.mpf(log_scale))

        def tail(z: mpmath.mpf) -> mpmath.mpf:  # the mass above z
            return mpmath.erfc(z / mpmath.sqrt(2)) / 2

        lower, upper = (x - mean - mpmath.mpf(1) / 255) / std, (x - mean + mpmath.mpf(1) / 255) / std
        if x < -0.999:
            return float(mpmath.log(tail(-upper)))
        if x > 0.999:
            return float(mpmath.log(tail(lower)))
        if lower < 0:
            lower, upper = -upper, -lower
        return float(mpmath.log(tail(lower) - tail(upper)))


@pytest.mark.parametrize("log_scale", [-9.0, -5.0, -1.0, 0.0, 1.0, 8.0, 20.0])
def test_the_exact_decoder_loses_nothing_in_the_tails(log_scale: float) -> None:
    levels = LEVELS[[0, 1, 2, 100, 127, 128, 200, 253, 254, 255]]
    for mean in (-1.1, -1.0, -0.5, 0.0, 0.003, 0.7, 1.2):
        expected = [_mass(float(x), mean, log_scale) for x in levels]
        gaussian = Gaussian(torch.full_like(levels, mean), torch.full_like(levels, 2 * log_scale))
        np.testing.assert_allclose(gaussian.log_likelihood(levels), expected, rtol=1e-9, atol=1e-50)  # 60 digits


def test_the_exact_decoder_equals_the_peers_where_they_are_good(golden: Path) -> None:
    x, gaussian, file = _grid(golden)
    value, theirs = gaussian.log_likelihood(x).numpy(), file["dgll.out_f64"]
    assert np.abs(value - theirs)[theirs > -3].max() < 0.006  # their approximation of the CDF
    assert theirs.min() > -27.7
    assert value.min() < -1e6


@pytest.mark.parametrize("log_scale", [-4.0, 0.0, 6.0, 25.0])
def test_exact_masses_sum_to_one(log_scale: float) -> None:
    for mean in (-3.0, 0.1, 0.999):
        gaussian = Gaussian(torch.full_like(LEVELS, mean), 2 * log_scale)
        assert float(gaussian.log_likelihood(LEVELS).exp().sum()) == pytest.approx(1, abs=1e-10)


def test_gradients_are_finite_everywhere() -> None:
    """Also where another branch of a `where` would be infinite: 0 * inf is not 0."""
    for log_var in (-60.0, -18.0, -9.0, 0.0, 40.0, 90.0):
        for offset in (0.0, 1e-3, 1.0, 50.0):
            mean = (LEVELS.float() + offset).requires_grad_()
            log = torch.full((256,), log_var, requires_grad=True)
            Gaussian(mean, log).log_likelihood(LEVELS.float()).sum().backward()
            assert mean.grad is not None
            assert log.grad is not None
            assert torch.isfinite(mean.grad).all(), (log_var, offset)
            assert torch.isfinite(log.grad).all(), (log_var, offset)


@pytest.mark.parametrize("log_var", [-36.0, -30.0, -20.0, -12.0])
def test_gradient_far_from_the_mean(log_var: float) -> None:
    """The mass of a far bin is that of its nearer edge: d/dmean = distance / variance there."""
    mean = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)
    x = LEVELS[[0, 255]]
    Gaussian(mean, log_var).log_likelihood(x).sum().backward()
    edge = x + torch.tensor([1, -1]) / 255
    close(mean.grad, (edge - mean.detach()) / math.exp(log_var), 1e-4)


def test_gradient_of_the_exact_decoder() -> None:
    x = LEVELS[[0, 3, 130, 252, 255]]
    mean = torch.tensor([-0.9, 0.4, 0.02, 0.1, 0.8], dtype=torch.float64, requires_grad=True)
    log_var = torch.tensor([-3.0, -6.0, -9.0, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, v: Gaussian(m, v).log_likelihood(x), (mean, log_var))


def test_the_peers_normal_cdf(golden: Path) -> None:
    """The vectors' own account of the approximation: exact is scipy's, tanh is theirs."""
    file = arrays(golden / "likelihood.npz")
    z = torch.from_numpy(file["cdf.z"]).double()
    # An open bin is a CDF: the darkest level, with sigma = 1 and the mean at -z.
    mean, x = -z - 1 + 1 / 255, torch.full_like(z, -1.0)
    close(Gaussian(mean, 0.0).log_likelihood(x).exp(), file["cdf.exact"], 1e-12)
    close(Gaussian(mean, 0.0).log_likelihood(x, form="tanh").exp(), file["cdf.approx"], 2e-7)
