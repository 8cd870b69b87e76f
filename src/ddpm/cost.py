"""What a configuration costs, before anything is trained."""

from __future__ import annotations

from typing import NamedTuple

from ddpm.config import Config


class Cost(NamedTuple):
    """Counted on a network without storage."""

    parameters: int
    gflop_per_image: float
    """Of one network call, in 10^9 floating-point operations (a multiplication and an addition are two)."""
    images: int | None
    """Images that training sees; None where it is given in epochs."""
    train_pflop: float | None
    """Of the whole training, in 10^15 operations."""


def cost_of(config: Config) -> Cost:
    """Parameters and floating-point operations of a configuration."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ddpm.training_loop import build_network

    with torch.device("meta"):
        network = build_network(config)
        x = torch.zeros(1, config.data.channels, *config.data.size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x, torch.ones(1))
    flop, training = counter.get_total_flops(), config.training
    images = training.steps * training.batch_size if training.steps else None
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        gflop_per_image=flop / 1e9,
        images=images,
        train_pflop=3 * flop * images / 1e15 if images else None,  # backward costs twice the forward
    )
