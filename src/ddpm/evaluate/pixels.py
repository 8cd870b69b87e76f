"""What pixels alone say of pictures, of any data: brightness, contrast and roughness."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddpm.evaluate.distances import spread


class Pixels(NamedTuple):
    """Facts of a set of pictures, each of every channel, (C,) float64."""

    mean: np.ndarray
    """Levels, 0..255."""
    std: np.ndarray
    """Of all pixels, in levels: the contrast."""
    roughness: np.ndarray
    """Mean squared difference of neighbouring pixels over twice the variance: 1 for white noise, 0 for flat areas."""
    error: np.ndarray
    """Standard error of the mean, from how much the pictures differ, in levels."""


def pixels_of(images: np.ndarray) -> Pixels:
    """The facts of uint8 (N, H, W, C)."""
    mean, std = spread(images)
    wide = images.astype(np.float64)
    steps = [np.diff(wide, axis=axis) for axis in (1, 2) if images.shape[axis] > 1]
    squares = sum((step**2).sum((0, 1, 2)) for step in steps)
    count = sum(step[..., 0].size for step in steps)
    variance = np.maximum(std**2, np.finfo(np.float64).tiny)
    error = wide.mean((1, 2)).std(0) / len(images) ** 0.5
    return Pixels(mean, std, squares / max(count, 1) / (2 * variance) * (std > 0), error)


def distance(samples: Pixels, data: Pixels) -> float:
    """How far samples are from the data in brightness, contrast and roughness: 0 is alike, 1 is plainly wrong.

    The root mean square of three differences: of means and of standard deviations, in standard deviations of the
    data, and of roughness.
    """
    scale = np.maximum(data.std, 1.0)
    differences = [
        (samples.mean - data.mean) / scale,
        (samples.std - data.std) / scale,
        samples.roughness - data.roughness,
    ]
    return float(np.sqrt(np.mean(np.square(differences))))
