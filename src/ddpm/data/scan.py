"""Decode all pictures of a source, in order, on all cores; count what was found."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ddpm.config import DataSection
from ddpm.data import decode
from ddpm.data.records import Contents, Item, ScanReport
from ddpm.errors import DataError
from ddpm.progress import progress_bar

if TYPE_CHECKING:
    from ddpm.crop import Crop

_CHUNK = 32
"""Pictures a thread decodes at a time; two chunks a thread are in memory."""


@dataclass(frozen=True)
class Facts:
    """What there is to know about packed pictures, besides their pixels."""

    shape: tuple[int, int, int, int]
    """(N, C, H, W)."""
    labels: np.ndarray | None
    """(N,) int64, or None."""
    class_names: tuple[str, ...]
    crop: Crop | None
    """Where the picture lies in the frame, if all are padded alike; else None."""
    sha256: str
    """Of shape, pixels and labels."""
    report: ScanReport


class Frame(NamedTuple):
    """A decoded picture, and what it was."""

    pixels: bytes
    crop: Crop
    size: str
    mode: str
    animated: bool


def scan(contents: Contents, config: DataSection, write: Callable[[bytes], object], *, progress: bool) -> Facts:
    """Decode every picture and `write` its pixels, uint8 (C, H, W), one after the other.

    Raises DataError when more pictures are broken than `data.max_broken` allows, or all.
    """
    found = len(contents.items)
    skipped: list[tuple[str, str]] = []
    sizes, modes, animated = Counter[str](), Counter[str](), 0
    digest, labels, crops = hashlib.sha256(), [], set()
    with (
        progress_bar(f"reading {config.source}", found, "image", show=progress) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what matters is in the report
        for number, (item, frame) in enumerate(_decoded(contents.items, config), 1):
            bar.update()
            if isinstance(frame, Exception):
                skipped.append((item.name, reason(frame)))
            else:
                write(frame.pixels)
                digest.update(frame.pixels)
                labels.append(item.label)
                crops.add(frame.crop)
                sizes[frame.size] += 1
                modes[frame.mode] += 1
                animated += frame.animated
            # Not at once: all broken files of a small folder are named together.
            if number % 1000 == 0:
                check_broken(skipped, found, config.max_broken)
    if not labels:
        raise DataError(f"data.source: {config.source}: no picture can be read{_listed(skipped)}")
    check_broken(skipped, found, config.max_broken)
    shape = (len(labels), config.channels, *config.size)
    numbers = None if None in labels or not contents.class_names else np.array(labels, np.int64)
    digest.update(repr(shape).encode() + (b"" if numbers is None else numbers.astype("<i8").tobytes()))
    return Facts(
        shape,
        numbers,
        () if numbers is None else contents.class_names,
        common_crop(crops, config.size),
        digest.hexdigest(),
        ScanReport(found, tuple(skipped), dict(sizes), dict(modes), animated, contents.ignored, contents.unclassed),
    )


def check_broken(skipped: Sequence[tuple[str, str]], found: int, limit: float) -> None:
    """Raises DataError when more of the pictures are broken than the share `limit`."""
    if len(skipped) > limit * found:
        raise DataError(
            f"data: {len(skipped):,} of {found:,} pictures are broken, more than data.max_broken: {limit:g} allows"
            f"{_listed(skipped)}\nRemove or replace them, or raise data.max_broken to go on without them"
        )


def _listed(skipped: Sequence[tuple[str, str]]) -> str:
    lines = [f"\n  {name!r}: {reason}" for name, reason in skipped[:10]]
    return ":" * bool(lines) + "".join(lines) + f"\n  and {len(skipped) - 10:,} more" * (len(skipped) > 10)


def reason(error: Exception) -> str:
    """In one line; the name of the file is said elsewhere."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def common_crop(crops: set[Crop], size: tuple[int, int]) -> Crop | None:
    """The crop that all share; None if they differ, or if it is the whole frame of `size`."""
    if len(crops) != 1:
        return None
    (crop,) = crops
    return None if (crop.height, crop.width) == size else crop


def _decoded(items: Sequence[Item], config: DataSection) -> Iterator[tuple[Item, Frame | Exception]]:
    """Each picture decoded, in order, a few chunks ahead."""
    threads = min(16, os.cpu_count() or 1)
    pending: deque[Future[list[tuple[Item, Frame | Exception]]]] = deque()

    def work(chunk: Sequence[Item]) -> list[tuple[Item, Frame | Exception]]:
        return [(item, frame_of(item, config)) for item in chunk]

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(items), _CHUNK):
            pending.append(pool.submit(work, items[start : start + _CHUNK]))
            if len(pending) > 2 * threads:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def frame_of(item: Item, config: DataSection) -> Frame | Exception:
    """A picture decoded as the configuration wants it, or what is wrong with it."""
    try:
        with item.open() as picture:
            size, mode = f"{picture.width} x {picture.height}", picture.mode
            animated = bool(getattr(picture, "is_animated", False))
            pixels, crop = decode.decode(picture, size=config.size, channels=config.channels, resize=config.resize)
        return Frame(pixels.tobytes(), crop, size, mode, animated)
    except Exception as error:  # a broken file can raise anything; it is named in the report
        return error
