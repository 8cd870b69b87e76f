"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard, and what `training.trackers` names."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ddpm.choices import TrackerName
from ddpm.errors import WriteError
from ddpm.files import write_text, writing
from ddpm.trackers import open_sinks


class Tracker:
    """Rows of metrics, by step. Opening it at a step drops the rows that come after that step.

    Every method raises WriteError where the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        *,
        trackers: tuple[TrackerName, ...] = (),
        settings: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            trackers: besides TensorBoard.
            settings: the resolved configuration by dotted key, which they are told.
        """
        self._path = folder / "metrics.jsonl"
        rows = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [row for row in rows if _step_of(row) is not None and _step_of(row) <= step]  # type: ignore[operator]
        write_text(self._path, "".join(row + "\n" for row in kept))
        with writing(self._path):
            self._sinks = open_sinks(trackers, folder, step, settings or {})
            self._file = self._path.open("a", encoding="utf-8")

    def row(self, step: int, values: dict[str, Any]) -> None:
        """Log numbers; keys under "time/" hold wall-clock values, which no two runs share."""
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for sink in self._sinks:
                sink.row(step, values)

    def picture(self, step: int, name: str, array: np.ndarray) -> None:
        """Log a picture, uint8 (H, W, C)."""
        with writing(self._path.parent):
            for sink in self._sinks:
                sink.picture(step, name, array)

    def sync(self) -> None:
        """Return when the rows are on the disk: those before a checkpoint have to outlive what it outlives."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def __enter__(self) -> Tracker:
        self._hook, threading.excepthook = threading.excepthook, self._in_a_thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        threading.excepthook = self._hook
        try:
            with writing(self._path):
                self._file.close()
                for sink in self._sinks:
                    sink.close(failed=kind is not None)
        except WriteError:
            if kind is None:  # else there is a reason for leaving already
                raise

    def _in_a_thread(self, arguments: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread keeps the disk's refusal for our next call, which raises it.
        if not isinstance(arguments.exc_value, OSError):
            self._hook(arguments)


class Silent:
    """A tracker for the processes of a job that write nothing."""

    def row(self, step: int, values: dict[str, Any]) -> None:
        """Nothing."""

    def picture(self, step: int, name: str, array: np.ndarray) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _step_of(row: str) -> int | None:
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return None  # a torn last line
