"""Tensors of which each process may hold a share (torch's DTensor), and what is whole."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_split(x: object) -> TypeGuard[DTensor]:
    """Whether this process holds a share of it."""
    # Importing its module takes half as long as importing torch; until something has, nothing is split.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """This process's share of a tensor; all of it where it is not split."""
    return x.to_local() if is_split(x) else x


def whole(x: Tensor) -> Tensor:
    """All of a tensor, wherever its shares lie; every process must ask."""
    return x.full_tensor() if is_split(x) else x


def whole_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of a network or an optimiser with whole tensors; every process must ask."""
    return {key: _whole(value) for key, value in state.items()}


def _whole(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _whole(inner) for key, inner in value.items()}
    return whole(value) if isinstance(value, Tensor) else value
