"""Where a run's numbers and pictures go: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ddpm.files import write_text


class Tracker:
    """Rows of metrics, by step. Opening it at a step drops the rows that come after that step."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        rows = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [row for row in rows if _step_of(row) is not None and _step_of(row) <= step]  # type: ignore[operator]
        write_text(self._path, "".join(row + "\n" for row in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def row(self, step: int, values: dict[str, Any]) -> None:
        """Log numbers; keys under "time/" hold wall-clock values, which no two runs share."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(key, value, step)

    def picture(self, step: int, name: str, array: np.ndarray) -> None:
        """Log a picture, uint8 (H, W, C)."""
        self._board.add_image(name, array, step, dataformats="HWC")
        self._board.flush()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()


def _step_of(row: str) -> int | None:
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return None  # a torn last line
