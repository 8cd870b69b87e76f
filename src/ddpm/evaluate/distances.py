"""Distances between two sets of features, in float64.

Own code, not torchmetrics: its KID and Inception Score shuffle with torch's global generator, so that the same
command would give another number, and its KID's spread over overlapping subsets is no standard error. The tests hold
these functions to torchmetrics wherever both compute the same thing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.errors import UsageError

GROUPS = 20
"""Groups of the jackknife that gives KID's standard error."""
NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
ROWS = 1024
"""Rows of a distance matrix held at a time."""


class Moments(NamedTuple):
    """What the Frechet distance knows of a set."""

    mean: np.ndarray
    """(D,) float64."""
    covariance: np.ndarray
    """(D, D) float64, unbiased."""


def moments(features: np.ndarray) -> Moments:
    """Mean and covariance of (N, D) features, N >= 2."""
    wide = features.astype(np.float64)
    return Moments(wide.mean(0), np.atleast_2d(np.cov(wide, rowvar=False)))


def frechet(a: Moments, b: Moments) -> float:
    """The squared Frechet distance of two Gaussians (Dowson and Landau 1982; FID: Heusel et al. 2017).

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)). The last trace is the sum of the roots of the eigenvalues of
    A^(1/2) B A^(1/2), which is symmetric, so that no root of a matrix without one is ever asked for.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


class Estimate(NamedTuple):
    value: float
    error: float
    """Its standard error."""

    def __str__(self) -> str:
        return f"{self.value:.5f} +- {self.error:.5f}"


def kid(samples: np.ndarray, reference: np.ndarray) -> Estimate:
    """Kernel Inception Distance (Binkowski et al. 2018): the unbiased squared MMD with the kernel (x.y / D + 1)^3.

    Of all pairs at once; the standard error is a jackknife's over `GROUPS` groups of images. It may be negative.

    Args:
        samples: (N, D), N >= 2.
        reference: (M, D), M >= 2.
    """
    x, y = (torch.from_numpy(part).double() for part in (samples, reference))
    groups = min(GROUPS, len(x) // 2, len(y) // 2)
    own_x, own_y, cross = _sums(x, x, groups), _sums(y, y, groups), _sums(x, y, groups)
    sizes_x, sizes_y = (torch.tensor([len(part[g::groups]) for g in range(groups)]) for part in (x, y))
    kept = torch.ones(groups, dtype=torch.float64)
    value = _mmd(own_x, own_y, cross, sizes_x, sizes_y, kept)
    if groups < 2:
        return Estimate(value, 0.0)
    without = torch.eye(groups, dtype=torch.float64)
    left = np.array([_mmd(own_x, own_y, cross, sizes_x, sizes_y, kept - without[g]) for g in range(groups)])
    return Estimate(value, float(np.sqrt((groups - 1) / groups * np.square(left - left.mean()).sum())))


def _sums(x: Tensor, y: Tensor, groups: int) -> Tensor:
    """(groups, groups): the kernel summed over pairs of groups, an image with itself left out."""
    sums = torch.zeros(groups, groups, dtype=torch.float64)
    group_of_y = torch.arange(len(y)) % groups
    for i in range(groups):
        kernel = (x[i::groups] @ y.T / x.shape[1] + 1) ** 3
        if x is y:
            own = torch.arange(len(kernel))
            kernel[own, i + groups * own] = 0
        sums[i].index_add_(0, group_of_y, kernel.sum(0))
    return sums


def _mmd(own_x: Tensor, own_y: Tensor, cross: Tensor, sizes_x: Tensor, sizes_y: Tensor, kept: Tensor) -> float:
    n, m = (sizes_x * kept).sum(), (sizes_y * kept).sum()
    pairs = kept @ own_x @ kept / (n * (n - 1)) + kept @ own_y @ kept / (m * (m - 1))
    return float(pairs - 2 * (kept @ cross @ kept) / (n * m))


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean divergence of each image's class probabilities from their average (Salimans et al. 2016).

    Over all images at once: 1 (all alike) ... K (sure of each, all classes equally often).

    Args:
        probabilities: (N, K).
    """
    p = probabilities.astype(np.float64)
    tiny = np.finfo(np.float64).tiny
    divergence = (p * (np.log(p.clip(tiny)) - np.log(p.mean(0).clip(tiny)))).sum(1)
    return float(np.exp(divergence.mean()))


class Support(NamedTuple):
    """How two sets overlap, from balls round each image that reach to its k-th neighbour in its own set."""

    precision: float
    """Share of the samples inside some ball of the reference (Kynkaanniemi et al. 2019)."""
    recall: float
    """Share of the reference inside some ball of the samples."""
    density: float
    """Balls of the reference that a sample lies in, divided by k, on average; may exceed 1 (Naeem et al. 2020)."""
    coverage: float
    """Share of the reference whose ball holds a sample."""


def support(samples: np.ndarray, reference: np.ndarray, k: int = NEIGHBOURS) -> Support:
    """Precision, recall, density and coverage.

    Args:
        samples: (N, D), N > k.
        reference: (M, D), M > k.

    Raises UsageError for fewer.
    """
    x, y = (torch.from_numpy(part).double() for part in (samples, reference))
    if min(len(x), len(y)) <= k:
        raise UsageError(f"precision and recall need more than {k} images on each side, found {len(x)} and {len(y)}")
    reach_x, reach_y = _reach(x, k), _reach(y, k)
    inside, held = torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(y), dtype=torch.bool)
    nearest_sample = torch.full((len(y),), torch.inf, dtype=torch.float64)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        distances = _squares(x[rows], y)
        inside[rows] = (distances <= reach_y).sum(1)
        held |= (distances <= reach_x[rows, None]).any(0)
        nearest_sample = torch.minimum(nearest_sample, distances.min(0).values)
    return Support(
        precision=float((inside > 0).double().mean()),
        recall=float(held.double().mean()),
        density=float(inside.double().mean() / k),
        coverage=float((nearest_sample <= reach_y).double().mean()),
    )


def _reach(x: Tensor, k: int) -> Tensor:
    """(N,): the squared distance of each to its k-th neighbour among the others."""
    reach = []
    for start in range(0, len(x), ROWS):
        distances = _squares(x[start : start + ROWS], x)
        own = torch.arange(len(distances))
        distances[own, start + own] = torch.inf
        reach.append(distances.kthvalue(k, 1).values)
    return torch.cat(reach)


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """(N, M): squared distances."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min_(0)
