"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard, and what `training.trackers` names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ddpm.choices import TrackerName
from ddpm.files import write_text
from ddpm.trackers import open_sinks


class Tracker:
    """Rows of metrics, by step. Opening it at a step drops the rows that come after that step."""

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
        self._sinks = open_sinks(trackers, folder, step, settings or {})
        self._file = self._path.open("a", encoding="utf-8")

    def row(self, step: int, values: dict[str, Any]) -> None:
        """Log numbers; keys under "time/" hold wall-clock values, which no two runs share."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.row(step, values)

    def picture(self, step: int, name: str, array: np.ndarray) -> None:
        """Log a picture, uint8 (H, W, C)."""
        for sink in self._sinks:
            sink.picture(step, name, array)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        for sink in self._sinks:
            sink.close(failed=kind is not None)


def _step_of(row: str) -> int | None:
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return None  # a torn last line
