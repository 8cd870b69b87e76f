"""Weights alone as a checkpoint that there is no training behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm import model_file
from ddpm.checkpoint import Checkpoint, DataFacts
from ddpm.config import Config


def read_bare(path: Path) -> Checkpoint:
    """A file of weights of ours as a checkpoint. Raises CheckpointError as `model_file.read` does."""
    model = model_file.read(path)
    return bare_checkpoint(model.weights, model.config, step=model.step, data=model.data)


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
