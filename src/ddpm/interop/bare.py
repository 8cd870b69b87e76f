"""Weights alone as a safetensors file of ours (`model_file`), and as a checkpoint that there is no training behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm import model_file
from ddpm.checkpoint import Checkpoint, DataFacts
from ddpm.config import Config, parse_config
from ddpm.errors import CheckpointError
from ddpm.model_file import FORMAT, ModelFile


def write_bare(path: Path, saved: Checkpoint, weights: Mapping[str, Tensor], card: str = "") -> None:
    """Write weights with the checkpoint's configuration, the facts of its data, and a model card."""
    model_file.write(path, ModelFile(saved.config, saved.data, saved.step, weights, "float32", card))


def read_bare(path: Path) -> Checkpoint:
    """A file of `write_bare` as a checkpoint without an optimiser's state; unlike for sampling, it must be whole.

    Raises CheckpointError naming the file: damaged, or of another program.
    """
    header, weights = model_file.opened(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has no configuration of ddpm in it (format {header.get('format')!r}, expected {FORMAT!r}); a "
            "diffusers model is imported as a folder, with its config.json and scheduler_config.json"
        )
    try:
        facts = model_file.data_facts(header["data"])
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
