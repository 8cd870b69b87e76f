"""Which timesteps a training step draws: uniformly, or by the size of their losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HISTORY = 10
"""Losses remembered of each timestep."""
UNIFORM_SHARE = 1e-3
"""Share of the draws that stays uniform, so that no timestep is forgotten."""


def uniform(generator: np.random.Generator, count: int, T: int) -> Tensor:
    """Algorithm 1, line 3: t ~ Uniform({1, ..., T}); int64 of shape (count,)."""
    return torch.from_numpy(generator.integers(1, T + 1, count))


def importance(generator: np.random.Generator, count: int, probabilities: np.ndarray) -> tuple[Tensor, Tensor]:
    """t ~ p, and the weights 1 / (T p_t) with which a loss's mean is what uniform draws would give.

    Args:
        probabilities: (T,), of t = 1..T.

    Returns:
        int64 and float32, both (count,).
    """
    T = len(probabilities)
    place = generator.choice(T, count, p=probabilities)
    return torch.from_numpy(place + 1), torch.from_numpy(1 / (T * probabilities[place])).float()


@dataclass(frozen=True)
class LossHistory:
    """The latest losses of each timestep, from which p_t ~ sqrt(E L_t^2) (arXiv 2102.09672, Section 3.3)."""

    losses: Tensor
    """(T, HISTORY) float64, the oldest first; places not filled yet hold 0."""
    counts: Tensor
    """(T,) int64: how many places are filled."""

    @classmethod
    def empty(cls, T: int) -> LossHistory:
        return cls(torch.zeros(T, HISTORY, dtype=torch.float64), torch.zeros(T, dtype=torch.int64))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], T: int) -> LossHistory:
        """What `tensors` gave. Raises ValueError unless they are whole and for T timesteps."""
        fresh = cls.empty(T)
        for name, expected in fresh.tensors().items():
            found = tensors.get(name)
            if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
                raise ValueError(f"{name}: expected {expected.dtype} {tuple(expected.shape)}")
        return cls(tensors["losses"].clone(), tensors["counts"].clone())

    def tensors(self) -> dict[str, Tensor]:
        """The state, for a checkpoint."""
        return {"losses": self.losses, "counts": self.counts}

    def probabilities(self) -> np.ndarray:
        """p_1..p_T, float64; uniform until every timestep has its HISTORY losses."""
        T = len(self.counts)
        if bool((self.counts < HISTORY).any()):
            return np.full(T, 1 / T)
        size: np.ndarray = np.sqrt(np.square(self.losses.numpy()).mean(1))
        if not size.sum() > 0:  # nothing is left to learn, or so it seems
            return np.full(T, 1 / T)
        mixed: np.ndarray = (1 - UNIFORM_SHARE) * size / size.sum() + UNIFORM_SHARE / T
        return mixed

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Remember the losses of one optimiser step, one an image, in the order of the whole batch.

        What is not finite is not remembered: it would leave no probabilities to draw from.
        """
        rows, counts = self.losses.numpy(), self.counts.numpy()
        for place, loss in zip((t - 1).tolist(), losses.tolist(), strict=True):
            if not np.isfinite(loss):
                continue
            if counts[place] == HISTORY:
                rows[place, :-1] = rows[place, 1:]
                rows[place, -1] = loss
            else:
                rows[place, counts[place]] = loss
                counts[place] += 1
