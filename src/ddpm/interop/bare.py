"""Our own weights as a safetensors file: nothing but tensors, and the configuration as text in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.checkpoint import Checkpoint, DataFacts
from ddpm.config import parse_config, plain
from ddpm.errors import CheckpointError
from ddpm.files import atomic_write
from ddpm.images import Crop

FORMAT = "ddpm-weights"
VERSION = "1"


def write_bare(path: Path, saved: Checkpoint, weights: Mapping[str, Tensor], which: str) -> None:
    """Write weights with the checkpoint's configuration and the facts of its data.

    Args:
        which: "ema" or "raw", to be remembered.
    """
    from safetensors.torch import save

    data = saved.data
    header = {
        "format": FORMAT,
        "version": VERSION,
        "weights": which,
        "step": str(saved.step),
        "config": json.dumps(plain(saved.config)),
        "data": json.dumps(
            {
                "count": data.count,
                "fingerprint": data.fingerprint,
                "class_names": list(data.class_names),
                "crop": data.crop and [*data.crop],
            }
        ),
    }
    with atomic_write(path) as file:
        file.write(save({name: value.contiguous() for name, value in weights.items()}, metadata=header))


def read_bare(path: Path) -> Checkpoint:
    """A file of `write_bare` as a checkpoint without an optimiser's state.

    Raises CheckpointError naming the file: damaged, of another program, or of a newer version.
    """
    header, weights = _open(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has no configuration in it (no format mark {FORMAT!r}); a diffusers model is imported as a "
            "folder, with its config.json and scheduler_config.json"
        )
    if header.get("version") != VERSION:
        raise CheckpointError(f"{path}: has format version {header.get('version')}; this ddpm reads version {VERSION}")
    try:
        data = json.loads(header["data"])
        facts = DataFacts(
            data["count"], data["fingerprint"], tuple(data["class_names"]), data["crop"] and Crop(*data["crop"])
        )
        config = parse_config(json.loads(header["config"]), source=f"{path} (its configuration)")
        step = int(header["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its header lacks or misstates {error}") from error
    return replace(bare_checkpoint(weights), step=step, config=config, data=facts)


def bare_checkpoint(weights: Mapping[str, Tensor], **known: Any) -> Checkpoint:
    """A checkpoint of these weights alone: there is no training to go on with."""
    facts: dict[str, Any] = {
        "step": 0,
        "config": None,
        "data": DataFacts(0, ""),
        "precision": "float32",
        "kernels": "plain",
        "compiled": False,
        "network": weights,
        "ema": weights,
        "optimizer": {},
        "scaler": {},
        "loss_window": (0.0, 0),
    }
    return Checkpoint(**facts | known)


def _open(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read (damaged or not safetensors): {error}") from error
