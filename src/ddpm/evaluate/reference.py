"""Real images as an extractor reads them: read once, kept under a key of all that defines them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.data import ImageSet, Split
from ddpm.evaluate.extractors import Extractor, Reading
from ddpm.files import atomic_write, cache_folder
from ddpm.images import Crop

FORMAT = 1
"""Of the cached files; part of every key."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images that samples are compared with."""

    source: str
    """Name of the data set."""
    split: Split
    sha256: str
    """Fingerprint of the split's images and labels."""
    key: str
    """Stands for the readings: images, split, cropping, extractor."""
    levels: np.ndarray
    """uint8 (M, C, H, W), without padding."""
    reading: Reading

    def __len__(self) -> int:
        return len(self.levels)


def key_of(facts: dict[str, Any]) -> str:
    """A short name for facts; other facts have another."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **facts}, sort_keys=True).encode()).hexdigest()[:32]


def read_reference(
    images: ImageSet, source: str, split: Split, extractor: Extractor, *, batch_size: int = 512, progress: bool = False
) -> Reference:
    """Read a split with an extractor, or take the readings from the cache."""
    key = key_of(
        {
            "source": source,
            "split": split,
            "images": images.fingerprint,
            "count": len(images),
            "crop": images.crop,
            "extractor": extractor.name,
            "extractor_sha256": extractor.sha256,
            "transform": extractor.transform,
        }
    )
    levels = cropped(images.images, images.crop)
    path = cache_folder() / "features" / f"{key}.npz"
    reading = _read(path, len(images))
    if reading is None:
        reading = extractor.read(levels, batch_size=batch_size, progress=progress)
        with atomic_write(path) as file:
            np.savez(file, features=reading.features, probabilities=reading.probabilities)
    return Reference(source, split, images.fingerprint, key, levels, reading)


def cropped(levels: np.ndarray, crop: Crop | None) -> np.ndarray:
    """The pictures (N, C, H, W) without their padding."""
    if crop is None:
        return levels
    return levels[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def _read(path: Path, count: int) -> Reading | None:
    """The readings in a cached file; None if it is absent, or damaged and so to be made again."""
    try:
        with path.open("rb") as stored, np.load(stored) as file:  # np.load would leave a damaged file open
            reading = Reading(file["features"], file["probabilities"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return reading if len(reading.features) == len(reading.probabilities) == count else None
