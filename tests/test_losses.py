"""The losses against improved-diffusion's vectors, closed forms, and weights by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpm.diffusion import Diffusion
from ddpm.losses import LossKind, Objective, bound_term
from ddpm.schedule import make_schedule, pairs
from tests.reference import MODELS, Case, arrays, close, files, model_with_variance, ours

LINEAR = Diffusion(schedule=make_schedule("linear", 1000))
MEANS = {"EPSILON": "epsilon", "START_X": "x0", "PREVIOUS_X": "mu"}
VARIANCES = ("FIXED_SMALL", "FIXED_LARGE", "LEARNED", "LEARNED_RANGE")
FLOOR = LINEAR.floor_log_var(pairs([1, 2]))


def _process(kind: str, variance: str) -> Diffusion:
    return replace(LINEAR, prediction=MEANS[kind], variance=variance.lower())  # type: ignore[arg-type]


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
