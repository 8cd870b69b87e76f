"""Our own weights as a safetensors file: nothing but tensors, and the configuration as text in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.checkpoint import Checkpoint, DataFacts
from ddpm.config import Config, parse_config, plain
from ddpm.errors import CheckpointError
from ddpm.files import atomic_write
from ddpm.images import Crop

FORMAT = "ddpm"


def write_bare(path: Path, saved: Checkpoint, weights: Mapping[str, Tensor], card: str = "") -> None:
    """Write weights with the checkpoint's configuration, the facts of its data, and a model card."""
    from safetensors.torch import save

    header = {
        "format": FORMAT,
        "config": json.dumps(plain(saved.config)),
        "step": str(saved.step),
        "data": json.dumps(asdict(saved.data)),
        "card": card,
    }
    with atomic_write(path) as file:
        file.write(save({name: value.contiguous() for name, value in weights.items()}, metadata=header))


def read_bare(path: Path) -> Checkpoint:
    """A file of `write_bare` as a checkpoint without an optimiser's state.

    Raises CheckpointError naming the file: damaged, or of another program.
    """
    header, weights = _open(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has no configuration of ddpm in it (format {header.get('format')!r}, expected {FORMAT!r}); a "
            "diffusers model is imported as a folder, with its config.json and scheduler_config.json"
        )
    try:
        data = json.loads(header["data"])
        crop = data["crop"] and Crop(*data["crop"])
        facts = DataFacts(data["count"], data["fingerprint"], tuple(data["class_names"]), crop)
        config = parse_config(json.loads(header["config"]), source=f"{path} (its configuration)")
        step = int(header["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its header lacks or misstates {error}") from error
    weights = {name: value.float() for name, value in weights.items()}
    return bare_checkpoint(weights, config, step=step, data=facts)


def bare_checkpoint(weights: Mapping[str, Tensor], config: Config, **known: Any) -> Checkpoint:
    """A checkpoint of these weights alone: there is no training to go on with."""
    facts: dict[str, Any] = {
        "step": 0,
        "config": config,
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
