"""Other places for a run's numbers and pictures: Weights & Biases and MLflow, each an extra, behind one interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddpm.choices import TrackerName
from ddpm.errors import DDPMError
from ddpm.files import write_text


class Sink(Protocol):
    """Where rows and pictures go."""

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers at a step."""
        ...

    def picture(self, step: int, name: str, array: np.ndarray) -> None:
        """A picture at a step, uint8 (H, W, C)."""
        ...

    def close(self, *, failed: bool) -> None:
        """No more is to come; `failed`: the run ended by an error."""
        ...


class Board:
    """TensorBoard's event files in the run's folder."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # Events after the step that is continued from are of a past that did not happen.
        self._board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self._board.add_scalar(key, value, step)

    def picture(self, step: int, name: str, array: np.ndarray) -> None:
        self._board.add_image(name, array, step, dataformats="HWC")
        self._board.flush()

    def close(self, *, failed: bool) -> None:
        self._board.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its own variables (WANDB_PROJECT, WANDB_MODE=offline, ...) say where to."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]):
        wandb = _package("wandb", "wandb")
        self._image = wandb.Image
        note = folder / "wandb-run.txt"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ddpm"),
            name=os.environ.get("WANDB_NAME", folder.name),
            dir=str(folder),
            id=note.read_text().strip() if note.is_file() else None,
            resume="allow",
            config=dict(settings),
        )
        write_text(note, f"{self._run.id}\n")

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, array: np.ndarray) -> None:
        self._run.log({name: self._image(array[..., 0] if array.shape[-1] == 1 else array)}, step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI; without it in `mlruns` in the run's folder."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]):
        mlflow = _package("mlflow", "mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if not place:  # plain files need no database; MLflow wants to be told that they are meant
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            place = (folder / "mlruns").absolute().as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=place)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ddpm")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        note = folder / "mlflow-run.txt"
        if note.is_file():
            self._id = note.read_text().strip()
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id
            for key, value in settings.items():
                self._client.log_param(self._id, key, value)
            write_text(note, self._id + "\n")

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self._client.log_metric(self._id, key, float(value), step=step)

    def picture(self, step: int, name: str, array: np.ndarray) -> None:
        from ddpm.images import to_picture

        self._client.log_image(self._id, to_picture(array), artifact_file=f"{name}/step-{step}.png")

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


SINKS: dict[TrackerName, Callable[[Path, int, Mapping[str, Any]], Sink]] = {
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
"""What `training.trackers` may name."""


def open_sinks(names: tuple[TrackerName, ...], folder: Path, step: int, settings: Mapping[str, Any]) -> list[Sink]:
    """The trackers of a run, TensorBoard first.

    Args:
        step: what the run is continued from.
        settings: the resolved configuration by dotted key.

    Raises DDPMError if one cannot be opened: its package is missing, or it refuses.
    """
    sinks: list[Sink] = [Board(folder, step)]
    for name in names:
        try:
            sinks.append(SINKS[name](folder, step, settings))
        except DDPMError:
            raise
        except Exception as error:  # whatever the package raises: no login, no server, ...
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DDPMError(
                f"training.trackers: {name} cannot be opened: {reason}. Set it up, or leave it out of training.trackers"
            ) from error
    return sinks


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise DDPMError(f"training.trackers: {name} is not installed: pip install 'ddpm[{extra}]'") from None
