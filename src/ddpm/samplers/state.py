"""What every sampler yields, and what it takes for noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Noise = Callable[[int], Tensor]
"""Number of the step (0 is the first) -> standard normal noise of the images' shape."""


class State(NamedTuple):
    """The images after one step of a sampler."""

    t: float
    """The time they are at; 0 is the end."""
    x: Tensor
    """x_t, (B, C, H, W); not overwritten by later steps."""
    x0: Tensor | None
    """The estimate of x_0 that the step used."""
