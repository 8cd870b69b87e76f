"""The bound against improved-diffusion's loops, against closed forms for Gaussian data, and its own sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from ddpm.diffusion import Diffusion, Net, VarianceKind
from ddpm.likelihood import Bound, Term, bound_terms, collect, prior_term, rmse_of_levels, strata, term_at
from ddpm.schedule import Pair, make_schedule, pairs, spaced_steps
from tests.reference import Case, arrays, close, files, index, model_with_variance

MEANS: dict[str, Any] = {"EPSILON": "epsilon", "START_X": "x0"}


def _bound(diffusion: Diffusion, net: Net, x0: Tensor, steps: list[Pair], **settings: Any) -> Bound:
    terms = list(bound_terms(diffusion, net, x0, steps, **settings))
    return collect(terms, prior_term(diffusion, x0, steps[0][0]))


def _recorded(golden: Path, case: dict[str, Any]) -> tuple[Diffusion, list[Pair], Net]:
    """The process, the pairs and the network of a recorded loop."""
    spaced = case["spaced"]
    T = 1000 if spaced else case["num_timesteps"]
    scale = 1000 / T  # improved-diffusion's linear schedule scales with T
    diffusion = Diffusion(
        schedule=make_schedule("linear", T, beta_start=1e-4 * scale, beta_end=0.02 * scale),
        prediction=MEANS[case["mean_type"]],
        variance=case["var_type"].lower(),
    )
    steps = spaced_steps(T)
    if spaced:
        steps = pairs([int(t) + 1 for t in arrays(golden / "bpd.npz")[f"spaced_timestep_map.{spaced}"]])
    clock = 20.0 if case["rescale_timesteps"] else 1.0
    reference = model_with_variance(case["model"], case["var_type"])
    return diffusion, steps, lambda x, t: reference(x, (t - 1) * clock)


CASES = range(28)


@pytest.mark.parametrize("number", CASES)
def test_recorded_loops(golden: Path, number: int) -> None:
    """Every term, the total, and both errors; their columns go down with time, ours up."""
    file, case = arrays(golden / "bpd.npz"), index(golden / "bpd_index.json")[number]
    c, name, double = case["channels"], f"bpd.{case['tag']}", case["dtype"].endswith("64")
    x0, noise = (torch.from_numpy(file[f"{key}.{c}"]) for key in ("x0", "noise"))
    if double:
        x0, noise = torch.from_numpy(file[f"x0_u8.{c}"]).double() / 127.5 - 1, noise.double()
    diffusion, steps, net = _recorded(golden, case)
    bound = _bound(diffusion, net, x0, steps, noise=lambda k: noise[k], clip=case["clip"], decoder="tanh")
    assert bound.bits.shape == (4, 51)
    # The factor covers that both sides round; the README trusts the float64 loops to 1e-5.
    slack = {k: 4 * v for k, v in case.get("f32_vs_f64_max_abs", {}).items()}
    for key, value in {
        "total_bpd": bound.total,
        "prior_bpd": bound.bits[:, -1],
        "vb": bound.bits[:, :-1].flip(1),
        "xstart_mse": bound.x0_mse.flip(1),
        "mse": bound.eps_mse.flip(1),
    }.items():
        close(value, file[f"{name}.{key}.{c}"], 1e-5 + (0 if double else slack[key]))


@files
def test_prior(golden: Path, file: str, c: str, tolerance: float, amplified: float) -> None:
    case = Case(golden, file, c)
    close(
        prior_term(Diffusion(schedule=make_schedule("linear", 1000)), case.x0),
        case["prior_bpd"],
        1e-12 if "f64" in file else 2e-9,
    )


def test_all_recorded_loops_are_read(golden: Path) -> None:
    assert len(index(golden / "bpd_index.json")) == len(CASES)
    file = arrays(golden / "bpd.npz")
    for spaced in ("ddim50", "50"):
        times = [int(t) + 1 for t in file[f"spaced_timestep_map.{spaced}"]]
        a = make_schedule("linear", 1000).alpha_bar[[0, *times]]
        close(1 - a[1:] / a[:-1], file[f"spaced_betas.{spaced}"], 1e-12)


# Data of independent pixels N(M, S^2), far from the edges -1 and 1, and their optimal denoiser.
M, S, SIDE = 0.1, 0.15, 24


def _gaussian_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return M + S * torch.randn(count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)


def _optimal(diffusion: Diffusion) -> Net:
    """E[x_0 | x_t] for those data, as a prediction of epsilon."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        a = diffusion.schedule.alpha_bar[t].view(-1, 1, 1, 1)
        x0 = M + a.sqrt() * S**2 / (a * S**2 + 1 - a) * (x - a.sqrt() * M)
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    return net


def _noise(count: int, seed: int = 1) -> Callable[[int], Tensor]:
    def draw(k: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + k)
        return torch.randn(count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)

    return draw


def _exact(diffusion: Diffusion) -> tuple[list[float], list[float]]:
    """(L_0, L_1, ..., L_T) in bits per dimension, and the distortion at t = 1..T, of the optimal denoiser."""
    a = diffusion.schedule.alpha_bar.numpy()
    T, snr = len(a) - 1, a[1:] / (1 - a[1:])
    mse = S**2 / (1 + S**2 * snr)
    # L_{t-1} = (SNR_{t-1} - SNR_t) / 2 times the error (arXiv 2107.00630, Equation 13), for the posterior's variance.
    terms = 0.5 * (snr[:-1] - snr[1:]) * mse[1:]
    if diffusion.variance == "fixed_large":  # KL of two variances r : 1, and the error in the larger one's units
        r = (1 - a[1:-1]) / (1 - a[2:])
        terms = r * terms + 0.5 * (r - 1 - np.log(r))
    sigma = math.exp(0.5 * (diffusion.floor_log_var(spaced_steps(T)) or 0))

    def missed(z: float) -> float:
        """-log of the bin's mass where the mean is |z| standard deviations of the error off, times z's density."""
        d, half = abs(z) * math.sqrt(mse[0]), 1 / 255
        near, far = norm.logsf((d - half) / sigma), norm.logsf((d + half) / sigma)
        return float(-norm.pdf(z) * (near + np.log1p(-np.exp(far - near))))

    decoder = quad(missed, -8, 8, epsabs=1e-10)[0]
    last = 0.5 * (a[-1] * (S**2 + M**2) - a[-1] - math.log1p(-a[-1]))
    return [x / math.log(2) for x in (decoder, *terms, last)], mse.tolist()


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_gaussian_data(variance: VarianceKind, schedule: Any) -> None:
    """Bits per dimension, rate and distortion agree with the exact ones within four standard errors."""
    ends = {"beta_start": 1e-3, "beta_end": 0.2} if schedule == "linear" else {}
    diffusion = Diffusion(schedule=make_schedule(schedule, 100, **ends), variance=variance)
    x0 = _gaussian_images(64)
    bound = _bound(diffusion, _optimal(diffusion), x0, spaced_steps(100), noise=_noise(64), clip=False)
    bits, mse = _exact(diffusion)
    exact_rate = np.cumsum(bits[::-1])[::-1][1:]
    for value, expected in (
        (bound.total, sum(bits)),
        *zip(bound.bits.T, bits, strict=True),
        *zip(bound.rate.T, exact_rate, strict=True),
        *zip(bound.x0_mse.T, mse, strict=True),
    ):
        error = float(value.std()) / 8
        assert float(value.mean()) == pytest.approx(expected, abs=4.5 * error + 1e-12)
        assert error < 0.02 * expected + 1e-3  # the standard errors are small enough to mean something


def test_sums() -> None:
    """The terms sum to the total, and rate and distortion at t = 1 to the bound."""
    diffusion = Diffusion(schedule=make_schedule("linear", 30))
    x0 = _gaussian_images(3)
    bound = _bound(diffusion, _optimal(diffusion), x0, spaced_steps(30), noise=_noise(3))
    close(bound.total, bound.bits[:, 0] + bound.rate[:, 0], 1e-14)
    close(bound.rate[:, -1], prior_term(diffusion, x0), 1e-14)
    close(bound.rate[:, :-1] - bound.rate[:, 1:], bound.bits[:, 1:-1], 1e-14)
    assert (bound.bits >= 0).all()


def test_an_oracle_of_the_noise_pays_for_nothing_but_the_decoder() -> None:
    diffusion = Diffusion(schedule=make_schedule("linear", 40), variance="fixed_small")
    x0, noise = _gaussian_images(2), _noise(2)
    now: list[Tensor] = []

    def oracle(x: Tensor, t: Tensor) -> Tensor:
        return now[-1]

    def watched(k: int) -> Tensor:
        now.append(noise(k))
        return now[-1]

    bound = _bound(diffusion, oracle, x0, spaced_steps(40), noise=watched, clip=False)
    assert bound.bits[:, 1:-1].abs().max() < 1e-12
    assert (bound.bits[:, 0] > 0.1).all()
    assert bound.x0_mse.max() < 1e-20
    # Beta's own variance is not the posterior's: even the oracle pays for the difference.
    larger = _bound(replace(diffusion, variance="fixed_large"), oracle, x0, spaced_steps(40), noise=watched, clip=False)
    assert (larger.bits[:, 1:-1] > 1e-6).all()


@pytest.mark.parametrize("t", [2, 7, 39, 40])
def test_the_optimal_denoiser_pays_the_closed_form(t: int) -> None:
    """For each x_t, not only on average: half the fall of the signal-to-noise ratio times the squared error."""
    diffusion = Diffusion(schedule=make_schedule("linear", 40), variance="fixed_small")
    x0, eps, net = _gaussian_images(2), _noise(2)(t), _optimal(diffusion)
    term = term_at(diffusion, net, x0, t, t - 1, eps, floor_log_var=None, clip=False)
    a = diffusion.schedule.alpha_bar
    estimate = diffusion.to_x0(net(x_t := diffusion.q_sample(x0, t, eps), torch.full((2,), t)), x_t, t)
    fall = float(a[t - 1] / (1 - a[t - 1]) - a[t] / (1 - a[t]))
    expected = 0.5 * fall * (estimate - x0).square().flatten(1).mean(1) / math.log(2)
    close(term.bits, expected, 1e-9)
    assert (term.bits > 1e-5).all()


def test_shorter_chains_have_looser_bounds() -> None:
    """Fewer steps, each reverse step further from Gaussian; a chain of its own, not an estimate of the long one."""
    diffusion = Diffusion(schedule=make_schedule("cosine", 200), variance="fixed_small")
    x0, net = _gaussian_images(16), _optimal(diffusion)
    totals = [
        float(_bound(diffusion, net, x0, steps, noise=_noise(16), clip=False).bits[:, 1:].sum(1).mean())
        for steps in (spaced_steps(200, n, "linspace") for n in (200, 20, 5))
    ]
    assert totals[0] < totals[1] < totals[2]


@pytest.mark.parametrize(("T", "count"), [(1, None), (1, 1), (2, 2), (20, 5), (1000, 2), (1000, 50), (1000, 999)])
def test_strata_part_the_timesteps(T: int, count: int | None) -> None:
    parts = strata(T, count)
    assert len(parts) == (count or T)
    assert [t for part in parts for t in part] == list(range(1, T + 1))
    assert parts[0] == range(1, 2)
    lengths = [len(part) for part in parts]
    assert min(lengths) >= 1
    assert lengths == sorted(lengths)


def test_strata_of_all_timesteps_and_impossible_ones() -> None:
    assert strata(7) == [range(t, t + 1) for t in range(1, 8)]
    for count in (0, 1, 8):
        with pytest.raises(ValueError, match=r"2\.\.7"):
            strata(7, count)


def test_a_time_for_each_image() -> None:
    """Tensors of times give what numbers do, image by image."""
    diffusion = Diffusion(schedule=make_schedule("linear", 40))
    x0, eps, net = _gaussian_images(3), _noise(3)(0), _optimal(diffusion)
    t = torch.tensor([2, 20, 40])
    together = term_at(diffusion, net, x0, t, t - 1, eps, floor_log_var=-9.0)
    for i in range(3):
        alone = term_at(diffusion, net, x0[[i]], int(t[i]), int(t[i]) - 1, eps[[i]], floor_log_var=-9.0)
        close(torch.stack([value[i] for value in together]), torch.stack([value[0] for value in alone]), 1e-12)


def test_levels() -> None:
    assert float(rmse_of_levels(torch.tensor((2 / 255) ** 2, dtype=torch.float64))) == pytest.approx(1.0)


def test_columns_go_up_with_time() -> None:
    terms = [Term(*(torch.tensor([float(10 * i + j)]) for j in range(3))) for i in (3, 2, 1)]
    bound = collect(terms, torch.tensor([99.0]))
    assert bound.bits.tolist() == [[10, 20, 30, 99]]
    assert bound.x0_mse.tolist() == [[11, 21, 31]]
    assert bound.eps_mse.tolist() == [[12, 22, 32]]
