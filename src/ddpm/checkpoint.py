"""A checkpoint: one `.pt` file of tensors and plain types, whole or absent.

It loads with `weights_only=True` (nothing in it can run code) and holds its configuration, so that
sampling needs the file alone.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.config import Config, parse_config, plain
from ddpm.device import Precision
from ddpm.errors import CheckpointError, DDPMError
from ddpm.files import atomic_write
from ddpm.images import Crop
from ddpm.ops.select import Kernels

FORMAT = "ddpm-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class DataFacts:
    """What sampling and evaluation must know of the training data."""

    count: int
    """Training images."""
    fingerprint: str
    """SHA-256 of the training images and labels."""
    class_names: tuple[str, ...] = ()
    crop: Crop | None = None
    """Where the picture lies in the padded frame, if the data were padded."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on from `step`."""

    step: int
    config: Config
    data: DataFacts
    precision: Precision
    """What training.precision resolved to when the run first started."""
    kernels: Kernels
    """What training.kernels resolved to then."""
    compiled: bool
    """What training.compile resolved to then."""
    network: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    """State dict of the optimiser."""
    scaler: Mapping[str, Any]
    """State dict of float16's loss scaler; empty for other precisions."""
    loss_window: tuple[float, int]
    """Sum and number of the losses since the last row of metrics."""
    loss_history: Mapping[str, Tensor] = field(default_factory=dict)
    """What importance sampling of the timesteps goes by; empty where they are drawn uniformly."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint: temporary file, flush, rename. Raises DDPMError if the disk refuses."""
    data = asdict(checkpoint.data)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "step": checkpoint.step,
        "config": plain(checkpoint.config),
        "data": data
        | {"class_names": list(data["class_names"]), "crop": checkpoint.data.crop and [*checkpoint.data.crop]},
        "precision": checkpoint.precision,
        "kernels": checkpoint.kernels,
        "compiled": checkpoint.compiled,
        "network": dict(checkpoint.network),
        "ema": dict(checkpoint.ema),
        "optimizer": dict(checkpoint.optimizer),
        "scaler": dict(checkpoint.scaler),
        "loss_window": [*checkpoint.loss_window],
        "loss_history": dict(checkpoint.loss_history),
    }
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch reports a full disk this way
            raise DDPMError(f"{path}: could not be written ({error}); earlier checkpoints are untouched") from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises CheckpointError naming the file: absent, damaged, not ours, or from a newer version.
    """
    if not path.is_file():
        raise CheckpointError(_absent(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on files that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint (damaged, or not plain tensors): {reason}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not a checkpoint of ddpm (no format mark {FORMAT!r} in it)")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path}: has format version {content.get('version')}; this ddpm reads version {VERSION}")
    try:
        data = content["data"]
        return Checkpoint(
            step=content["step"],
            config=parse_config(content["config"], source=f"{path} (its configuration)"),
            data=DataFacts(
                data["count"], data["fingerprint"], tuple(data["class_names"]), data["crop"] and Crop(*data["crop"])
            ),
            precision=content["precision"],
            kernels=content.get("kernels", "plain"),
            compiled=content.get("compiled", False),
            network=content["network"],
            ema=content["ema"],
            optimizer=content["optimizer"],
            scaler=content["scaler"],
            loss_window=(content["loss_window"][0], content["loss_window"][1]),
            loss_history=content.get("loss_history", {}),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the checkpoint lacks or misstates {error}") from error


def path_at(folder: Path, step: int) -> Path:
    """The file of the checkpoint at `step`."""
    return folder / f"diffusion-{step}.pt"


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest step first."""
    steps = {
        int(match[1]): path
        for path in folder.glob("diffusion-*.pt")
        if (match := re.fullmatch(r"diffusion-(\d+)\.pt", path.name))
    }
    return [steps[step] for step in sorted(steps)]


def _absent(path: Path) -> str:
    if path.is_dir():
        found = all_in(path)
        hint = f"; its latest checkpoint is {found[-1]}" if found else " without checkpoints in it"
        return f"{path}: is a folder, not a checkpoint{hint}"
    found = all_in(path.parent) if path.parent.is_dir() else []
    hint = f" There are: {', '.join(p.name for p in found)}" if found else " Train one with: ddpm train CONFIG"
    return f"{path}: no such checkpoint.{hint}"
