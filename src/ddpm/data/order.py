"""Which images a training step sees: a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from ddpm.data.records import Batch, ImageSet


def batch_indices(count: int, size: int, *, seed: int, step: int) -> np.ndarray:
    """The images of the step after `step` steps: (size,) int64 in 0..count-1.

    Position p = step * size + j is image p mod count of the permutation of epoch p // count: every
    image once an epoch, and a batch may begin in one epoch and end in the next.
    """
    position = step * size + np.arange(size)
    epochs, places = position // count, position % count
    indices = np.empty(size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        chosen = epochs == epoch
        indices[chosen] = permutation(count, seed, epoch)[places[chosen]]
    return indices


@lru_cache(maxsize=2)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..count-1."""
    from ddpm.noise import Purpose, rng

    return rng(seed, Purpose.ORDER, epoch).permutation(count)


def batches(images: ImageSet, size: int, *, seed: int, start: int = 0, rows: slice = slice(None)) -> Iterator[Batch]:
    """Batches of `size` for ever, from the step after `start` steps; of each only the `rows`."""
    step = start
    while True:
        indices = batch_indices(len(images), size, seed=seed, step=step)[rows]
        yield Batch(indices, images.take(indices), None if images.labels is None else images.labels[indices])
        step += 1
