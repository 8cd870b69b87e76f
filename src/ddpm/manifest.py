"""The manifest of a run folder: SHA-256, size and score of each checkpoint, in `manifest.json`.

A checkpoint is struck off before its file is replaced and entered after it is safe, so that a crash in between leaves
a file without an entry, never an entry for another content.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from ddpm.errors import DamagedError
from ddpm.files import write_json

NAME = "manifest.json"
FORMAT = "ddpm-manifest"


@dataclass(frozen=True)
class Entry:
    """What is known of one checkpoint file."""

    sha256: str
    bytes: int
    score: float | None = None
    """How good the previews at its step were; lower is better. None: not known."""


def read(folder: Path) -> dict[str, Entry]:
    """The entries by file name; none where there is no manifest or where it is damaged."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return {}
        return {str(name): _entry(**values) for name, values in content["checkpoints"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def enter(path: Path, score: float | None) -> None:
    """Enter the file at `path` as it is now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    score = score if score is not None and math.isfinite(score) else None
    _write(path.parent, read(path.parent) | {path.name: Entry(digest, path.stat().st_size, score)})


def strike(path: Path) -> None:
    """Strike a file off, if it is entered."""
    entries = read(path.parent)
    if entries.pop(path.name, None):
        _write(path.parent, entries)


def verify(path: Path) -> bool:
    """Whether a file is entered and is what was entered. Raises DamagedError if it is something else."""
    entry = read(path.parent).get(path.name)
    if entry is None:
        return False
    size = path.stat().st_size
    if size != entry.bytes:
        raise DamagedError(f"{path}: is damaged: it has {size:,} bytes, but {entry.bytes:,} were written")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise DamagedError(f"{path}: is damaged: its SHA-256 is {found[:12]}..., {entry.sha256[:12]}... was written")
    return True


def score(path: Path) -> float | None:
    """The score of a checkpoint, as far as it is known."""
    entry = read(path.parent).get(path.name)
    return entry.score if entry else None


def best(folder: Path) -> str | None:
    """The name of the checkpoint with the best score, the later one of equals; None if no score is known."""
    scored = [(entry.score, name) for name, entry in read(folder).items() if entry.score is not None]
    lowest = min((score for score, _ in scored), default=None)
    return next((name for score, name in reversed(scored) if score == lowest), None)


def _entry(sha256: str, bytes: int, score: float | None = None) -> Entry:
    if not (isinstance(sha256, str) and isinstance(bytes, int) and (score is None or isinstance(score, float | int))):
        raise TypeError("not an entry")
    return Entry(sha256, bytes, score)


def _write(folder: Path, entries: dict[str, Entry]) -> None:
    write_json(folder / NAME, {"format": FORMAT, "checkpoints": {name: asdict(e) for name, e in entries.items()}})
