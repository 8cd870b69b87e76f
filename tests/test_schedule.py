"""Schedules against four peers' tables, and the step lists' boundaries."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from ddpm.interop.steps import improved_steps
from ddpm.schedule import (
    NoiseSchedule,
    ScheduleName,
    beta_table,
    from_betas,
    karras_steps,
    make_schedule,
    pairs,
    sampling_steps,
    spaced_steps,
    zero_terminal_snr,
)
from tests.reference import arrays, close, index

BETA_TABLES = {
    "betas.original.linear.T1000": ("linear", 1000, {}),
    "betas.original.quad.T1000": ("quad", 1000, {}),
    "betas.original.const.T1000": ("const", 1000, {}),
    "betas.original.jsd.T1000": ("jsd", 1000, {}),
    "betas.original.warmup10.T1000": ("warmup10", 1000, {}),
    "betas.original.warmup50.T1000": ("warmup50", 1000, {}),
    "betas.improved.linear.T1000": ("linear", 1000, {}),
    # improved-diffusion scales its linear betas by 1000 / T; the paper does not.
    "betas.improved.linear.T50": ("linear", 50, {"beta_start": 1e-4 * 20, "beta_end": 0.02 * 20}),
    "betas.improved.cosine.T1000": ("cosine", 1000, {}),
    "betas.improved.cosine.T4000": ("cosine", 4000, {}),
    "betas.lucidrains.linear.T1000": ("linear", 1000, {}),
    "betas.xdiffusion.quadratic.T1000": ("quad", 1000, {}),
}


@pytest.mark.parametrize("name", BETA_TABLES)
def test_betas_equal_the_peers(golden: Path, name: str) -> None:
    schedule, T, ends = BETA_TABLES[name]
    expected = arrays(golden / "schedules.npz")[name]
    np.testing.assert_allclose(beta_table(schedule, T, **ends).numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "schedule", "tolerance"),
    [
        # Their formula is evaluated in another order, so small betas differ in the last digits only.
        ("betas.lucidrains.cosine.T1000", "cosine", 1e-11),
        ("betas.xdiffusion.cosine.T1000", "cosine", 1e-11),
        ("betas.lucidrains_f64.sigmoid.T1000", "sigmoid", 1e-11),
    ],
)
def test_betas_along_a_curve_equal_the_peers(golden: Path, name: str, schedule: str, tolerance: float) -> None:
    expected = arrays(golden / "schedules.npz")[name]
    np.testing.assert_allclose(beta_table(schedule, 1000).numpy(), expected, rtol=tolerance)


def test_sigmoid_differs_from_the_rounded_peer_as_documented(golden: Path) -> None:
    expected = arrays(golden / "schedules.npz")["betas.lucidrains.sigmoid.T1000"]
    difference = np.abs(beta_table("sigmoid", 1000).numpy() - expected).max()
    assert 1e-7 < difference < 6.6e-6  # two of its constants are rounded to float32


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("linear", "linear"), ("scaled_linear", "quad"), ("squaredcos_cap_v2", "cosine")],
)
def test_alpha_bar_equals_diffusers_tables(golden: Path, name: str, schedule: str) -> None:
    tables = arrays(golden / "schedules.npz")
    ours = make_schedule(schedule, 1000)
    np.testing.assert_allclose(
        ours.alpha_bar[1:].numpy(), tables[f"alphas_cumprod.diffusers.{name}.T1000"], rtol=2e-6, atol=1e-12
    )
    np.testing.assert_allclose(ours.betas.numpy(), tables[f"betas.diffusers.{name}.T1000"], rtol=1e-4, atol=1e-7)


def test_zero_terminal_snr_equals_diffusers(golden: Path) -> None:
    tables = arrays(golden / "schedules.npz")
    ours = zero_terminal_snr(make_schedule("linear", 1000))
    name = "linear_zero_snr.T1000"
    # Theirs is rescaled in float32; near T, where alpha_bar is 1e-8 and less, differences of roots lose digits.
    np.testing.assert_allclose(
        ours.alpha_bar[1:].numpy(), tables[f"alphas_cumprod.diffusers.{name}"], rtol=1e-5, atol=1e-9
    )
    np.testing.assert_allclose(ours.betas.numpy(), tables[f"betas.diffusers.{name}"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", get_args(ScheduleName))
def test_schedules_of_any_length_rescaled_to_zero_terminal_snr(name: ScheduleName) -> None:
    for T in (1, 2, 3, 7, 50, 1000, 4000):
        schedule = make_schedule(name, T)
        assert schedule.T == T
        assert bool((schedule.alpha_bar[1:] < 1).all())
        if T == 1:
            with pytest.raises(ValueError, match="T >= 2"):
                zero_terminal_snr(schedule)
            continue
        rescaled = zero_terminal_snr(schedule)
        assert rescaled.alpha_bar[-1] == 0
        assert rescaled.alpha_bar[1].item() == pytest.approx(schedule.alpha_bar[1].item(), rel=1e-12)
        assert bool((rescaled.alpha_bar[:-1] > 0).all())
        # Only the root's scale and place change: its differences keep their proportions.
        before, after = (-s.alpha_bar[1:].sqrt().diff() for s in (schedule, rescaled))
        np.testing.assert_allclose(after / after.sum(), before / before.sum(), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "schedule", "T"),
    [("linear.T1000", "linear", 1000), ("cosine.T1000", "cosine", 1000), ("cosine.T4000", "cosine", 4000)],
)
def test_derived_tables(golden: Path, name: str, schedule: str, T: int) -> None:
    """Every attribute that improved-diffusion derives, from our alpha_bar alone."""
    tables = {
        key.removeprefix(f"derived.{name}."): value
        for key, value in arrays(golden / "schedules.npz").items()
        if key.startswith(f"derived.{name}.")
    }
    a = make_schedule(schedule, T).alpha_bar.numpy()
    now, before = a[1:], a[:-1]
    beta = 1 - now / before
    posterior = (1 - before) / (1 - now) * beta
    formulas = {
        "alphas_cumprod": now,
        "alphas_cumprod_prev": before,
        "alphas_cumprod_next": np.append(a[2:], 0.0),
        "sqrt_alphas_cumprod": now**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - now) ** 0.5,
        "log_one_minus_alphas_cumprod": np.log(1 - now),
        "sqrt_recip_alphas_cumprod": now**-0.5,
        "sqrt_recipm1_alphas_cumprod": (1 / now - 1) ** 0.5,
        "posterior_variance": posterior,
        "posterior_log_variance_clipped": np.log(np.append(posterior[1], posterior[1:])),
        "posterior_mean_coef1": before**0.5 * beta / (1 - now),
        "posterior_mean_coef2": (now / before) ** 0.5 * (1 - before) / (1 - now),
    }
    checked = 0
    for key, expected in tables.items():
        if key in formulas:
            np.testing.assert_allclose(formulas[key], expected, rtol=1e-9, atol=1e-12, err_msg=key)
            checked += 1
    assert checked == len(tables), sorted(set(tables) - set(formulas))


def test_respacing_equals_improved_diffusion(golden: Path) -> None:
    tables, settings = arrays(golden / "schedules.npz"), index(golden / "schedules_index.json")
    for case in settings["space"]:
        steps = improved_steps(case["num_timesteps"], case["section_counts"])
        assert [t - 1 for t, _ in reversed(steps)] == tables[case["key"]].tolist(), case
    for case in settings["space_errors"]:
        if case["raises"]:
            with pytest.raises(ValueError, match="steps"):
                improved_steps(case["num_timesteps"], case["section_counts"])
        else:
            improved_steps(case["num_timesteps"], case["section_counts"])


@pytest.mark.parametrize(("T", "sections"), [(1000, "ddim300"), (10, [11]), (10, [3, 6])])
def test_impossible_respacings_raise(T: int, sections: list[int] | str) -> None:
    with pytest.raises(ValueError, match="steps"):
        improved_steps(T, sections)


@pytest.mark.parametrize(("T", "count"), [(1000, 1000), (1000, 50), (1000, 7), (1000, 2), (1000, 1), (1, 1), (3, 2)])
def test_spaced_steps_start_at_T_and_end_at_0(T: int, count: int) -> None:
    steps = spaced_steps(T, count)
    assert len(steps) == count
    assert steps[0][0] == T
    assert steps[-1][1] == 0
    assert all(t > s for t, s in steps)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(steps))


def test_all_steps_is_no_respacing() -> None:
    assert spaced_steps(1000) == [(t, t - 1) for t in range(1000, 0, -1)]


def test_spaced_steps_equal_improved_diffusion() -> None:
    for count in (2, 10, 20, 50):
        assert spaced_steps(1000, count, "linspace") == improved_steps(1000, [count])


@pytest.mark.parametrize("count", [0, 11, -1])
def test_impossible_counts_raise(count: int) -> None:
    with pytest.raises(ValueError, match="steps"):
        spaced_steps(10, count)


@pytest.mark.parametrize("times", [[], [3, 3, 1], [0, 2]])
def test_impossible_times_raise(times: list[int]) -> None:
    with pytest.raises(ValueError, match="times"):
        pairs(times)


@pytest.mark.parametrize("name", ["linear", "quad", "const", "jsd", "warmup10", "warmup50", "cosine", "sigmoid"])
@pytest.mark.parametrize("T", [1, 2, 10, 100])
def test_any_T(name: str, T: int) -> None:
    schedule = make_schedule(name, T)
    assert schedule.T == T
    assert schedule.alpha_bar[0] == 1
    assert schedule.alpha_bar.dtype == torch.float64
    close(from_betas(schedule.betas).alpha_bar, schedule.alpha_bar, 1e-12)


def test_jsd_ends_in_pure_noise() -> None:
    assert make_schedule("jsd", 1000).alpha_bar[-1] == 0


def test_options_without_effect_raise() -> None:
    with pytest.raises(ValueError, match="no effect"):
        make_schedule("cosine", 10, beta_end=0.1)
    with pytest.raises(ValueError, match="unknown"):
        make_schedule("cosinus", 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [[0.9, 0.5], [1.0, 0.5, 0.6], [1.0, 0.5, -0.1], [1.0]])
def test_a_schedule_must_start_at_one_and_fall(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="alpha_bar"):
        NoiseSchedule(torch.tensor(bad, dtype=torch.float64))


@pytest.mark.parametrize("t", [-1, 11, -0.5, 10.01])
def test_times_outside_raise(t: float) -> None:
    with pytest.raises(IndexError, match=r"0\.\.10"):
        make_schedule("linear", 10).at(t, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_between_integers_log_sigma_is_a_straight_line(name: str) -> None:
    schedule, x = make_schedule(name, 1000), torch.zeros(3, 1, 2, 2)  # type: ignore[arg-type]
    for t in (1, 2, 500, 999):
        sigmas = [schedule.sigma(t + share) for share in (0, 0.25, 0.5, 0.75, 1)]
        assert sigmas[0] == math.sqrt(1 / float(schedule.alpha_bar[t]) - 1)
        steps = [b / a for a, b in itertools.pairwise(sigmas)]
        assert max(steps) / min(steps) == pytest.approx(1, abs=1e-10)
    # alpha_bar falls from the image on, without a jump at t = 1.
    near = [schedule.at(t, x) for t in (0, 0.5, 0.999, 1)]
    assert near == sorted(near, reverse=True)  # type: ignore[type-var]
    assert near[2] == pytest.approx(near[3], abs=1e-6)


def test_a_tensor_of_times_may_lie_between_integers_too() -> None:
    schedule, x = make_schedule("linear", 1000), torch.zeros(3, 1, 2, 2)
    t = torch.tensor([0.0, 437.25, 1000.0])
    values = schedule.at(t, x)
    assert isinstance(values, torch.Tensor)
    assert values.shape == (3, 1, 1, 1)
    assert values.flatten().tolist() == [schedule.at(float(one), x) for one in t]
    assert torch.equal(schedule.at(torch.tensor([0.0, 437.0, 1000.0]), x), schedule.at(torch.tensor([0, 437, 1000]), x))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["linear", "cosine", "jsd"])
def test_time_of_is_the_inverse_of_sigma(name: str) -> None:
    schedule = make_schedule(name, 100)  # type: ignore[arg-type]
    for t in (0, 0.3, 1, 1.5, 42, 42.42, 98.9, 99):
        assert schedule.time_of(schedule.sigma(t)) == pytest.approx(t, abs=1e-9)
    assert schedule.time_of(1e9) == 100
    with pytest.raises(ValueError, match=r"no time 99\.5"):
        make_schedule("jsd", 100).sigma(99.5)


SPACINGS = ("linspace", "leading", "trailing", "quadratic", "karras")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 50, 333, 999, 1000])
def test_every_list_runs_from_T_to_0_in_so_many_steps(spacing: str, count: int) -> None:
    steps = sampling_steps(make_schedule("linear", 1000), count, spacing)  # type: ignore[arg-type]
    assert len(steps) == count
    assert steps[0][0] == 1000
    assert steps[-1][1] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(steps))
    assert all(t > s for t, s in steps)
    assert min(t for t, _ in steps) >= 1


def test_what_the_spacings_are() -> None:
    times = {name: [t for t, _ in spaced_steps(1000, 5, name)] for name in SPACINGS[:-1]}  # type: ignore[arg-type]
    assert times == {
        "linspace": [1000, 750, 501, 251, 1],
        "leading": [1000, 601, 401, 201, 1],
        "trailing": [1000, 800, 600, 400, 200],
        "quadratic": [1000, 563, 251, 63, 1],
    }
    assert [t for t, _ in spaced_steps(1000, 7, "trailing")] == [1000, 857, 714, 571, 429, 286, 143]
    for name in SPACINGS[:-1]:
        assert spaced_steps(1000, 1000, name) == spaced_steps(1000)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'karras' is no spacing of integers"):
        spaced_steps(1000, 5, "karras")


def test_karras_sigmas_are_the_papers() -> None:
    schedule = make_schedule("linear", 1000)
    sigmas = [schedule.sigma(t) for t, _ in karras_steps(schedule, 9)]
    roots = [sigma ** (1 / 7) for sigma in sigmas]
    gaps = [a - b for a, b in itertools.pairwise(roots)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-9)
    assert (sigmas[0], sigmas[-1]) == (schedule.sigma(1000), schedule.sigma(1))
    for count in (0, 1001):
        with pytest.raises(ValueError, match="number of steps"):
            karras_steps(schedule, count)
    with pytest.raises(ValueError, match="finite sigma"):
        karras_steps(make_schedule("jsd", 10), 5)
