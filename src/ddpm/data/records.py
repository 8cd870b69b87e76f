"""What the data rooms pass to one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ddpm.images import Crop

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train", "held_out", "test"]


class Item(NamedTuple):
    """One picture of a source, not yet decoded."""

    name: str
    open: Callable[[], Image]
    """Opens it; may raise anything if the file is broken."""
    label: int | None


@dataclass(frozen=True)
class Source:
    """The pictures of one split, and what identifies them without reading them."""

    items: list[Item]
    manifest: list[tuple[str, int, int]]
    """(path, bytes, modification time in ns) of each file."""
    class_names: tuple[str, ...] = ()
    ignored: int = 0
    """Files that are no pictures by their name."""


@dataclass
class ScanReport:
    """What was found when the pictures were read."""

    found: int = 0
    """Pictures that the source has."""
    ignored: int = 0
    """Other files."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of each broken picture."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Pictures by "width x height"."""
    modes: dict[str, int] = field(default_factory=dict)
    """Pictures by pixel format."""
    animated: int = 0
    """Animated pictures, of which the first frame was taken."""

    @property
    def kept(self) -> int:
        return self.found - len(self.skipped)

    def __str__(self) -> str:
        lines = [
            f"{self.kept:,} of {self.found:,} pictures read" + (f", {self.ignored:,} other files" * bool(self.ignored))
        ]
        for name, counts in (("sizes", self.sizes), ("modes", self.modes)):
            most = ", ".join(f"{key}: {count:,}" for key, count in Counter(counts).most_common(4))
            lines.append(f"{name} {most}" + (f" and {len(counts) - 4} more" if len(counts) > 4 else ""))
        if self.animated:
            lines.append(f"animated {self.animated:,}, first frame taken")
        lines += [f"skipped {name!r}: {reason}" for name, reason in self.skipped[:5]]
        if len(self.skipped) > 5:
            lines.append(f"skipped {len(self.skipped) - 5:,} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class ImageSet:
    """The pictures of one split: packed, decoded and of one size."""

    packed: np.ndarray
    """(M, C, H, W) uint8, memory-mapped; all pictures of the source's part."""
    index: np.ndarray | None
    """Which of them belong to the split, (N,) int64; None: all."""
    labels: np.ndarray | None
    """(N,) int64, or None."""
    class_names: tuple[str, ...]
    crop: Crop | None
    """Where the picture lies in the frame, if all were padded alike."""
    fingerprint: str
    """SHA-256 of the split's images and labels."""
    report: ScanReport

    def __len__(self) -> int:
        return len(self.packed) if self.index is None else len(self.index)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The pictures at `indices` (0..N-1) as a new array, uint8 (n, C, H, W)."""
        return np.ascontiguousarray(self.packed[indices if self.index is None else self.index[indices]])
