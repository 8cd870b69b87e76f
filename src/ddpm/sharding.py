"""How several processes hold one network: a copy each (DDP), or a share each (FSDP2).

What leaves the training loop (checkpoints, norms) is always whole, so that a run may go on with another number of
processes, or held in the other way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddpm import distributed
from ddpm.shards import is_split

Holding = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Parallel:
    """A network as this process trains it: gradients are averaged over all processes."""

    network: nn.Module
    sharded: bool = False
    """Whether `shard` has split it."""

    @contextmanager
    def summing(self, *, last: bool) -> Iterator[None]:
        """Gradients of what is computed inside are exchanged only in the last part of a step."""
        network = self.network
        if isinstance(network, DistributedDataParallel):
            with nullcontext() if last else network.no_sync():
                yield
            return
        if self.sharded:
            network.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield


def parallel(network: nn.Module, holding: Holding) -> Parallel:
    """The network for the processes of this job; itself where there is one, or where `shard` has split it."""
    place = distributed.world()
    if place.size == 1 or holding == "fsdp":
        return Parallel(network, sharded=place.size > 1)
    device = next(network.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    return Parallel(DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True))


def shard(*networks: nn.Module) -> None:
    """Split weights over the processes of this job, in place; their blocks are gathered when they compute.

    Before the optimiser is made, which then holds its own share alone. Nothing happens in a job of one process.
    """
    if distributed.world().size == 1:
        return
    from torch.distributed.fsdp import fully_shard

    from ddpm.unet import Block

    for network in networks:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # all that FSDP2 splits
        for module in network.modules():
            if isinstance(module, Block):
                fully_shard(module)
        # After a preview, too, the network must hold its shares again, which the average is updated in.
        fully_shard(network, reshard_after_forward=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's whole state dict, split and laid out in memory as its parameters are.

    torch's fused steps read moments in the parameters' order of memory, whatever the moments' own is.
    """
    optimizer.load_state_dict(dict(state))
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = _like(parameter, value)


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    if is_split(parameter):
        from torch.distributed.tensor import distribute_tensor

        return value if is_split(value) else distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value if value.stride() == parameter.stride() else torch.empty_like(parameter).copy_(value).detach()
