"""Nearest images: are samples copies of training images (Appendix D, Figures 12 and 15)?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

CHUNK = 4096
"""Images compared at a time."""
RARE = 0.01
"""Share of unseen real images that count as near-copies, by the definition of the threshold."""


class Nearest(NamedTuple):
    """The nearest images of each query, nearest first."""

    distances: np.ndarray
    """(N, k) float64, root mean square difference in the queries' own units (levels 0..255, or features)."""
    indices: np.ndarray
    """(N, k) int64, places in `among`."""


def nearest(queries: np.ndarray, among: np.ndarray, k: int = 1) -> Nearest:
    """The k nearest of `among` to each query, by Euclidean distance.

    Args:
        queries: (N, ...) uint8 or float.
        among: (M, ...), M >= k; may be mapped into memory, since it is read a chunk at a time.
    """
    points = torch.from_numpy(queries.reshape(len(queries), -1)).float()
    spare = min(len(among), k + 4)  # float32 orders all but near-ties; those are settled below
    best = torch.full((len(points), 0), np.inf)
    places = torch.full((len(points), 0), 0)
    for start in range(0, len(among), CHUNK):
        part = np.ascontiguousarray(among[start : start + CHUNK])
        others = torch.from_numpy(part.reshape(len(part), -1)).float()
        squares = others.square().sum(1) - 2 * points @ others.T  # the query's own square orders nothing
        best = torch.cat([best, squares], 1)
        places = torch.cat([places, torch.arange(start, start + len(part)).expand(len(points), -1)], 1)
        best, order = best.topk(min(spare, best.shape[1]), 1, largest=False)
        places = places.gather(1, order)
    found = places.numpy()
    wide = queries.reshape(len(queries), 1, -1).astype(np.float64)
    exact = np.stack(
        [
            np.sqrt(np.mean((query - among[row].reshape(len(row), -1).astype(np.float64)) ** 2, 1))
            for query, row in zip(wide, found, strict=True)
        ]
    )
    order_ = np.argsort(exact, 1, kind="stable")[:, :k]
    return Nearest(np.take_along_axis(exact, order_, 1), np.take_along_axis(found, order_, 1))


class Copies(NamedTuple):
    """How many samples are nearer to a training image than unseen real images are."""

    threshold: float
    """The distance below which only `RARE` of the unseen images lie."""
    share: float
    """Share of the samples below it: about `RARE` where nothing is copied."""


def near_copies(samples: np.ndarray, unseen: np.ndarray) -> Copies:
    """Count near-copies, from the distance of each sample and of each unseen real image to its nearest training image.

    Args:
        samples: (N,) distances.
        unseen: (M,) distances.
    """
    threshold = float(np.quantile(unseen, RARE))
    return Copies(threshold, float((samples < threshold).mean()))
