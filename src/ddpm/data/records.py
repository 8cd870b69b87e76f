"""What the data rooms pass to one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from ddpm.crop import Crop

Split = Literal["train", "held_out", "test"]


class Item(NamedTuple):
    """One picture of a source, not yet decoded."""

    name: str
    open: Callable[[], Image]
    """Opens it; may raise anything if the file is broken."""
    label: int | None


@dataclass(frozen=True)
class Contents:
    """The pictures of a source, in a fixed order."""

    items: Sequence[Item]
    class_names: tuple[str, ...] = ()
    """Names of the labels 0, 1, ...; () when the pictures have none."""
    ignored: int = 0
    """Files that are no pictures by their name."""
    unclassed: int = 0
    """Pictures beside the class folders; one is enough for all to have no label."""


@dataclass(frozen=True)
class Source:
    """One part of a data set: found, not read."""

    name: str
    manifest: Sequence[tuple[str, int, int]] | None
    """(path, bytes, modification time in ns) of each file; None: so small that it needs no cache."""
    read: Callable[[], Contents]
    """Reads it; called only when the cache has no pack of it."""


@dataclass(frozen=True)
class ScanReport:
    """What was found when the pictures were read."""

    found: int
    """Pictures that the source has."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(name, reason) of each broken picture."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Pictures by "width x height"."""
    modes: Mapping[str, int] = field(default_factory=dict)
    """Pictures by pixel format, in Pillow's words."""
    animated: int = 0
    """Pictures of several frames, of which the first was taken."""
    ignored: int = 0
    """Files that are not images by their name; they are not counted in `found`."""
    unclassed: int = 0
    """Pictures beside the class folders, which is why there are no labels."""

    @property
    def kept(self) -> int:
        return self.found - len(self.skipped)

    def __str__(self) -> str:
        others = f", {self.ignored:,} other files skipped: not an image" if self.ignored else ""
        lines = [f"{self.kept:,} of {self.found:,} pictures read{others}"]
        lines += [f"sizes    {_most(self.sizes)}", f"formats  {_most(self.modes)}"]
        if self.animated:
            lines.append(f"animated {self.animated:,}: the first frame is taken")
        if self.unclassed:
            lines.append(f"labels   none: {self.unclassed:,} of the pictures lie beside the class folders")
        lines += [f"skipped  {name!r}: {reason}" for name, reason in self.skipped[:5]]
        if len(self.skipped) > 5:
            lines.append(f"skipped  {len(self.skipped) - 5:,} more")
        return "\n".join(lines)


def _most(counts: Mapping[str, int]) -> str:
    most = ", ".join(f"{key}: {count:,}" for key, count in Counter(counts).most_common(4))
    return most + (f" and {len(counts) - 4:,} more" if len(counts) > 4 else "")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The pictures of one split: decoded, packed, of one size."""

    packed: np.ndarray
    """(M, C, H, W) uint8, read-only, memory-mapped from the cache: all that `train` and `held_out` share."""
    index: np.ndarray | None
    """Which of them are in this split, (N,) int64, ascending; None: all."""
    labels: np.ndarray | None
    """(N,) int64, or None."""
    class_names: tuple[str, ...]
    """Names of the labels; () when there are none."""
    crop: Crop | None
    """Where the picture lies in the frame, if all are padded alike; else None."""
    fingerprint: str
    """SHA-256 (hex) that stands for the split's images and labels."""
    report: ScanReport

    def __len__(self) -> int:
        return len(self.packed) if self.index is None else len(self.index)

    @property
    def count(self) -> int:
        return len(self)

    @property
    def images(self) -> np.ndarray:
        """All pictures of the split, uint8 (N, C, H, W); a copy in memory if the split is a part: see `take`."""
        return self.packed if self.index is None else self.packed[self.index]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The pictures at `indices` (0..N-1) as a new contiguous array, uint8 (n, C, H, W)."""
        return np.ascontiguousarray(self.packed[indices if self.index is None else self.index[indices]])


class Position(NamedTuple):
    """How far a process has come in a stream."""

    shard: int
    """The shard that it reads, by its place in the endless sequence of the epochs' shards."""
    pictures: int
    """Pictures of that shard that are done with, in the order in which they are taken."""


class Batch(NamedTuple):
    """The images of one step, or one process's share of them."""

    indices: np.ndarray | None
    """(B,) int64, places in the image set; None for images of a stream."""
    images: np.ndarray
    """(B, C, H, W) uint8."""
    labels: np.ndarray | None
    """(B,) int64."""
    after: Position | None = None
    """Where a stream goes on after them."""


class Sample(NamedTuple):
    """A picture of a shard, not yet decoded."""

    key: str
    """Its name in the shard."""
    content: bytes
    label: int | None = None
    problem: str = ""
    """Why there is no content."""


class Taken(NamedTuple):
    """A sample whose turn it is."""

    sample: Sample
    shard: str
    after: Position
    """Where to go on after it."""

    @property
    def name(self) -> str:
        return f"{self.shard}: {self.sample.key}"
