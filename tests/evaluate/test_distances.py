"""Distances against independent float64 computations, closed forms and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from ddpm.evaluate import distances
from ddpm.evaluate.distances import classes, drift, fid, inception_score, kid, overlap


def _features(seed: int, count: int, dims: int = 8, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, dims)) @ generator.standard_normal((dims, dims)) + shift


def _eigen_fid(a: np.ndarray, b: np.ndarray) -> float:
    """From the eigenvalues of the product of the covariances."""
    product = np.linalg.eigvals(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    roots = np.sqrt(product.real.clip(0)).sum()
    trace = np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False))
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + trace - 2 * roots)


@pytest.mark.parametrize("shift", [0.0, 3.0, 1000.0])
def test_fid_is_the_eigenvalues(shift: float) -> None:
    a, b = _features(1, 400, shift=shift), _features(2, 300)
    assert fid(a, b) == pytest.approx(_eigen_fid(a, b), rel=1e-9)
    root = np.asarray(sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)))
    trace = np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root.real)
    assert fid(a, b) == pytest.approx(float(np.sum((a.mean(0) - b.mean(0)) ** 2) + trace), rel=1e-8)


def test_fid_of_gaussians_in_closed_form() -> None:
    # Samples whose moments are exact: each axis holds +-s, so that nothing is estimated.
    def axes(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        signs = np.concatenate([np.diag(std), -np.diag(std)]) * np.sqrt(len(std) - 0.5)
        return np.asarray(mean + signs)

    m, s = np.array([1.0, -2.0, 0.5]), np.array([1.0, 2.0, 0.3])
    n, r = np.array([0.0, 1.0, 0.5]), np.array([0.5, 2.5, 0.6])
    np.testing.assert_allclose(np.cov(axes(m, s), rowvar=False), np.diag(s**2), atol=1e-12)
    assert fid(axes(m, s), axes(n, r)) == pytest.approx(np.sum((m - n) ** 2) + np.sum((s - r) ** 2), rel=1e-9)


def test_fid_of_fewer_images_than_features() -> None:
    a, b = _features(1, 6), _features(2, 5)  # both covariances are singular
    assert fid(a, b) == pytest.approx(_eigen_fid(a, b), rel=1e-5)
    assert fid(a, a) == pytest.approx(0, abs=1e-5)


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared MMD, with scikit-learn's kernel."""

    def kernel(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return np.asarray(polynomial_kernel(p, q, degree=3, gamma=1 / p.shape[1], coef0=1))

    n, m = len(x), len(y)
    own = [(k.sum() - np.trace(k)) / (c * (c - 1)) for k, c in ((kernel(x, x), n), (kernel(y, y), m))]
    return float(sum(own) - 2 * kernel(x, y).mean())


@pytest.mark.parametrize("rows", [1, 17, 10_000])
def test_kid_is_that_of_all_pairs_and_its_error_the_jackknifes(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "ROWS", rows)
    x, y = _features(1, 40), _features(2, 25)
    found = kid(x, y)
    assert found.value == pytest.approx(_mmd(x, y), rel=1e-9)
    left = [[_mmd(np.delete(x, i, 0), y) for i in range(40)], [_mmd(x, np.delete(y, j, 0)) for j in range(25)]]
    variance = sum((len(values) - 1) / len(values) * np.sum((values - np.mean(values)) ** 2) for values in left)
    assert found.error == pytest.approx(variance**0.5, rel=1e-9)


@pytest.mark.parametrize(("shift", "least", "most"), [(0.0, 0.6, 1.1), (0.7, 0.85, 1.15)])
def test_kid_error_is_its_spread(shift: float, least: float, most: float) -> None:
    """Over draws, KID is right on average; its errors are what they say, and too large by half for equal sets."""
    draw = np.random.default_rng(3).standard_normal
    found = [kid(draw((100, 4)) + shift, draw((110, 4))) for _ in range(300)]
    values = np.array([f.value for f in found])
    exact = kid(draw((4000, 4)) + shift, draw((4000, 4))).value if shift else 0.0
    said = np.sqrt(np.mean([f.error**2 for f in found]))
    assert abs(values.mean() - exact) < 4 * said / len(values) ** 0.5
    assert least < values.std() / said < most


def _overlap(x: np.ndarray, y: np.ndarray, k: int) -> list[float]:
    def radii(points: np.ndarray) -> np.ndarray:
        return np.asarray(NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0][:, -1])

    gaps = np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))
    inside = gaps <= radii(y)
    return [
        float(inside.any(1).mean()),
        float((gaps <= radii(x)[:, None]).any(0).mean()),
        float(inside.sum(1).mean() / k),
        float((gaps.min(0) <= radii(y)).mean()),
    ]


@pytest.mark.parametrize("rows", [1, 17, 10_000])
def test_overlap_by_hand_and_in_chunks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "ROWS", rows)
    x, y = _features(1, 90, 3), _features(2, 120, 3, shift=0.5)
    for k in (1, 5):
        np.testing.assert_allclose(overlap(x, y, k), _overlap(x, y, k), rtol=1e-12)


def test_overlap_tells_collapse_from_rubbish() -> None:
    y = np.random.default_rng(1).standard_normal((300, 2))
    collapsed, rubbish = y[:1] + np.random.default_rng(2).standard_normal((300, 2)) / 100, y + 50
    assert overlap(collapsed, y).precision > 0.9
    assert overlap(collapsed, y).recall < 0.1
    assert overlap(collapsed, y).coverage < 0.1
    assert overlap(rubbish, y) == (0, 0, 0, 0)


def test_inception_score_by_hand() -> None:
    p = np.random.default_rng(1).dirichlet(np.ones(5) / 3, 200)
    expected = np.exp(np.mean(np.sum(p * np.log(p / p.mean(0)), 1)))
    assert inception_score(p) == pytest.approx(expected, rel=1e-9)
    assert inception_score(np.eye(5).repeat(4, 0)) == pytest.approx(5)
    assert inception_score(np.full((9, 5), 0.2)) == pytest.approx(1)


def test_order_changes_rounding_alone() -> None:
    x, y = _features(1, 120), _features(2, 110)
    mixed = np.random.default_rng(3).permutation(len(x))
    assert fid(x[mixed], y) == pytest.approx(fid(x, y), rel=1e-9)
    np.testing.assert_allclose(overlap(x[mixed], y), overlap(x, y), rtol=1e-12)
    assert kid(x, y) == kid(x, y)
    assert fid(x, y) == fid(x, y)
    # A difference of sums: its rounding is that of the mean kernel.
    unit = float(polynomial_kernel(x, y, degree=3, gamma=1 / x.shape[1], coef0=1).mean())
    for one, other in ((x[mixed], y), (x, y[::-1]), (x[mixed], y[::-1])):
        np.testing.assert_allclose(kid(one, other), kid(x, y), rtol=0, atol=1e-12 * unit)


def test_drift_and_classes() -> None:
    generator = np.random.default_rng(1)
    a = generator.integers(0, 200, (20, 6, 5, 3), dtype=np.uint8)
    b = generator.integers(0, 256, (31, 6, 5, 3), dtype=np.uint8)
    for c, found in enumerate(drift(a, b)):
        assert found.mean == pytest.approx(a[..., c].mean() - b[..., c].mean(), abs=1e-9)
        assert found.std == pytest.approx(a[..., c].std() - b[..., c].std(), abs=1e-9)
    assert [d.mean for d in drift(a + np.uint8(7), a)] == pytest.approx([7, 7, 7])
    read = classes(np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.3, 0.7, 0]]))
    assert read.histogram == (2, 2, 0)
    assert read.entropy == pytest.approx(1)
    assert read.confidence == pytest.approx(0.75)
