"""Distances where other forms of them fail: singular covariances, correlated features, missing modes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpm.evaluate.distances import fid, inception_score, kid, overlap


def _with_moments(mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """Features whose sample mean and (unbiased) covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(500, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    values, vectors = np.linalg.eigh(covariance)
    return mean + x @ (vectors * np.sqrt(values.clip(0))).T


def test_fid_between_commuting_gaussians_is_the_closed_form_even_where_they_are_flat() -> None:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    a, b, shift = rng.uniform(0, 4, 6), rng.uniform(0, 4, 6), rng.normal(size=6)
    a[0] = b[1] = 0  # singular, where a root of the matrix product fails
    left, right = (_with_moments(m, turn * s @ turn.T, k) for k, (m, s) in enumerate([(np.zeros(6), a), (shift, b)]))
    expected = np.square(shift).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert fid(left, right) == pytest.approx(expected, rel=1e-6)
    assert fid(left, left) == pytest.approx(0, abs=1e-6)


def test_fid_between_any_gaussians_is_the_matrix_root_found_without_eigenvalues() -> None:
    rng = np.random.default_rng(3)
    mix, shift = rng.normal(size=(2, 8, 8)), rng.normal(size=8)
    a, b = (m @ m.T + 0.1 * np.eye(8) for m in mix)
    root, inverse = a @ b, np.eye(8)
    for _ in range(60):  # Denman and Beavers (1976)
        root, inverse = (root + np.linalg.inv(inverse)) / 2, (inverse + np.linalg.inv(root)) / 2
    np.testing.assert_allclose(root @ root, a @ b, rtol=1e-9, atol=1e-9)
    expected = np.square(shift).sum() + np.trace(a) + np.trace(b) - 2 * np.trace(root)
    left, right = _with_moments(np.zeros(8), a, 0), _with_moments(shift, b, 1)
    assert fid(left, right) == pytest.approx(expected, rel=1e-8)
    assert fid(right, left) == pytest.approx(expected, rel=1e-8)


def test_kid_of_sets_of_two_sizes_is_the_double_sum_over_pairs() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(40, 3)), rng.normal(0.5, 1, (90, 3))

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [(p @ q / 3 + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
        return float(np.mean(pairs))

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kid(x, y).value == pytest.approx(expected, rel=1e-9)


def test_kid_of_sets_of_equal_size_is_torchmetrics() -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = np.random.default_rng(6).normal(size=(2, 50, 4))
    theirs = float(poly_mmd(torch.from_numpy(y), torch.from_numpy(x)))
    assert kid(x, y).value == pytest.approx(theirs, rel=1e-9)


def test_kids_error_is_the_spread_over_new_draws() -> None:
    rng = np.random.default_rng(1)
    found = [kid(rng.normal(size=(200, 4)), rng.normal(size=(350, 4))) for _ in range(150)]
    values, errors = (np.array(column) for column in zip(*found, strict=True))
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(150)
    assert 1 < np.sqrt(np.square(errors).mean()) / values.std() < 1.7  # the sets are alike


def test_overlap_tells_missing_modes_from_rubbish() -> None:
    rng = np.random.default_rng(4)
    both = rng.normal(size=(300, 2)) + np.repeat([[0, 0], [30, 0]], 150, 0)
    one_mode = overlap(rng.normal(size=(300, 2)), both)
    assert one_mode.precision > 0.9
    assert one_mode.recall < 0.6
    assert one_mode.coverage < 0.6
    rubbish = overlap(rng.normal(60, 1, (300, 2)), both)
    assert rubbish.precision == rubbish.density == rubbish.coverage == 0


def test_inception_score_is_the_same_to_the_last_digit_whatever_was_drawn_before() -> None:
    p = np.random.default_rng(7).dirichlet(np.ones(10), 500)
    found = set()
    with torch.random.fork_rng(devices=[]):
        for seed in range(20):
            torch.manual_seed(seed)
            found.add(inception_score(p))
    assert len(found) == 1
