"""The moving average of the weights that samples are drawn with."""

from __future__ import annotations

import torch
from torch import nn

from ddpm.shards import local


def decay_at(step: int, decay: float) -> float:
    """The decay of the update after optimiser step number `step` (1 is the first).

    It rises as (1 + step) / (10 + step) to `decay`, so that a short run's average is not mostly its
    random start; a pure function of the step, so that a resumed run continues it.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for every parameter; in place, in float32."""
    ours, theirs = dict(average.named_parameters()), dict(model.named_parameters())
    if ours.keys() != theirs.keys():
        raise ValueError(f"the models differ in {sorted(ours.keys() ^ theirs.keys())}")
    mine, other = ([local(p) for p in side.values()] for side in (ours, theirs))
    torch._foreach_lerp_(mine, other, 1 - decay)
