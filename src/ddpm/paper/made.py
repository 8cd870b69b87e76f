"""What a table or figure hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Made:
    """A finished table or figure: its files, its numbers, and what to print."""

    files: tuple[Path, ...]
    """What was written, the picture or table first, the JSON of its numbers last."""
    numbers: Mapping[str, Any]
    """The content of that JSON: plain types, with checkpoint or configuration, step, seed and data."""
    text: str
    """The table, or the figure's caption, for a terminal."""
