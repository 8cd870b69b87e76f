"""What every figure of a model needs: the model, its images, and the words that say where a picture is from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.data import Split
from ddpm.evaluate.drawing import class_sequence
from ddpm.evaluate.nll import evaluated_split, load_split
from ddpm.files import write_json
from ddpm.generate import Model, Weights, load
from ddpm.images import save_png
from ddpm.paper.made import Made


@dataclass(frozen=True)
class Subject:
    """A checkpoint under examination."""

    path: Path
    model: Model
    seed: int
    data_root: str | None
    """Where its data lie now; None: where they lay in training."""

    @property
    def T(self) -> int:
        return self.model.diffusion.schedule.T

    def split(self) -> Split:
        """Images that the model was not trained on, if there are any; else those it was."""
        data = self.model.config.data
        return "train" if data.source in ("digits", "folder") and not data.held_out else evaluated_split(self.model)

    def images(self, split: Split) -> Any:
        """The images of a split (`data.ImageSet`)."""
        return load_split(self.model, split, root=self.data_root)

    @property
    def every_class(self) -> tuple[int, ...] | None:
        """The classes of a model, once each; None: it has none."""
        count = self.model.config.network.classes
        return tuple(range(count)) if count else None

    def classes(self, count: int) -> tuple[int, ...] | None:
        """Those of `count` samples in the data's shares; None: the model has none."""
        return class_sequence(self.images("train").labels, count) if self.every_class else None

    def facts(self, **more: Any) -> dict[str, Any]:
        """The head of a figure's JSON."""
        model = self.model
        return {
            "checkpoint": str(self.path),
            "checkpoint_sha256": model.sha256,
            "step": model.step,
            "weights": model.weights,
            "precision": model.precision,
            "data": model.config.data.source,
            "seed": self.seed,
            **more,
        }

    @property
    def words(self) -> str:
        """Where a picture is from, as its small print says it."""
        model = self.model
        return (
            f"{self.path.name} ({model.sha256[:8]}), step {model.step:,}, {model.weights} weights; "
            f"data: {model.config.data.source}; seed {self.seed}"
        )


def open_subject(
    source: Path,
    *,
    seed: int = 0,
    weights: Weights = "ema",
    device: torch.device | str | None = None,
    data_root: str | None = None,
) -> Subject:
    """The model of a checkpoint, with what a figure says of it."""
    # In float32 wherever it runs, so that a figure is the same everywhere.
    model = load(source, weights=weights, precision="float32", device=device)
    return Subject(source, model, seed, data_root)


def finish(out: Path, name: str, picture: np.ndarray, numbers: dict[str, Any], text: str) -> Made:
    """Write a picture, uint8 (H, W, C), and its numbers."""
    files = (out / f"{name}.png", out / f"{name}.json")
    save_png(files[0], picture)
    write_json(files[1], numbers)
    return Made(files, numbers, text)
