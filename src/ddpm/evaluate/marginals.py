"""What can be said of samples one at a time: which classes, how sure, what colours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ClassCounts(NamedTuple):
    """How a classifier reads a set of images."""

    counts: tuple[int, ...]
    """Images by their likeliest class."""
    entropy: float
    """Of the classes' shares, in bits: 0 (one class) ... log2 K (all equally often)."""
    confidence: float
    """Mean probability of the likeliest class."""


def class_counts(probabilities: np.ndarray) -> ClassCounts:
    """Counts by likeliest class, from probabilities (N, K)."""
    counts = np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1])
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log2(shares)).sum()) + 0.0  # no -0.0
    return ClassCounts(tuple(counts.tolist()), entropy, float(probabilities.max(1).astype(np.float64).mean()))


class Drift(NamedTuple):
    """How far the samples' colours are from the data's, per channel, in levels 0..255."""

    mean: tuple[float, ...]
    """Mean of the samples minus mean of the data."""
    std: tuple[float, ...]
    """The same of the standard deviations over all pixels."""


def drift(samples: np.ndarray, data: np.ndarray) -> Drift:
    """The colour shift between two sets, uint8 (N, C, H, W) each."""
    (a_mean, a_std), (b_mean, b_std) = (_spread(images) for images in (samples, data))
    return Drift(tuple((a_mean - b_mean).tolist()), tuple((a_std - b_std).tolist()))


def _spread(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, exactly, from how often each level occurs."""
    levels = np.arange(256.0)
    shares = np.stack([np.bincount(images[:, c].ravel(), minlength=256) for c in range(images.shape[1])])
    shares = shares / shares.sum(1, keepdims=True)
    mean = shares @ levels
    return mean, np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0))
