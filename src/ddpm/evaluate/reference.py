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
from ddpm.distributed import collected, world
from ddpm.errors import UsageError
from ddpm.evaluate.extractor import Extractor, Features
from ddpm.evaluate.nll import evaluated_split, load_split
from ddpm.files import atomic_write, cache_folder
from ddpm.generate import Model
from ddpm.images import unpacked
from ddpm.progress import progress_bar

FORMAT = 2
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
    """Stands for the features: images, split, cropping, extractor."""
    images: np.ndarray
    """uint8 (M, H, W, C), without padding."""
    features: Features
    labels: np.ndarray | None = None
    """(M,) int64, where the data have them."""

    def __len__(self) -> int:
        return len(self.images)


def sides(
    model: Model, extractor: Extractor, *, root: str | None = None, progress: bool = True
) -> tuple[Reference, Reference | None]:
    """The images that a model was trained on, and those of its data that it was not; None if there are none.

    Args:
        root: where the data lie now, if not where they lay in training.
    """

    def read(split: Split) -> Reference:
        images = load_split(model, split, root=root, progress=progress)
        return read_reference(images, model.config.data.source, split, extractor, progress=progress)

    trained_on = read("train")
    try:
        other = evaluated_split(model)
    except UsageError:
        return trained_on, None
    return trained_on, read(other)


def read_reference(
    images: ImageSet, source: str, split: Split, extractor: Extractor, *, progress: bool = False
) -> Reference:
    """Read a split with an extractor, or take its features from the cache."""
    facts = {
        "source": source,
        "split": split,
        "images": images.fingerprint,
        "count": len(images),
        "crop": images.crop,
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "transform": extractor.transform,
    }
    key = key_of(facts)
    pictures = unpacked(images.images, images.crop)
    path = cache_folder() / "features" / f"{key}.npz"
    features = _cached(path, len(images))
    if features is None:
        features = read_images(pictures, extractor, progress=progress)
        with atomic_write(path) as file:
            np.savez(file, vectors=features.vectors, probabilities=features.probabilities)
    return Reference(source, split, images.fingerprint, key, pictures, features, images.labels)


def read_images(images: np.ndarray, extractor: Extractor, *, progress: bool = False) -> Features:
    """The features of uint8 (N, H, W, C), with a bar."""
    parts = []
    with progress_bar(f"{extractor.name} features", len(images), "image", show=progress) as bar:
        for start in world().share(range(0, len(images), extractor.batch)):
            # A copy: images mapped into memory are read-only, which torch warns of.
            parts.append(extractor(images[start : start + extractor.batch].copy()))
            bar.update(len(parts[-1].vectors))
    return Features(*(np.concatenate(part) for part in zip(*collected(parts), strict=True)))


def key_of(facts: dict[str, Any]) -> str:
    """A short name for facts; other facts have another."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **facts}, sort_keys=True).encode()).hexdigest()[:32]


def _cached(path: Path, count: int) -> Features | None:
    """The features in a cached file; None if it is absent, or damaged and so to be made again."""
    try:
        with path.open("rb") as stored, np.load(stored) as file:  # np.load would leave a damaged file open
            features = Features(file["vectors"], file["probabilities"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return features if len(features.vectors) == len(features.probabilities) == count else None
