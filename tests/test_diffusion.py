"""The process against improved-diffusion's vectors, its conversions as round trips, its boundaries."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.diffusion import Diffusion, PredictionKind, VarianceKind
from ddpm.losses import simple
from ddpm.schedule import make_schedule, spaced_steps
from tests.reference import MODELS, Case, arrays, close, files, model_with_variance, ours

LINEAR = Diffusion(schedule=make_schedule("linear", 1000))
MEANS: dict[str, PredictionKind] = {"EPSILON": "epsilon", "START_X": "x0", "PREVIOUS_X": "mu"}
VARIANCES: dict[str, VarianceKind] = {
    "FIXED_SMALL": "fixed_small",
    "FIXED_LARGE": "fixed_large",
    "LEARNED": "learned",
    "LEARNED_RANGE": "learned_range",
}


@files
def test_q_sample(golden: Path, file: str, c: str, tolerance: float, amplified: float) -> None:
    case = Case(golden, file, c)
    close(LINEAR.q_sample(case.x0, case.t, case.eps), case["q_sample"], tolerance)
    for t, expected in zip(case.t.tolist(), case["q_sample_all"], strict=True):
        close(LINEAR.q_sample(case.x0, t, case.eps), expected, tolerance)  # a number for the whole batch
    zero = torch.zeros_like(case.x0)
    one = torch.ones_like(case.x0)
    close(LINEAR.q_sample(case.x0, case.t, zero), case["q_mean_variance.mean"], tolerance)
    variance = LINEAR.q_sample(zero, case.t, one) ** 2
    close(variance, case["q_mean_variance.variance"], tolerance)
    close(variance.log(), case["q_mean_variance.log_variance"], tolerance)


@files
def test_image_scale(golden: Path, file: str, c: str, tolerance: float, amplified: float) -> None:
    from ddpm.images import to_levels, to_model

    case = Case(golden, file, c)
    close(to_model(case["x0_u8"]), case.x0, 1.2e-7)  # twice rounded against once
    assert torch.equal(to_levels(case.x0), case["x0_u8"])


@files
def test_posterior(golden: Path, file: str, c: str, tolerance: float, amplified: float) -> None:
    case = Case(golden, file, c)
    mean, log_var = LINEAR.posterior(case.x0, case.x_t, case.t, case.t - 1)
    assert isinstance(log_var, Tensor)
    close(mean, case["q_posterior.mean"], tolerance)
    close(log_var.exp().expand_as(mean), case["q_posterior.variance"], tolerance)
    floor = LINEAR.floor_log_var(spaced_steps(1000))
    clipped = replace(LINEAR, variance="fixed_small").p(
        lambda x, t: x, case.x_t, case.t, case.t - 1, clip=False, floor_log_var=floor
    )
    close(
        torch.as_tensor(clipped.gaussian.log_var).expand_as(mean), case["q_posterior.log_variance_clipped"], tolerance
    )


@files
@pytest.mark.parametrize("model", MODELS)
def test_x0_from_a_prediction(golden: Path, file: str, c: str, tolerance: float, amplified: float, model: str) -> None:
    case = Case(golden, file, c)
    close(MODELS[model](case.x_t, case.t - 1), case[f"model.{model}"], tolerance)
    close(LINEAR.to_x0(case.eps, case.x_t, case.t), case["xstart_from_eps"], amplified)


@files
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("clip", ["clip", "noclip"])
def test_p_mean_and_x0(
    golden: Path, file: str, c: str, tolerance: float, amplified: float, model: str, kind: str, clip: str
) -> None:
    case = Case(golden, file, c)
    diffusion = replace(LINEAR, prediction=MEANS[kind])
    gaussian, x0 = diffusion.p(ours(MODELS[model]), case.x_t, case.t, case.t - 1, clip=clip == "clip")
    name = f"pmv.{model}.{kind}.{clip}"
    close(x0, case[f"{name}.pred_xstart"], amplified)
    close(gaussian.mean, case[f"{name}.mean"], 10 * tolerance)


@files
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("clip", ["clip", "noclip"])
def test_p_variance(
    golden: Path, file: str, c: str, tolerance: float, amplified: float, variance: str, kind: str, clip: str
) -> None:
    """Mean, x_0 and variance of each prediction x variance x clipping: the one does not change the other."""
    case = Case(golden, file, c)
    diffusion = replace(LINEAR, prediction=MEANS[kind], variance=VARIANCES[variance])
    floor = diffusion.floor_log_var(spaced_steps(1000))
    net = ours(model_with_variance("gmm", variance))
    gaussian, x0 = diffusion.p(net, case.x_t, case.t, case.t - 1, clip=clip == "clip", floor_log_var=floor)
    close(x0, case[f"pmv.gmm.{kind}.{clip}.pred_xstart"], amplified)
    close(gaussian.mean, case[f"pmv.gmm.{kind}.{clip}.mean"], 10 * tolerance)
    if diffusion.learns_variance:
        close(net(case.x_t, case.t).chunk(2, 1)[1], case[f"model_v.{variance}"], tolerance)
    log_var = torch.as_tensor(gaussian.log_var).expand_as(x0)
    close(log_var, case[f"pmv.{variance}.log_variance"], tolerance)
    expected = case[f"pmv.{variance}.variance"].clone()
    if variance == "FIXED_SMALL":
        expected[case.t == 1] = math.exp(floor or 0)  # there they give 0 beside a finite logarithm
    close(log_var.exp(), expected, tolerance)


@files
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", ["clip", "noclip"])
def test_p_sample(
    golden: Path, file: str, c: str, tolerance: float, amplified: float, model: str, variance: str, clip: str
) -> None:
    """One reverse step from x_t with their noise; at t = 1 the mean alone."""
    case = Case(golden, file, c)
    diffusion = replace(LINEAR, variance=VARIANCES[variance])
    net = ours(model_with_variance(model, variance))
    floor = diffusion.floor_log_var(spaced_steps(1000))
    gaussian, _ = diffusion.p(net, case.x_t, case.t, case.t - 1, clip=clip == "clip", floor_log_var=floor)
    step = gaussian.sample(torch.where((case.t == 1).view(-1, 1, 1, 1), 0.0, case.noise))
    close(step, case[f"p_sample.{model}.EPSILON.{variance}.{clip}"], 10 * tolerance)


@files
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", MEANS)
def test_simple_loss(
    golden: Path, file: str, c: str, tolerance: float, amplified: float, model: str, kind: str
) -> None:
    """L_simple, (B,), for T = 1000, and for T = 100 with and without their rescaled clock."""
    case = Case(golden, file, c)
    t_loss = torch.from_numpy(arrays(golden / file)["t_loss"]) + 1
    hundred = make_schedule("linear", 100, beta_start=1e-3, beta_end=0.2)
    net = ours(MODELS[model])
    rescaled = lambda x, t: MODELS[model](x, (t - 1) * 10.0)  # noqa: E731
    runs = [
        ("loss.T1000", LINEAR, net, case.t),
        ("loss.T100", replace(LINEAR, schedule=hundred), net, t_loss),
        ("loss.T100.rescale_t", replace(LINEAR, schedule=hundred), rescaled, t_loss),
    ]
    for name, diffusion, call, t in runs:
        value = simple(replace(diffusion, prediction=MEANS[kind]), call, case.x0, t, case.eps)
        assert value.shape == (4,)
        # The mean squared error does not depend on the variance; each file holds some of the combinations.
        fixed = ("FIXED_SMALL", "FIXED_LARGE")
        keys = [f"{name}.MSE.{model}.{kind}.{v}.{part}" for v in fixed for part in ("mse", "loss")]
        present = [key for key in keys if f"{key}.{c}" in arrays(golden / file)]
        assert present or (kind != "EPSILON" and "T100." in name + ".")
        for key in present:
            close(value, case[key], 10 * tolerance)


def _images(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(4, 2, 3, 5, generator=generator, dtype=dtype) * 2 - 1
    return x0, torch.randn(4, 2, 3, 5, generator=generator, dtype=dtype)


@pytest.mark.parametrize("prediction", get_args(PredictionKind))
@pytest.mark.parametrize("schedule", ["linear", "quad", "cosine", "sigmoid", "warmup10", "const"])
def test_to_x0_inverts_target(prediction: PredictionKind, schedule: Any) -> None:
    diffusion = Diffusion(schedule=make_schedule(schedule, 50), prediction=prediction)
    x0, eps = _images()
    for t in (1, 2, 25, 49, 50, torch.tensor([1, 2, 30, 50])):
        x_t = diffusion.q_sample(x0, t, eps)
        close(diffusion.to_x0(diffusion.target(x0, eps, x_t, t), x_t, t), x0, 1e-9)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_zero_terminal_snr_has_predictions_that_work(prediction: PredictionKind) -> None:
    diffusion = Diffusion(schedule=make_schedule("jsd", 10), prediction=prediction)
    x0, eps = _images()
    x_t = diffusion.q_sample(x0, 10, eps)
    close(x_t, eps, 1e-15)
    close(diffusion.to_x0(diffusion.target(x0, eps, x_t, 10), x_t, 10), x0, 1e-12)
    assert torch.isfinite(diffusion.posterior(x0, x_t, 10, 9).mean).all()


@pytest.mark.parametrize(("t", "u", "s"), [(1000, 500, 1), (3, 2, 1), (40, 7, 0), (1000, 999, 998)])
def test_posteriors_compose(t: int, u: int, s: int) -> None:
    """Bayes: x_u from (x_t, x_0), then x_s from (x_u, x_0) has the moments of x_s from (x_t, x_0)."""
    x0, eps = _images()
    x_t = LINEAR.q_sample(x0, t, eps)
    direct = LINEAR.posterior(x0, x_t, t, s)
    middle = LINEAR.posterior(x0, x_t, t, u)
    last = LINEAR.posterior(x0, middle.mean, u, s)
    close(last.mean, direct.mean, 1e-10)
    slope = LINEAR.posterior(torch.zeros_like(x0), torch.ones_like(x0), u, s).mean.flatten()[0].item()
    total = math.exp(last.log_var) + slope**2 * math.exp(middle.log_var)  # type: ignore[arg-type]
    close(total, math.exp(direct.log_var), 1e-10)  # type: ignore[arg-type]


def test_forward_then_posterior_is_the_forward_marginal() -> None:
    """q(x_s | x_0) = integral of q(x_s | x_t, x_0) q(x_t | x_0): means and variances agree."""
    x0, _ = _images()
    a = LINEAR.schedule.alpha_bar
    for t, s in itertools.combinations((1000, 999, 500, 2, 1), 2):
        zero = LINEAR.q_sample(x0, t, torch.zeros_like(x0))
        gaussian = LINEAR.posterior(x0, zero, t, s)
        close(gaussian.mean, LINEAR.q_sample(x0, s, torch.zeros_like(x0)), 1e-12)
        slope = LINEAR.posterior(torch.zeros_like(x0), torch.ones_like(x0), t, s).mean.flatten()[0].item()
        close(math.exp(gaussian.log_var) + slope**2 * (1 - a[t]), 1 - a[s], 1e-12)  # type: ignore[arg-type]


def test_last_step_is_a_point_mass() -> None:
    x0, eps = _images()
    gaussian = LINEAR.posterior(x0, LINEAR.q_sample(x0, 7, eps), 7, 0)
    assert gaussian.log_var == -math.inf
    close(gaussian.mean, x0, 1e-12)
    assert torch.equal(gaussian.sample(eps), gaussian.mean)


def test_a_number_and_a_tensor_of_times_agree() -> None:
    x0, eps = _images()
    for t in (1, 500, 1000):
        times = torch.full((4,), t)
        assert torch.equal(LINEAR.q_sample(x0, t, eps), LINEAR.q_sample(x0, times, eps))
        a, b = LINEAR.posterior(x0, eps, t, t - 1), LINEAR.posterior(x0, eps, times, times - 1)
        close(a.mean, b.mean, 1e-14)
        close(torch.as_tensor(a.log_var, dtype=torch.float64).expand(4), torch.as_tensor(b.log_var).flatten(), 1e-13)


def test_mu_is_the_raw_output_one_step_back_and_goes_through_x0_elsewhere() -> None:
    diffusion = replace(LINEAR, prediction="mu")
    x0, eps = _images()
    x_t, out = LINEAR.q_sample(x0, 500, eps), torch.full_like(x0, 0.3)
    assert diffusion.p(lambda x, t: out, x_t, 500, 499, clip=True).gaussian.mean is out
    leap = diffusion.p(lambda x, t: out, x_t, 500, 400, clip=True)
    close(leap.gaussian.mean, LINEAR.posterior(leap.x0, x_t, 500, 400).mean, 1e-12)


def test_the_floor_is_the_next_pair_of_the_same_list() -> None:
    a = LINEAR.schedule.alpha_bar
    all_steps = spaced_steps(1000)
    expected = math.log(float((1 - a[1]) / (1 - a[2]) * (1 - a[2] / a[1])))
    assert LINEAR.floor_log_var(all_steps) == pytest.approx(expected, abs=1e-12)
    respaced = spaced_steps(1000, 10)
    t, s = respaced[-2]
    expected = math.log(float((1 - a[s]) / (1 - a[t]) * (1 - a[t] / a[s])))
    assert LINEAR.floor_log_var(respaced) == pytest.approx(expected, abs=1e-12)
    assert LINEAR.floor_log_var([(1000, 0)]) is None


def test_float32_is_float64_rounded() -> None:
    x0, eps = _images()
    exact = LINEAR.q_sample(x0, 321, eps)
    rounded = LINEAR.q_sample(x0.float(), 321, eps.float())
    assert rounded.dtype == torch.float32
    close(rounded, exact, 1e-6)


def test_the_clock_matters(golden: Path) -> None:
    """Negative control: one step off on the clock is far outside the tolerance."""
    case = Case(golden, "process_f64.npz", "c1")
    off = LINEAR.q_sample(case.x0, case.t - 1, case.eps)
    assert np.abs((off - case["q_sample"]).numpy()).max() > 1e-3


@pytest.mark.parametrize(("t", "s"), [(1000, 999), (1000, 500), (40, 1), (2, 1)])
def test_learned_range_runs_from_the_posteriors_variance_to_beta_for_any_pair(t: int, s: int) -> None:
    x0, _ = _images()
    learned, small, large = (replace(LINEAR, variance=v) for v in ("learned_range", "fixed_small", "fixed_large"))
    for answer, expected in ((-1.0, small), (1.0, large)):
        net = lambda x, t, v=answer: torch.cat([x, torch.full_like(x, v)], 1)  # noqa: E731
        found = learned.p(net, x0, t, s, clip=True)
        wanted = expected.p(lambda x, t: x, x0, t, s, clip=True)
        close(found.gaussian.log_var, torch.full_like(x0, wanted.gaussian.log_var), 1e-12)  # type: ignore[arg-type]
        assert torch.equal(found.gaussian.mean, wanted.gaussian.mean)


def test_a_learned_logarithm_is_refused_for_longer_steps() -> None:
    x0, _ = _images()
    with pytest.raises(ValueError, match="longer steps"):
        replace(LINEAR, variance="learned").p(lambda x, t: torch.cat([x, x], 1), x0, 10, 8, clip=True)


def test_a_learned_variance_can_be_left_out() -> None:
    x0, _ = _images()
    net = lambda x, t: torch.cat([0.3 * x, x], 1)  # noqa: E731
    for variance in ("learned", "learned_range"):
        fixed, mean = replace(LINEAR, variance=variance).with_posterior_variance(net)  # type: ignore[arg-type]
        found = fixed.p(mean, x0, 10, 4, clip=False)
        wanted = replace(LINEAR, variance="fixed_small").p(lambda x, t: 0.3 * x, x0, 10, 4, clip=False)
        assert torch.equal(found.gaussian.mean, wanted.gaussian.mean)
        assert found.gaussian.log_var == wanted.gaussian.log_var


def test_a_network_without_the_variances_channels_is_refused() -> None:
    x0, _ = _images()
    with pytest.raises(ValueError, match="2 channels; learned_range needs 4"):
        replace(LINEAR, variance="learned_range").p(lambda x, t: x, x0, 10, 9, clip=True)


@pytest.mark.parametrize(
    ("variance", "few"),
    [("fixed_large", "fixed_small"), ("fixed_small", "fixed_small"), ("learned_range", "learned_range")],
)
def test_a_process_for_fewer_steps(variance: VarianceKind, few: VarianceKind) -> None:
    """Beta gives way to the posterior's variance over longer steps; another variance stays."""
    process = Diffusion(schedule=make_schedule("linear", 20), variance=variance)
    assert process.for_steps(20) == process
    assert process.for_steps(19).variance == few
