"""Classifier-free guidance (Ho, Salimans 2022, arXiv 2207.12598), at the cost of one network call."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.conditioning import NO_CLASS, LabelledNet


@dataclass(frozen=True, eq=False)
class Guided:
    """A network with the classes of its batch, its predictions moved away from those for no class.

    null + scale (conditional - null), combined as the network answers, before x_0 is clipped. At a given x_t every
    prediction (epsilon, x0, v, mu) is a linear function of every other, and the two weights sum to 1: the space makes
    no difference. In epsilon it is the noise of p(x_t | class)^scale p(x_t)^(1 - scale). A learned variance is not
    combined but taken from the conditional answer.
    """

    network: LabelledNet
    labels: Tensor
    """(B,) int64, the class of each image."""
    scale: float
    """1 is the conditional prediction, more is guided: the paper's 1 + w."""
    channels: int
    """Channels of the prediction; those behind them are the variance's."""
    after: float = 0.0
    """Guided where after < t <= until, conditional elsewhere (arXiv 2404.07724)."""
    until: float = math.inf

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """One call, of as many images more as are guided at their time."""
        count = len(x_t)
        if self.after <= 0 and math.isinf(self.until):
            guided = torch.arange(count, device=x_t.device)  # needs no look at t, for which a device would wait
        else:
            guided = ((t > self.after) & (t <= self.until)).nonzero().flatten()
        labels = torch.cat([self.labels, torch.full_like(guided, NO_CLASS)])
        out = self.network(torch.cat([x_t, x_t[guided]]), torch.cat([t, t[guided]]), labels)
        conditional, null = out[:count], out[count:, : self.channels]
        moved = null + self.scale * (conditional[guided, : self.channels] - null)
        result = conditional.clone()
        result[guided, : self.channels] = moved
        return result
