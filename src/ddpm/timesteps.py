"""Which timesteps a training step draws."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def uniform(generator: np.random.Generator, count: int, T: int) -> Tensor:
    """Algorithm 1, line 3: t ~ Uniform({1, ..., T}); int64 of shape (count,)."""
    return torch.from_numpy(generator.integers(1, T + 1, count))
