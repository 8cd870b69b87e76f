"""The bound on a split: any batch size, strided estimates without a bias, padding, tables that add up."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.diffusion import Diffusion
from ddpm.evaluate.nll import measure, subset, write_tables
from ddpm.images import Crop
from ddpm.likelihood import isolate, strata
from ddpm.schedule import make_schedule

T = 100
DIFFUSION = Diffusion(schedule=make_schedule("cosine", T), variance="fixed_small")
SPREAD = 0.25


def _levels(count: int, side: int = 6) -> np.ndarray:
    generator = np.random.default_rng(0)
    x = SPREAD * generator.standard_normal((count, 1, side, side))
    return np.round((x + 1) * 127.5).clip(0, 255).astype(np.uint8)


def _coefficient(t: Tensor) -> Tensor:
    a = DIFFUSION.schedule.alpha_bar[t]
    return a.sqrt() * SPREAD**2 / (a * SPREAD**2 + 1 - a)


def _linear(x: Tensor, t: Tensor) -> Tensor:
    """The best linear denoiser of N(0, SPREAD^2), as a prediction of epsilon."""
    a = DIFFUSION.schedule.alpha_bar[t].view(-1, 1, 1, 1)
    x0 = _coefficient(t).view(-1, 1, 1, 1) * x.double()
    return ((x.double() - a.sqrt() * x0) / (1 - a).sqrt()).float()


def _measure(levels: np.ndarray, **settings: Any) -> Any:
    return measure(DIFFUSION, _linear, levels, clip=False, progress=False, **settings)


def _expected(levels: np.ndarray) -> Tensor:
    """(N, T - 1): E[L_{t-1}] of each image over its noise, t = 2..T, exactly, in bits per dimension."""
    t = torch.arange(1, T + 1)
    a, k = DIFFUSION.schedule.alpha_bar[1:], _coefficient(t)
    power = (torch.from_numpy(levels).double() / 127.5 - 1).square().flatten(1).mean(1)[:, None]
    mse = (1 - k * a.sqrt()).square() * power + k.square() * (1 - a)
    snr = a / (1 - a)
    return 0.5 * (snr[:-1] - snr[1:]) * mse[:, 1:] / math.log(2)


def _agrees(values: Tensor, expected: Tensor) -> None:
    """The mean difference is within four of its standard errors."""
    difference = values - expected
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / len(difference) ** 0.5


def test_all_timesteps_agree_with_the_exact_expectation() -> None:
    levels = _levels(48)
    result = _measure(levels)
    _agrees(result.bound.bits[:, 1:-1].sum(1), _expected(levels).sum(1))
    assert not result.is_estimate
    assert result.numbers()["scaling"] is None


@pytest.mark.parametrize("count", [4, 12, 40])
def test_a_strided_estimate_has_no_bias(count: int) -> None:
    levels = _levels(400)
    result = _measure(levels, parts=strata(T, count), batch_size=400)
    _agrees(result.bound.bits[:, 1:-1].sum(1), _expected(levels).sum(1))
    assert result.is_estimate
    assert result.numbers()["timesteps_visited"] == count


def test_an_even_stride_would_have_a_bias() -> None:
    """The negative control of the test above: one and the same timestep of each part is told apart."""
    levels, parts = _levels(400), strata(T, 12)
    expected = _expected(levels)
    last = torch.stack([expected[:, part.stop - 3] * len(part) for part in parts[1:]], 1).sum(1)
    with pytest.raises(AssertionError):
        _agrees(last, expected.sum(1))
    assert abs(float((last - expected.sum(1)).mean())) > 4 * _measure(levels, parts=parts).transitions.error


def test_isolated_times_are_measured_themselves() -> None:
    parts = isolate(strata(T, 5), [50, 100])
    assert range(50, 51) in parts
    assert range(100, 101) in parts
    assert [t for part in parts for t in part] == list(range(1, T + 1))
    levels = _levels(300)
    result = _measure(levels, parts=parts, batch_size=300)
    k = parts.index(range(50, 51))
    _agrees(result.bound.bits[:, k], _expected(levels)[:, 48])
    _agrees(result.bound.rate[:, k] - result.bound.bits[:, -1], _expected(levels)[:, 49:].sum(1))


@pytest.mark.parametrize("count", [None, 9])
def test_any_batch_size(count: int | None) -> None:
    levels = _levels(37)
    first, *others = (_measure(levels, parts=strata(T, count), batch_size=b, seed=5) for b in (37, 1, 16, 20))
    for other in others:
        np.testing.assert_allclose(other.bound.bits, first.bound.bits, rtol=1e-4, atol=1e-6)
        assert other.total.value == pytest.approx(first.total.value, rel=1e-5)
    # Fewer images are the first of more; another seed is another draw.
    few = _measure(levels[:5], parts=strata(T, count), seed=5)
    np.testing.assert_allclose(few.bound.bits, first.bound.bits[:5], rtol=1e-4, atol=1e-6)
    assert abs(_measure(levels, parts=strata(T, count), seed=6).total.value - first.total.value) > 1e-4


def test_padding_is_shared_out_over_the_picture() -> None:
    levels = _levels(3, side=8)
    whole, cropped = _measure(levels), _measure(levels, crop=Crop(1, 1, 6, 6))
    assert cropped.total == whole.total
    numbers = cropped.numbers()
    per = {kind: numbers[f"bits_per_{kind}"]["total"] for kind in ("dimension", "picture_dimension")}
    assert per["picture_dimension"]["value"] * 36 == pytest.approx(per["dimension"]["value"] * 64)
    assert per["picture_dimension"]["error"] * 36 == pytest.approx(per["dimension"]["error"] * 64)
    assert "bits_per_picture_dimension" not in whole.numbers()


def test_tables_add_up(tmp_path: Path) -> None:
    levels = _levels(6)
    result = _measure(levels, parts=strata(T, 10))
    paths = write_tables(tmp_path, "nll-test", result, {"seed": 0}, np.arange(6))
    with paths[1].open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    numbers = json.loads(paths[0].read_text())
    sums = {key: value["value"] for key, value in numbers["bits_per_dimension"].items()}
    terms = [row["bits_per_dimension"] for row in rows]
    assert len(rows) == 10
    assert terms[0] == pytest.approx(sums["decoder"])
    assert sum(terms[1:]) == pytest.approx(sums["transitions"])
    assert sum(terms) + sums["prior"] == pytest.approx(sums["total"])
    assert rows[0]["rate"] + sums["decoder"] == pytest.approx(sums["total"])
    assert rows[-1]["rate"] == pytest.approx(sums["prior"])
    assert sums["rate"] == pytest.approx(rows[0]["rate"])
    with np.load(paths[2]) as raw:
        assert raw["bits"].shape == (6, 11)
        assert raw["bits"].sum(1).mean() == pytest.approx(sums["total"])
        assert raw["bits"].sum(1).std(ddof=1) / 6**0.5 == pytest.approx(numbers["bits_per_dimension"]["total"]["error"])
        assert raw["t_last"].tolist() == [int(row["t_last"]) for row in rows]


def test_a_subset_is_a_fixed_draw() -> None:
    assert subset(50, 7).tolist() == subset(50, None)[:7].tolist()
    assert sorted(subset(50, None)) == list(range(50))
    assert subset(1000, 100).max() > 500
