"""Keyed randomness: every number is a pure function of (seed, purpose, position).

Nothing is consumed from a shared stream, so a run that stops and continues, another batch size or
another number of processes see the same numbers. The source is Philox (Salmon et al. 2011), a
counter-based generator whose 128-bit key is the position itself; it runs on the CPU, so the noise is
the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

BLOCK = 16
"""Images whose noise is drawn together; part of what a seed means."""


class Purpose(IntEnum):
    """What a draw is for; draws for different purposes are independent."""

    ORDER = 1
    TIMESTEP = 2
    NOISE = 3
    FLIP = 4
    DROPOUT = 5
    START = 6
    STEP = 7
    SPLIT = 8
    INIT = 9
    VALIDATION = 10
    BLOCK = 11
    LIKELIHOOD = 20
    LIKELIHOOD_TIME = 21
    SUBSET = 22
    LABEL = 30
    CLASS = 31


def _key(seed: int, purpose: Purpose, indices: Sequence[int]) -> np.random.SeedSequence:
    # SeedSequence hashes its words; lengths and signs are made unambiguous by splitting into 32 bits here.
    words = [seed & 0xFFFFFFFF, seed >> 32, int(purpose)]
    for index in indices:
        words += [index & 0xFFFFFFFF, index >> 32]
    return np.random.SeedSequence(words)


def rng(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """The generator of one position.

    Args:
        seed: 0 <= seed < 2**63.
        indices: non-negative integers, for example the training step.
    """
    return np.random.Generator(np.random.Philox(_key(seed, purpose, indices)))


def torch_seed(seed: int, purpose: Purpose, *indices: int) -> int:
    """A 63-bit seed for torch's own generators (dropout, weight initialisation)."""
    return int(_key(seed, purpose, indices).generate_state(1, np.uint64)[0] >> 1)


def normal(generator: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32, on the CPU."""
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def normal_of_images(
    seed: int, purpose: Purpose, position: Sequence[int], indices: Sequence[int], shape: Sequence[int]
) -> Tensor:
    """Standard normal noise of numbered images, float32 (len(indices), *shape), on the CPU.

    That of image i is a function of (seed, purpose, position, i): drawn in fixed blocks of `BLOCK` images, so that it
    depends neither on which others are asked for nor on who asks.
    """
    blocks = sorted({i // BLOCK for i in indices})
    place = {block: n * BLOCK for n, block in enumerate(blocks)}
    rows = torch.tensor([place[i // BLOCK] + i % BLOCK for i in indices])
    drawn = [normal(rng(seed, purpose, *position, block), (BLOCK, *shape)) for block in blocks]
    return torch.cat(drawn)[rows]


class ImageNoise:
    """Noise for sampling: that of image number i depends on (seed, i) and the step alone (see `normal_of_images`)."""

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        purpose: Purpose = Purpose.STEP,
    ):
        """
        Args:
            indices: numbers of the images of this batch.
            shape: (C, H, W) of one image.
            purpose: what the steps' noise is for; START's is the same for all.
        """
        self._seed, self._shape, self._device, self._purpose = seed, tuple(shape), torch.device(device), purpose
        self._indices = indices

    def start(self) -> Tensor:
        """x_T, shape (B, C, H, W)."""
        return self._draw(Purpose.START)

    def __call__(self, step: int) -> Tensor:
        """The noise of the step number `step` (0 is a sampler's first), shape (B, C, H, W)."""
        return self._draw(self._purpose, step)

    def _draw(self, purpose: Purpose, *position: int) -> Tensor:
        return normal_of_images(self._seed, purpose, position, self._indices, self._shape).to(self._device)
