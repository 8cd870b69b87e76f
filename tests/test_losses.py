"""The losses against improved-diffusion's vectors, closed forms, and weights by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpm.diffusion import Diffusion, Net, PredictionKind, VarianceKind
from ddpm.losses import LossKind, Objective, bound, bound_term, simple
from ddpm.schedule import NoiseSchedule, make_schedule, pairs
from tests.reference import MODELS, Case, arrays, close, files, model_with_variance, ours

LINEAR = Diffusion(schedule=make_schedule("linear", 1000))
MEANS = {"EPSILON": "epsilon", "START_X": "x0", "PREVIOUS_X": "mu"}
VARIANCES = ("FIXED_SMALL", "FIXED_LARGE", "LEARNED", "LEARNED_RANGE")
FLOOR = LINEAR.floor_log_var(pairs([1, 2]))


def _process(kind: str, variance: str) -> Diffusion:
    return replace(LINEAR, prediction=MEANS[kind], variance=variance.lower())  # type: ignore[arg-type]


def test_the_analytic_models_are_transcribed_rightly(golden: Path) -> None:
    file = arrays(golden / "likelihood.npz")
    x, times = torch.from_numpy(file["model_check.x"]), torch.from_numpy(file["model_check.t"])
    for row, t in enumerate(times):
        at = t.expand(len(x))
        for name in MODELS:
            close(MODELS[name](x[:, None], at)[:, 0], file[f"model_check.{name}"][row], 1e-6)
        for variance in ("LEARNED", "LEARNED_RANGE"):
            spread = model_with_variance("tanh", variance)(x[:, None], at)[:, 1]
            close(spread, file[f"model_check.v_{variance}"][row], 1e-6)


@files
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", ["clip", "noclip"])
def test_bound_terms(
    golden: Path, file: str, c: str, tolerance: float, amplified: float, model: str, kind: str, variance: str, clip: str
) -> None:
    """KL for t > 1, decoder for t = 1, with the decoder's form that the vectors hold."""
    case = Case(golden, file, c)
    net = ours(model_with_variance(model, variance))
    diffusion = _process(kind, variance)
    term = bound_term(
        diffusion, net, case.x0, case.x_t, case.t, case.t - 1, clip=clip == "clip", floor_log_var=FLOOR, decoder="tanh"
    )
    name = f"{model}.{kind}.{variance}.{clip}"
    # float32 loses digits where the reference's own does (its README: 1.6e-2).
    tolerance = 1e-7 if "f64" in file else 2e-2
    close(term.bits, case[f"vb_terms_bpd.{name}"], tolerance)
    close(term.x0, case[f"pmv.{model}.{kind}.{clip}.pred_xstart"], amplified)


def _case_of_loss(golden: Path, file: str, c: str, name: str) -> tuple[Case, Diffusion, Tensor, float]:
    """The images, the process, the times and the clock's factor of a family of recorded losses."""
    case = Case(golden, file, c)
    if name == "T1000":
        return case, LINEAR, case.t, 1.0
    hundred = make_schedule("linear", 100, beta_start=1e-3, beta_end=0.2)
    t = torch.from_numpy(arrays(golden / file)["t_loss"]) + 1
    return case, replace(LINEAR, schedule=hundred), t, 10.0 if name.endswith("rescale_t") else 1.0


@files
@pytest.mark.parametrize("name", ["T1000", "T100", "T100.rescale_t"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_recorded_losses(
    golden: Path, file: str, c: str, tolerance: float, amplified: float, name: str, model: str, kind: str, variance: str
) -> None:
    """L_simple, the hybrid with lambda = 1/T ("MSE") and 1/1000 ("RESCALED_MSE"), the bound, and T times it."""
    case, base, t, clock = _case_of_loss(golden, file, c, name)
    reference = model_with_variance(model, variance)
    diffusion = replace(base, prediction=MEANS[kind], variance=variance.lower())  # type: ignore[arg-type]
    T = diffusion.schedule.T

    def net(x: Tensor, t: Tensor) -> Tensor:
        return reference(x, (t - 1) * clock)

    def loss(kind: LossKind, weight: float = 0.0) -> Tensor:
        return Objective(kind, vlb_weight=weight, decoder="tanh")(diffusion, net, case.x0, t, case.eps)

    expected = {"MSE.mse": loss("simple"), "RESCALED_MSE.mse": loss("simple")}
    if diffusion.learns_variance:
        expected |= {
            "MSE.loss": loss("hybrid", 1 / T),
            "MSE.vb": loss("hybrid", 1 / T) - loss("simple"),
            "RESCALED_MSE.loss": loss("hybrid", 1 / 1000),
            "RESCALED_MSE.vb": loss("hybrid", 1 / 1000) - loss("simple"),
        }
    else:
        expected |= {"MSE.loss": loss("simple"), "RESCALED_MSE.loss": loss("simple")}
    expected |= {"KL.loss": loss("bound"), "RESCALED_KL.loss": T * loss("bound")}
    compared = 0
    for key, value in expected.items():
        family, _, part = key.partition(".")
        stored = f"loss.{name}.{family}.{model}.{kind}.{variance}.{part}"
        if f"{stored}.{c}" in arrays(golden / file):
            close(value, case[stored], 1e-7 if "f64" in file else 2e-2)
            compared += 1
    recorded = [k for k in arrays(golden / file) if k.startswith(f"loss.{name}.") and k.endswith(f".{c}")]
    recorded = [k for k in recorded if f".{model}.{kind}.{variance}." in k]
    if name == "T100":
        recorded = [k for k in recorded if "rescale_t" not in k]
    assert compared == len(recorded)


def _images(seed: int = 0) -> tuple[Tensor, Tensor]:
    """8-bit levels, both edges among them, and noise; float64."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (6, 2, 4, 4), generator=generator)
    levels[:, :, 0] = torch.tensor([0, 255, 0, 255])
    return levels.double() / 127.5 - 1, torch.randn(levels.shape, generator=generator, dtype=torch.float64)


def _oracle(diffusion: Diffusion, x0: Tensor, eps: Tensor) -> Net:
    """Returns what was actually drawn, in whatever the process predicts."""
    return lambda x_t, t: diffusion.target(x0, eps, x_t, t)


TIMES = torch.tensor([1, 2, 3, 40, 99, 100])


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "mu"])
def test_an_oracle_leaves_the_decoder_alone(prediction: PredictionKind) -> None:
    """With the noise actually drawn p is the posterior itself: L_{t-1} = 0 for t >= 2, and L_simple is 0."""
    diffusion = Diffusion(schedule=make_schedule("linear", 100), prediction=prediction, variance="fixed_small")
    x0, eps = _images()
    net = _oracle(diffusion, x0, eps)
    bits = bound(diffusion, net, x0, TIMES, eps)
    assert float(bits[1:].abs().max()) < 1e-9
    assert float(simple(diffusion, net, x0, TIMES, eps).abs().max()) < 1e-20
    # L_0: the mean is x0 and the deviation the floor's, so that each bin's mass is known.
    sigma = math.exp(0.5 * (diffusion.floor_log_var(pairs([1, 2])) or 0))
    inside = math.erf(1 / 255 / sigma / math.sqrt(2))
    edges = (x0.abs() == 1).double().flatten(1).mean(1)[0].item()
    expected = -(edges * math.log2(0.5 + inside / 2) + (1 - edges) * math.log2(inside))
    assert float(bits[0]) == pytest.approx(expected, rel=1e-9)


def test_a_wrong_answer_costs_the_closed_form() -> None:
    """An error d of the mean costs d^2 / (2 sigma^2) nats; with beta for the variance the ratio costs too."""
    x0, eps = _images()
    for variance in ("fixed_small", "fixed_large"):
        diffusion = Diffusion(schedule=make_schedule("linear", 100), prediction="mu", variance=variance)
        right = _oracle(diffusion, x0, eps)
        bits = bound(diffusion, lambda x, t: right(x, t) + 0.01, x0, TIMES, eps)  # noqa: B023
        a = diffusion.schedule.alpha_bar
        t = TIMES[1:]
        beta, small = 1 - a[t] / a[t - 1], (1 - a[t - 1]) / (1 - a[t]) * (1 - a[t] / a[t - 1])
        sigma2 = small if variance == "fixed_small" else beta
        nats = 0.5 * (small / sigma2 - 1 - (small / sigma2).log() + 0.01**2 / sigma2)
        close(bits[1:], nats / math.log(2), 1e-8)


def test_numbers_and_tensors_of_times_give_the_same_terms() -> None:
    diffusion = Diffusion(schedule=make_schedule("cosine", 100), variance="learned_range")
    x0, eps = _images()
    net = lambda x, t: torch.cat([0.9 * x, torch.sin(x)], 1)  # noqa: E731
    together = bound(diffusion, net, x0, TIMES, eps)
    floor = diffusion.floor_log_var(pairs([1, 2]))
    for i, t in enumerate(TIMES.tolist()):
        x_t = diffusion.q_sample(x0, t, eps)
        alone = bound_term(diffusion, net, x0, x_t, t, t - 1, clip=False, floor_log_var=floor)
        close(alone.bits[i], together[i], 1e-11)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_the_hybrids_bound_trains_the_variance_alone(variance: VarianceKind) -> None:
    diffusion = Diffusion(schedule=make_schedule("linear", 100), variance=variance)
    x0, eps = _images()
    mean, spread = (torch.full_like(x0, v, requires_grad=True) for v in (0.2, -0.3))
    net = lambda x, t: torch.cat([mean, spread], 1)  # noqa: E731

    def gradients(objective: Objective) -> tuple[Tensor, Tensor]:
        got = torch.autograd.grad(
            objective(diffusion, net, x0, TIMES, eps).sum(), (mean, spread), allow_unused=True, materialize_grads=True
        )
        return got[0], got[1]

    of_simple, none = gradients(Objective())
    of_bound = gradients(Objective("bound"))
    of_hybrid = gradients(Objective("hybrid", vlb_weight=0.01))
    assert none.abs().max() == 0
    assert torch.equal(of_hybrid[0], of_simple)
    close(of_hybrid[1], 0.01 * 100 * of_bound[1], 1e-12)
    assert of_bound[0].abs().max() > 0  # the control: not detached, the bound moves the mean


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "mu"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_one_error_of_x0_alike_in_every_prediction(prediction: PredictionKind, gamma: float) -> None:
    diffusion = Diffusion(schedule=make_schedule("linear", 100), prediction=prediction)
    x0, eps = _images()
    error = 0.1 * torch.randn(x0.shape, dtype=x0.dtype, generator=torch.Generator().manual_seed(3))

    def net(x_t: Tensor, t: Tensor) -> Tensor:
        wrong = x0 + error
        return diffusion.target(wrong, diffusion.eps_of(wrong, x_t, t), x_t, t)

    loss = Objective(min_snr_gamma=gamma)(diffusion, net, x0, TIMES, eps)
    a = diffusion.schedule.alpha_bar[TIMES]
    close(loss, (a / (1 - a)).clamp(max=gamma) * error.square().flatten(1).mean(1), 1e-9)


def test_min_snr_weights_by_hand() -> None:
    """SNR = 9 and 1/9 at the two times; gamma = 5 (arXiv 2303.09556, Section 3.4)."""
    schedule = NoiseSchedule(torch.tensor([1.0, 0.9, 0.1], dtype=torch.float64))
    like = torch.zeros(2, dtype=torch.float64)
    times = torch.tensor([1, 2])
    for prediction, expected in {"epsilon": (5 / 9, 1.0), "x0": (5.0, 1 / 9), "v": (0.5, 0.1)}.items():
        diffusion = Diffusion(schedule=schedule, prediction=prediction)  # type: ignore[arg-type]
        close(diffusion.min_snr_weight(times, 5.0, like), expected, 1e-12)
        assert diffusion.min_snr_weight(2, 5.0, like) == pytest.approx(expected[1])


def test_an_untrained_network_has_finite_gradients_at_every_time() -> None:
    """t = 1 and t > 1 share a batch, and what the one discards must not spoil the other's gradient."""
    x0, eps = (x.float() for x in _images())
    for variance in ("fixed_small", "fixed_large", "learned", "learned_range"):
        for name in ("linear", "cosine", "jsd"):
            prediction: PredictionKind = "v" if name == "jsd" else "epsilon"
            diffusion = Diffusion(
                schedule=make_schedule(name, 100),  # type: ignore[arg-type]
                prediction=prediction,
                variance=variance,  # type: ignore[arg-type]
            )
            out = torch.zeros(6, 4 if diffusion.learns_variance else 2, 4, 4, requires_grad=True)
            loss = bound(diffusion, lambda x, t: out, x0, TIMES, eps)  # noqa: B023
            loss.sum().backward()
            assert torch.isfinite(loss).all(), (variance, name)
            assert out.grad is not None
            assert torch.isfinite(out.grad).all(), (variance, name)
