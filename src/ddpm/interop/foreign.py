"""A model from elsewhere in our terms, before it becomes a checkpoint."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm.errors import CheckpointError


class Foreign(NamedTuple):
    """What a file or folder of another library says, and what it leaves to be said."""

    kind: str
    """Whose format it is, in words."""
    settings: Mapping[str, Any]
    """The arguments of `UNet`."""
    weights: Mapping[str, Tensor]
    """The state_dict of UNet(**settings), float32."""
    diffusion: Mapping[str, Any]
    """Settings of `config.DiffusionSection`."""
    sampling: Mapping[str, Any]
    """Settings of `config.SamplingSection` by which the model samples as its own library does."""
    step: int = 0
    """Training steps behind it; 0: not said."""
    unsaid: tuple[str, ...] = ()
    """Keys (or whole sections) of the network and the process that the source does not settle: the user may."""
    assumed: Mapping[str, Any] = {}
    """Values taken for those of them that were not given, to be told to the user."""


def load_tensors(path: Path, what: str) -> Any:
    """What a `.pt` or `.bin` file holds, on the CPU: tensors and plain types, nothing that could run code.

    Raises CheckpointError naming the file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: cannot be read as {what} (damaged, or more than tensors and plain types): {reason}"
        ) from error
