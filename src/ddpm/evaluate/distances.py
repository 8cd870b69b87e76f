"""Distances between two sets of images, in an extractor's features.

FID and the Inception Score are torchmetrics', fed with features that are there already. KID is not: torchmetrics draws
subsets unkeyed, takes their spread for an error, and divides by one set's size for both. The k-nearest-neighbour
measures are of the papers named. Everything is float64.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.evaluate.extractor import Features

NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
ROWS = 512
"""Rows of a distance matrix held at a time: 0.25 GB against 60,000 images."""


class Estimate(NamedTuple):
    """A measured value and its standard error."""

    value: float
    error: float


class Overlap(NamedTuple):
    """How two sets lie in one another, by k nearest neighbours: shares in 0..1, density may pass 1."""

    precision: float
    """Samples that lie within the reference (arXiv 1904.06991)."""
    recall: float
    """Reference images that lie within the samples."""
    density: float
    """How many reference images' neighbourhoods a sample lies in, over k (arXiv 2002.09797)."""
    coverage: float
    """Reference images with a sample in their neighbourhood."""


def fid(samples: np.ndarray, reference: np.ndarray) -> float:
    """The Frechet distance of two sets of features, (N, D) and (M, D) (arXiv 1706.08500)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    features = nn.Identity()
    features.num_features = samples.shape[1]
    metric = FrechetInceptionDistance(features)
    metric.set_dtype(torch.float64)
    metric.update(_tensor(reference), real=True)
    metric.update(_tensor(samples), real=False)
    return float(metric.compute())


def kid(samples: np.ndarray, reference: np.ndarray) -> Estimate:
    """The kernel distance (arXiv 1801.01401): the unbiased squared MMD of all pairs, so that it may be negative.

    Its error is the jackknife's: what leaving out each image changes. It is right where the sets differ, and about
    one and a half times too large where they are alike. The order of the images changes rounding alone.
    """
    if min(len(samples), len(reference)) < 3:
        raise ValueError(f"KID needs at least 3 images a side, got {len(samples)} and {len(reference)}")
    x, y = _tensor(samples), _tensor(reference)
    n, m = len(x), len(y)
    own_x, own_y = (_kernel_sums(side, side)[0] - _kernel(side, side) for side in (x, y))  # less an image with itself
    rows, columns = _kernel_sums(x, y)
    within_x, within_y, across = own_x.sum() / (n * (n - 1)), own_y.sum() / (m * (m - 1)), rows.sum() / (n * m)
    # The same without image i of the samples, and of the reference.
    without_x = (own_x.sum() - 2 * own_x) / ((n - 1) * (n - 2)) - 2 * (rows.sum() - rows) / ((n - 1) * m)
    without_y = (own_y.sum() - 2 * own_y) / ((m - 1) * (m - 2)) - 2 * (columns.sum() - columns) / (n * (m - 1))
    variance = sum((len(each) - 1) * each.var(correction=0) for each in (without_x, without_y))
    return Estimate(float(within_x + within_y - 2 * across), float(variance) ** 0.5)


def _kernel_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the kernel of all pairs of (N, D) and (M, D): over y, (N,), and over x, (M,)."""
    rows, columns = [], torch.zeros(len(y), dtype=torch.float64)
    for part in torch.split(x, ROWS):
        values = (part @ y.T / x.shape[1] + 1) ** 3
        rows.append(values.sum(1))
        columns += values.sum(0)
    return torch.cat(rows), columns


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """The kernel (x.y / D + 1)^3 of each row of x with its own of y, (N,)."""
    return ((x * y).sum(1) / x.shape[1] + 1) ** 3


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean KL(p(y | x) || p(y)) of class probabilities, (N, K), in one split (arXiv 1606.03498)."""
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # That it keeps all features, which are there already, and knows no spread of one split. It shuffles; one split
        # depends on it by rounding alone.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)  # the order of a sum decides its last digit
        metric = InceptionScore(nn.Identity(), splits=1)
        metric.set_dtype(torch.float64)
        metric.update(_tensor(probabilities).clamp(min=1e-300).log())
        return float(metric.compute()[0])


def overlap(samples: np.ndarray, reference: np.ndarray, k: int = NEIGHBOURS) -> Overlap:
    """Precision, recall, density and coverage of features (N, D) against (M, D); N, M > k."""
    if min(len(samples), len(reference)) <= k:
        raise ValueError(f"{k} neighbours need more images than that on each side")
    x, y = _tensor(samples), _tensor(reference)
    of_samples, of_reference = _radii(x, k), _radii(y, k)
    balls = torch.zeros(len(x), dtype=torch.int64)
    reached = torch.zeros(len(y), dtype=torch.bool)
    nearest = torch.full((len(y),), torch.inf, dtype=torch.float64)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        between = torch.cdist(x[rows], y)
        balls[rows] = (between <= of_reference).sum(1)
        reached |= (between <= of_samples[rows, None]).any(0)
        nearest = torch.minimum(nearest, between.amin(0))
    return Overlap(
        precision=_share(balls > 0),
        recall=_share(reached),
        density=float(balls.sum()) / (k * len(x)),
        coverage=_share(nearest <= of_reference),
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other."""
    # The nearest is the point itself.
    return torch.cat([torch.cdist(part, x).kthvalue(k + 1, 1).values for part in torch.split(x, ROWS)])


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float64))


class Classes(NamedTuple):
    """What the extractor's classifier reads."""

    histogram: tuple[int, ...]
    """Images whose likeliest class is 0, 1, ..."""
    entropy: float
    """Of the histogram, in bits; log2 K where all classes are equally frequent."""
    confidence: float
    """Mean probability of the likeliest class."""


def classes(probabilities: np.ndarray) -> Classes:
    """The class histogram of probabilities (N, K), its entropy, and the mean confidence."""
    counts = np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1])
    shares = counts[counts > 0] / counts.sum()
    return Classes(
        tuple(counts.tolist()), float((shares * np.log2(1 / shares)).sum()), float(probabilities.max(1).mean())
    )


class Drift(NamedTuple):
    """Colour shift of a channel, in levels of 0..255: samples less reference."""

    mean: float
    std: float


def drift(samples: np.ndarray, reference: np.ndarray) -> tuple[Drift, ...]:
    """How mean and standard deviation of each channel differ; uint8 (N, H, W, C) and (M, H, W, C)."""
    (mean, std), (other_mean, other_std) = spread(samples), spread(reference)
    differences = zip(mean - other_mean, std - other_std, strict=True)
    return tuple(Drift(float(m), float(s)) for m, s in differences)


def spread(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, from how often each level occurs: no wide copy of the images."""
    channels = range(images.shape[-1])
    shares = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in channels]) / images[..., 0].size
    levels = np.arange(256.0)
    mean = shares @ levels
    return mean, np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1))


class Comparison(NamedTuple):
    """A set of samples against a reference."""

    fid: float
    kid: Estimate
    inception_score: float
    overlap: Overlap
    classes: Classes


def compare(samples: Features, reference: Features) -> Comparison:
    """All distances that need features alone."""
    return Comparison(
        fid=fid(samples.vectors, reference.vectors),
        kid=kid(samples.vectors, reference.vectors),
        inception_score=inception_score(samples.probabilities),
        overlap=overlap(samples.vectors, reference.vectors),
        classes=classes(samples.probabilities),
    )
