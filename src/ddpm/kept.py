"""The checkpoints that a run folder keeps: entered in its manifest, the best never deleted, damaged ones set aside."""

from __future__ import annotations

import os
from pathlib import Path

from ddpm import checkpoint, manifest
from ddpm.checkpoint import Checkpoint
from ddpm.errors import CheckpointError, DamagedError
from ddpm.files import numbered
from ddpm.progress import say

ASIDE = ".set-aside"
"""Ending of a checkpoint that is not to be gone on from, but is not ours to delete."""


def save(folder: Path, content: Checkpoint, score: float | None) -> Path:
    """Write a checkpoint of a run and enter it in the manifest. Raises WriteError if the disk refuses.

    Args:
        score: how good the previews at its step were; lower is better.
    """
    path = checkpoint.path_at(folder, content.step)
    manifest.strike(path)
    checkpoint.save(path, content)
    manifest.enter(path, score)
    return path


def prune(folder: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the best one."""
    best = manifest.best(folder)
    for path in checkpoint.all_in(folder)[:-keep]:
        if path.name != best:
            manifest.strike(path)  # first: a file without an entry is deleted the next time
            path.unlink(missing_ok=True)


def latest(folder: Path, *, sound: bool = False) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint of a run that can be gone on from; None for a folder without a run.

    Damaged ones are passed over with a warning, and set aside once another is found.

    Args:
        sound: pass over those whose last step was skipped.

    Raises:
        CheckpointError: there were checkpoints, but none can be gone on from; or one that only another version reads.
    """
    there, damaged = checkpoint.all_in(folder), []
    lost = sorted(manifest.read(folder).keys() - {path.name for path in there})
    if lost and there:
        say(f"warning    {folder}: {', '.join(lost)} of its manifest is not there any more")
        for name in lost:
            manifest.strike(folder / name)
    for path in reversed(there):
        try:
            found = checkpoint.load(path)
        except DamagedError as error:
            say(f"warning    {error}")
            damaged.append(path)
            continue
        if sound and found.faults.in_a_row:
            continue
        for broken in damaged:
            say(f"warning    going on from {path.name} instead; the damaged file is now {set_aside(broken)}")
        return path, found
    if damaged or (lost and not there):
        raise CheckpointError(
            f"{folder}: none of this run's checkpoints can be read ({', '.join([p.name for p in damaged] or lost)}). "
            "Put back a copy, or start another run with --fresh or --out"
        )
    return None


def set_aside(path: Path) -> Path:
    """Rename a checkpoint so that no run goes on from it; returns its new place."""
    aside = next(place for place in numbered(path.with_name(path.name + ASIDE)) if not place.exists())
    os.replace(path, aside)
    manifest.strike(path)
    return aside


def set_aside_after(folder: Path, step: int) -> list[Path]:
    """Set aside every checkpoint of a later step."""
    return [set_aside(path) for path in checkpoint.all_in(folder) if checkpoint.step_of(path) > step]
