"""Samples beside real images, with the floors that tell how good is good."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm.errors import UsageError
from ddpm.evaluate.distances import (
    NEIGHBOURS,
    Classes,
    Comparison,
    Drift,
    Estimate,
    Overlap,
    classes,
    compare,
    drift,
    fid,
    inception_score,
)
from ddpm.evaluate.extractor import Extractor, Features
from ddpm.evaluate.neighbours import Copies, near_copies, nearest
from ddpm.evaluate.nll import subset
from ddpm.evaluate.reference import Reference, key_of, read_images
from ddpm.files import cache_folder, write_json
from ddpm.progress import progress_bar

LEAST = 2 * NEIGHBOURS + 1
"""Images a side, at least, that distances are taken of."""
FEWEST = 2048
"""Images on each side below which an FID is not given: it is biased upwards, the more the fewer there are."""
PAIRED = 10_000
"""Images on each side that KID and the overlap look at, at most: their work grows with the square."""
LOOKED_UP = 2_000
"""Samples, and unseen images, whose nearest training image is looked for, at most."""


@dataclass(frozen=True)
class Measured:
    """A set of images against another."""

    count: int
    """Images of the first."""
    reference_count: int
    """Images of the second."""
    comparison: Comparison

    @property
    def few(self) -> bool:
        """Whether a side has fewer than `FEWEST` images, so that the FID says little."""
        return min(self.count, self.reference_count) < FEWEST

    def numbers(self, *, force: bool) -> dict[str, Any]:
        """As JSON has them: no FID (None) of few images unless forced, and then marked."""
        found = self.comparison
        return {
            "images": self.count,
            "reference_images": self.reference_count,
            "fid": found.fid if force or not self.few else None,
            "fid_of_too_few_images": self.few,
            "kid": found.kid._asdict(),
            "inception_score": found.inception_score,
            **found.overlap._asdict(),
            "classes": found.classes._asdict(),
        }


@dataclass(frozen=True)
class Floors:
    """What real images reach: no set of samples can be expected to be nearer."""

    halves: Measured
    """Half of the reference against the other half."""
    unseen: Measured | None
    """Real images that are not in the reference against it: as many as the samples, if there are as many."""

    def numbers(self, *, force: bool) -> dict[str, Any]:
        """As JSON has them."""
        unseen = self.unseen and self.unseen.numbers(force=force)
        return {"train_half_against_half": self.halves.numbers(force=force), "unseen_against_train": unseen}


@dataclass(frozen=True)
class Evaluation:
    """Samples against a reference, in an extractor's features."""

    samples: Measured
    floors: Floors
    reference_classes: Classes
    reference_inception_score: float
    drift: tuple[Drift, ...]
    """Of each channel."""
    copies: Copies | None
    """Near-copies of the reference; None without unseen images to set the threshold by."""

    def numbers(self, *, force: bool) -> dict[str, Any]:
        """As JSON has them."""
        return {
            "samples": self.samples.numbers(force=force),
            "floors": self.floors.numbers(force=force),
            "reference": {
                "classes": self.reference_classes._asdict(),
                "inception_score": self.reference_inception_score,
            },
            "drift": [one._asdict() for one in self.drift],
            "near_copies": self.copies and self.copies._asdict(),
        }


def evaluate_samples(
    samples: np.ndarray,
    reference: Reference,
    extractor: Extractor,
    *,
    unseen: Reference | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measure samples against real images.

    Args:
        samples: uint8 (N, H, W, C), without padding, as `generate.sample` returns them.
        reference: what the model was trained on.
        unseen: real images of the same kind that it was not trained on.

    Raises UsageError for pictures of another shape than the reference's, too few, or a reference given twice.
    """
    if samples.shape[1:] != reference.images.shape[1:]:
        raise UsageError(
            f"samples: found pictures of {_shape(samples)}, the data have {_shape(reference.images)}; "
            "they are not resized silently"
        )
    if unseen is not None and unseen.sha256 == reference.sha256:
        raise UsageError("the unseen images are the reference itself: no floor, and every one a copy")
    for what, count in (("samples", len(samples)), ("reference", len(reference))):
        if count < LEAST:
            raise UsageError(f"{what}: {count} images; distances need at least {LEAST}")
    features = read_images(samples, extractor, progress=progress)
    with progress_bar("comparing", 4, "part", show=progress) as bar:
        found = measured(features, reference.features)
        bar.update()
        limits = floors(reference, unseen, len(samples))
        bar.update(2)
        copies = None if unseen is None else _copies(samples, reference, unseen)
        bar.update()
    return Evaluation(
        samples=found,
        floors=limits,
        reference_classes=classes(reference.features.probabilities),
        reference_inception_score=inception_score(reference.features.probabilities),
        drift=drift(samples, reference.images),
        copies=copies,
    )


def measured(samples: Features, reference: Features) -> Measured:
    """All distances: the FID from all images, what goes by pairs from a fixed draw of `PAIRED`, if there are more."""
    few, others = (_take(part, subset(len(part.vectors), PAIRED)) for part in (samples, reference))
    found = compare(few, others)._replace(
        fid=fid(samples.vectors, reference.vectors),
        inception_score=inception_score(samples.probabilities),
        classes=classes(samples.probabilities),
    )
    return Measured(len(samples.vectors), len(reference.vectors), found)


def floors(reference: Reference, unseen: Reference | None, count: int) -> Floors:
    """The floors of a reference for `count` samples; kept under a key of all that defines them."""
    facts = {
        "floors": reference.key,
        "unseen": None if unseen is None else unseen.key,
        "count": count,
        "paired": PAIRED,
    }
    path = cache_folder() / "floors" / f"{key_of(facts)}.json"
    try:
        plain = json.loads(path.read_text())
        return Floors(_measured_of(plain["halves"]), plain["unseen"] and _measured_of(plain["unseen"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent, or damaged and so made again
    order = subset(len(reference), None)
    halves = measured(*(_take(reference.features, half) for half in (order[::2], order[1::2])))
    apart = None
    if unseen is not None and len(unseen) >= LEAST:
        apart = measured(_take(unseen.features, subset(len(unseen), count)), reference.features)
    write_json(path, {"halves": _plain(halves), "unseen": apart and _plain(apart)})
    return Floors(halves, apart)


def _take(features: Features, index: np.ndarray) -> Features:
    index = np.sort(index)
    return Features(features.vectors[index], features.probabilities[index])


def _copies(samples: np.ndarray, reference: Reference, unseen: Reference) -> Copies:
    """Near-copies in pixels, from at most `LOOKED_UP` images on each side."""
    chosen = (side[np.sort(subset(len(side), LOOKED_UP))] for side in (samples, unseen.images))
    return near_copies(*(nearest(side, reference.images).distances[:, 0] for side in chosen))


def _plain(found: Measured) -> dict[str, Any]:
    parts = {
        name: part._asdict() if hasattr(part, "_asdict") else part for name, part in found.comparison._asdict().items()
    }
    return {"count": found.count, "reference_count": found.reference_count, "comparison": parts}


def _measured_of(plain: dict[str, Any]) -> Measured:
    parts = plain["comparison"]
    histogram = tuple(parts["classes"]["histogram"])
    found = Comparison(
        fid=parts["fid"],
        kid=Estimate(**parts["kid"]),
        inception_score=parts["inception_score"],
        overlap=Overlap(**parts["overlap"]),
        classes=Classes(**parts["classes"] | {"histogram": histogram}),
    )
    return Measured(plain["count"], plain["reference_count"], found)


def _shape(images: np.ndarray) -> str:
    height, width, channels = images.shape[1:]
    return f"{height}x{width}x{channels}"
