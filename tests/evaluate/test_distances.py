"""Distances against independent float64 computation and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ddpm.evaluate.distances import classes, compare, drift, fid, inception_score, kid, overlap
from ddpm.evaluate.extractor import Features


def _features(count: int, size: int, seed: int, *, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(size, size)) / np.sqrt(size) + np.eye(size)
    return generator.normal(size=(count, size)) @ mix * scale + shift


def test_fid_equals_the_symmetric_eigenvalue_form() -> None:
    """Tr sqrt(AB) as the trace of sqrt(A^1/2 B A^1/2), which is symmetric: eigh instead of eigvals."""
    a, b = _features(300, 12, 0), _features(250, 12, 1, shift=0.3, scale=1.2)
    means, covariances = [x.mean(0) for x in (a, b)], [np.cov(x, rowvar=False) for x in (a, b)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root)).sum()
    expected = np.square(means[0] - means[1]).sum() + sum(np.trace(c) for c in covariances) - 2 * cross
    assert fid(a, b) == pytest.approx(expected, rel=1e-9)
    assert fid(a, b) == pytest.approx(
        np.square(means[0] - means[1]).sum()
        + np.trace(covariances[0] + covariances[1] - 2 * np.real(sqrtm(covariances[0] @ covariances[1]))),
        rel=1e-7,
    )


def test_fid_of_two_gaussians_is_the_closed_form() -> None:
    """Independent dimensions: |m|^2 + sum (s - 1)^2, in the limit of many samples."""
    a = np.random.default_rng(0).normal(size=(200_000, 3))
    b = np.random.default_rng(1).normal(size=(200_000, 3)) * [1.0, 1.5, 0.5] + [0.2, 0.0, -0.4]
    assert fid(a, b) == pytest.approx(0.04 + 0.16 + 0.25 + 0.25, abs=0.01)


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel() -> None:
    a, b = _features(60, 6, 0), _features(80, 6, 1, shift=0.5)

    def mmd(x: np.ndarray, y: np.ndarray) -> float:
        def kernel(p: np.ndarray, q: np.ndarray) -> np.ndarray:
            return (p @ q.T / p.shape[1] + 1) ** 3

        n, m = len(x), len(y)
        within = [(kernel(z, z).sum() - np.trace(kernel(z, z))) / (len(z) * (len(z) - 1)) for z in (x, y)]
        return float(sum(within) - 2 * kernel(x, y).sum() / (n * m))

    found = kid(a, b[:60])
    values = [mmd(b[:60][i::10], a[i::10]) for i in range(10)]
    assert found.value == pytest.approx(np.mean(values), rel=1e-9)
    assert found.error == pytest.approx(np.std(values, ddof=1) / np.sqrt(10), rel=1e-9)


def test_kid_of_equals_is_zero_within_its_error_and_of_others_is_not() -> None:
    same = kid(_features(500, 8, 0), _features(500, 8, 1))
    other = kid(_features(500, 8, 0), _features(500, 8, 1, shift=1.0))
    assert abs(same.value) < 4 * same.error
    assert other.value > 6 * other.error
    with pytest.raises(ValueError, match="at least 4 images"):
        kid(_features(3, 8, 0), _features(500, 8, 1))


def test_inception_score_between_one_and_the_number_of_classes() -> None:
    sure = np.eye(10)[np.arange(200) % 10]
    assert inception_score(sure) == pytest.approx(10, rel=1e-6)
    assert inception_score(np.full((200, 10), 0.1)) == pytest.approx(1, rel=1e-9)
    p = np.random.default_rng(0).dirichlet(np.ones(10), 300)
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert inception_score(p) == pytest.approx(expected, rel=1e-9)
    assert torch.equal(torch.get_rng_state(), before)


def test_overlap_counts_neighbourhoods() -> None:
    a, b = _features(40, 3, 0), _features(50, 3, 1, shift=0.7)
    k = 3

    def radius(points: np.ndarray, i: int) -> float:
        return float(np.sort(np.linalg.norm(points - points[i], axis=1))[k])

    def inside(points: np.ndarray, among: np.ndarray) -> np.ndarray:
        return np.array(
            [[np.linalg.norm(p - q) <= radius(among, j) for j, q in enumerate(among)] for p in points], dtype=float
        )

    found, hits = overlap(a, b, k), inside(a, b)
    assert found.precision == pytest.approx(hits.max(1).mean())
    assert found.recall == pytest.approx(inside(b, a).max(1).mean())
    assert found.density == pytest.approx(hits.sum() / (k * len(a)))
    assert found.coverage == pytest.approx(hits.max(0).mean())
    far = overlap(a, b + 100, k)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    assert overlap(a, a, k).precision == 1
    with pytest.raises(ValueError, match="more images"):
        overlap(a[:3], b, k)


def test_classes_and_drift() -> None:
    p = np.eye(4)[[0, 0, 1, 1]] * 0.6 + 0.1
    found = classes(p)
    assert found.histogram == (2, 2, 0, 0)
    assert found.entropy == pytest.approx(1)
    assert found.confidence == pytest.approx(0.7)
    grey = np.random.default_rng(0).integers(50, 200, (20, 8, 8, 3)).astype(np.uint8)
    red = grey.copy()
    red[..., 0] += 10
    shift = drift(red, grey)
    assert [round(d.mean, 9) for d in shift] == [10, 0, 0]
    assert all(abs(d.std) < 1e-9 for d in shift)


def test_the_order_of_images_does_not_matter() -> None:
    vectors, other = _features(200, 6, 0), Features(_features(200, 6, 1), np.full((200, 10), 0.1))
    p = np.random.default_rng(0).dirichlet(np.ones(10), 200)
    order = np.random.default_rng(2).permutation(200)
    a, b = (compare(f, other) for f in (Features(vectors, p), Features(vectors[order], p[order])))
    assert a.fid == pytest.approx(b.fid, rel=1e-9)
    assert a.overlap == pytest.approx(b.overlap)
    assert a.classes.histogram == b.classes.histogram
    assert abs(a.kid.value - b.kid.value) < 4 * a.kid.error  # its blocks are others
