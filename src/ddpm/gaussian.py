"""The diagonal Gaussian that every transition is."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Gaussian(NamedTuple):
    """N(mean, exp(log_var)), independent in each dimension."""

    mean: Tensor
    """(B, C, H, W)."""
    log_var: Tensor | float
    """Natural logarithm of the variance, broadcastable to the mean; -inf for a point mass."""

    def sample(self, eps: Tensor) -> Tensor:
        """mean + sigma * eps, for standard normal eps of the mean's shape."""
        half = 0.5 * self.log_var
        return self.mean + (half.exp() if isinstance(half, Tensor) else math.exp(half)) * eps
