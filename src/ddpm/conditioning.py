"""Classes: how a network that knows them becomes a plain `net(x_t, t)`, and how training forgets some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

NO_CLASS = -1
"""The label that stands for no class: the null class of arXiv 2207.12598."""


class LabelledNet(Protocol):
    """A network that may be told classes; without them it is a plain net that predicts for the null class."""

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Conditional:
    """A network with the classes of its batch: itself a net(x_t, t) for images of these classes."""

    network: LabelledNet
    labels: Tensor
    """(B,) int64; NO_CLASS where an image has none."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.network(x_t, t, self.labels)


def dropped(labels: Tensor, share: float, chance: np.ndarray) -> Tensor:
    """The labels, (B,), replaced by NO_CLASS where `chance`, (B,) uniform in [0, 1), is below `share`.

    Algorithm 1 of arXiv 2207.12598.
    """
    return torch.where(torch.from_numpy(chance < share), NO_CLASS, labels)
