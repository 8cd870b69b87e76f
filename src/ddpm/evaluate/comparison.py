"""Samples beside real images, with the floors that tell how good is good."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ddpm.errors import UsageError
from ddpm.evaluate.distances import Estimate, Support, frechet, inception_score, kid, moments, support
from ddpm.evaluate.extractors import Extractor, Reading
from ddpm.evaluate.marginals import ClassCounts, Drift, class_counts, drift
from ddpm.evaluate.nll import subset
from ddpm.evaluate.neighbours import Copies, near_copies, nearest
from ddpm.evaluate.reference import Reference, key_of
from ddpm.files import cache_folder, write_json
from ddpm.progress import progress_bar

FEWEST = 2048
"""Images on each side below which an FID is not given: it is biased upwards, the more the fewer there are."""
PAIRED = 10_000
"""Images on each side that KID and the overlap look at, at most: their work grows with the square."""
LOOKED_UP = 2_000
"""Samples, and unseen images, whose nearest training image is looked for, at most."""


class Distances(NamedTuple):
    """How far a set of images is from another."""

    count: int
    """Images of the first."""
    reference_count: int
    """Images of the second."""
    fid: float | None
    """None where a side has fewer than `FEWEST` images and it was not forced."""
    kid: Estimate
    support: Support


@dataclass(frozen=True)
class Floors:
    """What real images reach: no set of samples can be expected to be nearer."""

    halves: Distances
    """Half of the reference against the other half."""
    unseen: Distances | None
    """Real images that are not in the reference against it: as many as the samples, if there are as many."""


@dataclass(frozen=True)
class Comparison:
    """Samples against a reference, in an extractor's features."""

    distances: Distances
    floors: Floors
    few: bool
    """Whether a side has fewer than `FEWEST` images, so that its FID says little, forced or not."""
    inception_score: float
    reference_inception_score: float
    classes: ClassCounts
    reference_classes: ClassCounts
    drift: Drift
    copies: Copies | None
    """Near-copies of the reference; None without unseen images to set the threshold by."""

    def numbers(self) -> dict[str, Any]:
        """As JSON has them."""
        values = plain(asdict(self))
        return dict(values)


def compare(
    samples: np.ndarray,
    reference: Reference,
    extractor: Extractor,
    *,
    unseen: Reference | None = None,
    force: bool = False,
    batch_size: int = 512,
    progress: bool = False,
) -> Comparison:
    """Measure samples against real images.

    Batch size and the order of the samples change the distances by float32 rounding of the features alone.

    Args:
        samples: uint8 (N, H, W, C), without padding, as `generate.sample` returns them; N > 5.
        reference: what the model was trained on.
        unseen: real images that it was not trained on.
        force: give an FID of fewer than `FEWEST` images too.

    Raises UsageError for pictures of another shape than the extractor reads, or too few.
    """
    if unseen is not None and unseen.sha256 == reference.sha256:
        raise UsageError("the unseen images are the reference itself: no floor, and every one a copy")
    levels = np.ascontiguousarray(samples.transpose(0, 3, 1, 2))
    reading = extractor.read(levels, batch_size=batch_size, progress=progress)
    with progress_bar("comparing", 4, "part", show=progress) as bar:
        found = distances(reading, reference.reading, force=force)
        bar.update()
        limits = floors(reference, unseen, len(levels), force=force)
        bar.update(2)
        copies = None if unseen is None else _copies(levels, reference, unseen)
        bar.update()
    return Comparison(
        distances=found,
        floors=limits,
        few=min(len(levels), len(reference)) < FEWEST,
        inception_score=inception_score(reading.probabilities),
        reference_inception_score=inception_score(reference.reading.probabilities),
        classes=class_counts(reading.probabilities),
        reference_classes=class_counts(reference.reading.probabilities),
        drift=drift(levels, reference.levels),
        copies=copies,
    )


def distances(samples: Reading, reference: Reading, *, force: bool = False) -> Distances:
    """All distances between two readings; KID and the overlap from a fixed draw of `PAIRED` of each, if larger."""
    x, y = samples.features, reference.features
    enough = force or min(len(x), len(y)) >= FEWEST
    few_x, few_y = (part[np.sort(subset(len(part), PAIRED))] for part in (x, y))
    fid = frechet(moments(x), moments(y)) if enough else None
    return Distances(len(x), len(y), fid, kid(few_x, few_y), support(few_x, few_y))


def floors(reference: Reference, unseen: Reference | None, count: int, *, force: bool = False) -> Floors:
    """The floors of a reference for `count` samples; kept under a key of all that defines them."""
    facts = {"floors": reference.key, "unseen": unseen and unseen.key, "count": count, "force": force}
    path = cache_folder() / "floors" / f"{key_of(facts | {'paired': PAIRED, 'fewest': FEWEST})}.json"
    try:
        return _floors_of(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent, or damaged and so made again
    order = subset(len(reference), None)
    first, second = (np.sort(half) for half in (order[::2], order[1::2]))
    halves = distances(reference.reading.take(first), reference.reading.take(second), force=force)
    apart = None
    if unseen is not None:
        chosen = np.sort(subset(len(unseen), count))
        apart = distances(unseen.reading.take(chosen), reference.reading, force=force)
    found = Floors(halves, apart)
    write_json(path, plain(asdict(found)))
    return found


def _copies(levels: np.ndarray, reference: Reference, unseen: Reference) -> Copies:
    """Near-copies in pixels, from at most `LOOKED_UP` images on each side."""
    sides = (levels, unseen.levels)
    near = [nearest(side[np.sort(subset(len(side), LOOKED_UP))], reference.levels).distances[:, 0] for side in sides]
    return near_copies(*near)


def _floors_of(plain: dict[str, Any]) -> Floors:
    return Floors(**{name: part and distances_of(part) for name, part in plain.items()})


def distances_of(plain: dict[str, Any]) -> Distances:
    return Distances(**plain | {"kid": Estimate(**plain["kid"]), "support": Support(**plain["support"])})


def plain(value: Any) -> Any:
    """Named tuples, which `asdict` leaves as they are, as dictionaries too."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    return value
