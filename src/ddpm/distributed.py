"""torch.distributed behind a few small functions; one process is the trivial case.

The processes are started by `torchrun` or `accelerate launch`, which tell each its place by the environment
(WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Each works on its share of the images, whose random numbers
are their own; sums are then taken over all, so that the numbers do not depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ddpm.errors import DDPMError, ElsewhereError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a job, and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Which of `count` rows are this process's: a run of them, so that all shares in order are the whole."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What this process does of `items`."""
        return items[self.rows(len(items))]


ALONE = World()


def world() -> World:
    """The processes that were joined; this one alone before that."""
    return World(dist.get_rank(), dist.get_world_size()) if _joined() else ALONE


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes that a launcher started, if it did, for the duration of the block.

    Raises DDPMError when one of the others stops answering: it has failed, or was killed.
    """
    if _joined() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield world()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    place = world()
    try:
        yield place
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise DDPMError(
            f"process {place.rank} of {place.size}: another process of this job has stopped answering: it failed, or "
            "was killed (the launcher's last lines name it). Checkpoints are whole; the same command continues"
        ) from error
    finally:
        dist.destroy_process_group()


def total(x: Tensor) -> Tensor:
    """The sum over all processes, the same bits for each."""
    if not _joined():
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def collected(items: Iterable[T]) -> list[T]:
    """The items of all processes in the order of their ranks; each may have any number of them, on the CPU."""
    own = list(items)
    if not _joined():
        return own
    parts: list[list[T]] = [[] for _ in range(world().size)]
    dist.all_gather_object(parts, own)
    return [item for part in parts for item in part]


def shared(value: T) -> T:
    """What the first process has, for all of them."""
    if not _joined():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def by_first(make: Callable[[], T]) -> T:
    """What `make()` gives in the first process, for all; it is called there alone. Its error is raised in all."""
    if not _joined():
        return make()
    value: T | None = None
    error: DDPMError | None = None
    if world().first:
        try:
            value = make()
        except DDPMError as found:
            error = found
    value, said, code = shared((value, str(error) if error else None, error.exit_code if error else 0))
    if error is not None:
        raise error
    if said is not None:
        raise ElsewhereError(said, code)
    return value  # type: ignore[return-value]


def largest(value: int) -> int:
    """The largest of all processes' numbers."""
    if not _joined():
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if _joined():
        dist.barrier()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_lost_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        words in text for words in ("connection closed by peer", "connection reset", "gloo", "nccl", "broken pipe")
    )
