"""Samples to be measured: drawn, or read from where they lie."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from ddpm.config import SamplingSection
from ddpm.errors import DataError, UsageError
from ddpm.generate import Model, sample
from ddpm.images import read_png

UNNAMED = ("all", "random")
"""Settings of `classes` that leave them to the model."""
IN_SHARES = "all, in the data's shares"
"""What is said of the classes of measured samples then."""


def draw_samples(
    model: Model, count: int, settings: SamplingSection, labels: np.ndarray | None, *, progress: bool = True
) -> np.ndarray:
    """Images 0..count-1 of the settings' seed, uint8 (N, H, W, C).

    Args:
        labels: of the training images: a model with classes draws them in these shares, unless the settings name
            some, or none.
    """
    changes = settings.model_dump(exclude_none=True)
    if settings.classes in UNNAMED:
        changes["classes"] = class_sequence(labels, count)
    return sample(model, count, progress=progress, **changes)


def class_sequence(labels: np.ndarray | None, count: int) -> tuple[int, ...]:
    """The classes of samples 0..count-1 of a model with classes, in the shares that they have in `labels`.

    The multiples of the golden ratio fill [0, 1) evenly, whatever their number; each falls into the interval of a
    class, which is as long as its share. So sample i's class depends on i and the data alone, and of any first n
    samples each class has its share, to within two images or so.
    """
    assert labels is not None, "a model with classes was trained on labelled images"
    counts = np.bincount(labels)
    ends = np.cumsum(counts) / counts.sum()
    places = np.arange(count) * ((5**0.5 - 1) / 2) % 1
    return tuple(np.searchsorted(ends, places, side="right").tolist())


def read_samples(path: Path) -> np.ndarray:
    """Samples from an .npz or .npy file, or a folder of PNGs: uint8 (N, H, W, C).

    A folder's samples.npz comes first, then its pictures but for grid.png, by name.
    Raises DataError or UsageError for what is no such thing.
    """
    if path.is_dir():
        if (path / "samples.npz").exists():
            return read_samples(path / "samples.npz")
        pictures = sorted(p for p in path.glob("*.png") if p.name != "grid.png")
        if not pictures:
            raise UsageError(f"--samples-from: {path} has neither samples.npz nor PNG pictures")
        try:
            arrays = [read_png(picture) for picture in pictures]
        except (OSError, SyntaxError) as error:
            raise DataError(f"{path}: a picture cannot be read: {error}") from error
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise DataError(f"{path}: pictures of several sizes: {', '.join(map(str, sorted(shapes)))}")
        return np.stack(arrays)
    try:
        with path.open("rb") as stored:
            loaded = np.load(stored)
            array = np.asarray(loaded["arr_0"] if hasattr(loaded, "files") else loaded)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"--samples-from: {path}: expected a folder or an .npz file with arr_0, as of ddpm sample ({error})"
        ) from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise UsageError(
            f"--samples-from: {path} holds {array.dtype} {array.shape}, expected uint8 (N, H, W, C) with C 1 or 3"
        )
    return array
