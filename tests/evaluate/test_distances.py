"""Distances against closed forms, slow independent implementations, and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from ddpm.errors import UsageError
from ddpm.evaluate.distances import Moments, frechet, inception_score, kid, moments, support


pytestmark = pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features")


class Given(nn.Module):
    """Hands features through to torchmetrics."""

    num_features = 12

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(12, 12))
    return rng.normal(size=(160, 12)) @ mix, rng.normal(0.3, 1.2, (160, 12)) @ mix


def _fid(x: np.ndarray, y: np.ndarray) -> float:
    return frechet(moments(x), moments(y))


def test_frechet_between_commuting_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    a, b, shift = rng.uniform(0, 4, 6), rng.uniform(0, 4, 6), rng.normal(size=6)
    a[0] = b[1] = 0  # singular, where a matrix root fails
    left = Moments(np.zeros(6), turn * a @ turn.T)
    right = Moments(shift, turn * b @ turn.T)
    expected = np.square(shift).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet(left, right) == pytest.approx(expected, rel=1e-7)
    assert frechet(left, left) == pytest.approx(0, abs=1e-7)


def test_frechet_between_any_gaussians_is_the_matrix_root(sets: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (moments(part) for part in sets)
    product = torch.from_numpy(a.covariance @ b.covariance)
    root, inverse = product.clone(), torch.eye(12, dtype=torch.float64)
    for _ in range(60):  # Denman and Beavers: a root without eigenvalues
        root, inverse = (root + inverse.inverse()) / 2, (inverse + root.inverse()) / 2
    torch.testing.assert_close(root @ root, product)
    gap = np.square(a.mean - b.mean).sum()
    expected = gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * float(root.trace())
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-9)


def test_fid_is_torchmetrics(sets: tuple[np.ndarray, np.ndarray]) -> None:
    theirs = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    for part, real in zip(sets, (False, True), strict=True):
        theirs.update(torch.from_numpy(part), real=real)
    assert _fid(*sets) == pytest.approx(float(theirs.compute()), rel=1e-8)


def test_kid_is_the_double_sum_and_torchmetrics(sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = sets[0][:70], sets[1]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 12 + 1) ** 3)

    own_x = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    own_y = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    cross = np.mean([kernel(a, b) for a in x for b in y])
    assert kid(x, y).value == pytest.approx(own_x + own_y - 2 * cross, rel=1e-9)
    theirs = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=160)
    for part, real in zip(sets, (False, True), strict=True):
        theirs.update(torch.from_numpy(part), real=real)
    assert kid(*sets).value == pytest.approx(float(theirs.compute()[0]), rel=1e-6)


def test_kid_of_one_distribution_is_0_and_its_error_is_its_spread() -> None:
    rng = np.random.default_rng(1)
    found = [kid(*rng.normal(size=(2, 100, 4))) for _ in range(100)]
    values, errors = (np.array(column) for column in zip(*found, strict=True))
    assert abs(values.mean()) < 3 * values.std() / 10
    assert 0.7 < errors.mean() / values.std() < 1.5


def test_inception_score_is_torchmetrics_and_has_the_right_ends() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (300, 10))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    theirs = InceptionScore(feature=Given(), splits=2)
    theirs.update(torch.from_numpy(np.concatenate([logits, logits])))
    torch.manual_seed(0)
    order = torch.randperm(600)  # what it shuffles by
    doubled = np.concatenate([p, p])[order.numpy()]
    torch.manual_seed(0)
    assert np.mean([inception_score(half) for half in np.split(doubled, 2)]) == pytest.approx(float(theirs.compute()[0]))
    assert inception_score(np.eye(10)) == pytest.approx(10)
    assert inception_score(np.full((5, 10), 0.1)) == pytest.approx(1)


def test_support_is_the_definition(sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y, k = sets[0][:50], sets[1][:70] + 0.5, 3

    def reach(points: np.ndarray) -> np.ndarray:
        return np.array([sorted(np.linalg.norm(points - one, axis=1))[k] for one in points])  # [0] is itself

    between = np.array([[np.linalg.norm(a - b) for b in y] for a in x])
    balls_y, balls_x = between <= reach(y), between <= reach(x)[:, None]
    found = support(x, y, k)
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1
    assert found.precision == pytest.approx(balls_y.any(1).mean())
    assert found.recall == pytest.approx(balls_x.any(0).mean())
    assert found.density == pytest.approx(balls_y.sum(1).mean() / k)
    assert found.coverage == pytest.approx(balls_y.any(0).mean())
    with pytest.raises(UsageError, match="more than 3 images on each side, found 3 and 70"):
        support(x[:3], y, k)


def test_support_tells_missing_modes_from_rubbish() -> None:
    rng = np.random.default_rng(4)
    both = rng.normal(size=(300, 2)) + np.repeat([[0, 0], [30, 0]], 150, 0)
    one_mode = support(rng.normal(size=(300, 2)), both)
    assert one_mode.precision > 0.9
    assert one_mode.recall < 0.6
    assert one_mode.coverage < 0.6
    rubbish = support(rng.normal(60, 1, (300, 2)), both)
    assert rubbish.precision == rubbish.density == rubbish.coverage == 0


def test_order_changes_nothing_but_rounding(sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = sets
    rng = np.random.default_rng(5)
    u, v = x[rng.permutation(len(x))], y[rng.permutation(len(y))]
    assert _fid(u, v) == pytest.approx(_fid(x, y), rel=1e-9)
    assert kid(u, v).value == pytest.approx(kid(x, y).value, rel=1e-9)
    assert support(u, v) == pytest.approx(support(x, y))
