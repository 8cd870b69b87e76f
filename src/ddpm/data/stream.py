"""Images that are read while training, from shards, each process its own; never all of them kept.

The shards of an epoch, permuted for that epoch, and those of the next after them, are one endless sequence. Process r
of R reads those at r, r + R, r + 2 R, ...: each shard of each epoch is one process's, whole, however unequal they are.
Within a shard pictures are shuffled in blocks. Where a process has come to is then two numbers, its `Position`, from
which it goes on at the very next picture.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np

from ddpm.config import DataSection
from ddpm.data.order import permutation
from ddpm.data.prefetch import ahead
from ddpm.data.records import Batch, Position, Sample, Taken
from ddpm.data.scan import check_broken
from ddpm.data.workers import decoded, usual_workers
from ddpm.errors import DataError
from ddpm.progress import say

T = TypeVar("T")

BLOCK = 1024
"""Pictures that are shuffled together; part of what a seed means, and of what a position does."""
BLOCK_BYTES = 2**28
"""A block of larger pictures ends earlier."""
CHUNK = 16
"""Pictures that a worker is given at a time."""
FEW = 1000
"""`data.max_broken` is a share of so many pictures at least: one in ten is no verdict."""


@dataclass(frozen=True)
class ImageStream:
    """Shards of pictures: listed, not read."""

    shards: tuple[str, ...]
    """Their names."""
    read: Callable[[int], Iterator[Sample]]
    """The pictures of shard number i as they lie in it. Raises DataError where it cannot be read."""
    config: DataSection
    class_names: tuple[str, ...] = ()
    count: ClassVar[None] = None
    """Nobody counts them beforehand."""
    crop: ClassVar[None] = None
    """The configuration refuses padding of a stream."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the shards' names, without the folder that all lie in: they may move, to a server too."""
        return hashlib.sha256("\n".join(_below(self.shards)).encode()).hexdigest()

    def epoch(self, position: Position) -> float:
        """Passes over the shards until there, in whole shards."""
        return position.shard / len(self.shards)

    def check(self, processes: int) -> None:
        """Read one sample, so that what is wrong with all of them is said at once.

        Raises DataError: it cannot be read, has no label, or there are fewer shards than processes.
        """
        if len(self.shards) < processes:
            raise DataError(
                f"data.root: {self.config.root}: has {len(self.shards)} shards for {processes} processes, which read "
                f"one each. Use {len(self.shards)} processes at most, or write more and smaller shards"
            )
        for _ in self.read(0):
            return
        raise self._without_pictures(0, [])

    def batches(self, size: int, *, seed: int, start: Position, processes: int = 1) -> Iterator[Batch]:
        """Batches of `size` for ever, from `start` on.

        Args:
            size: images of this process.
            start: where this process has come to; (r, 0) at first for process r.
            processes: how many read the stream.

        Raises DataError: a shard or a worker fails, or too many pictures are broken.
        """
        images: list[np.ndarray] = []
        taken: list[Taken] = []
        with closing(self._decoded(self._taken(seed, start, processes))) as pictures:
            for one, pixels in pictures:
                images.append(pixels)
                taken.append(one)
                if len(images) == size:
                    labels = [each.sample.label for each in taken]
                    known = None if None in labels else np.array(labels, np.int64)
                    yield Batch(None, np.stack(images), known, one.after)
                    images, taken = [], []

    def first(self, count: int) -> np.ndarray:
        """The same pictures whoever asks, `count` or all: uint8 (N, C, H, W)."""
        epoch = itertools.takewhile(
            lambda one: one.after.shard < len(self.shards), self._taken(0, Position(0, 0), processes=1)
        )
        with closing(self._decoded(itertools.islice(epoch, count))) as pictures:
            found = [pixels for _, pixels in pictures]
        if not found:
            raise DataError(f"data.root: {self.config.root}: none of the first {count:,} pictures can be read")
        return np.stack(found)

    def _taken(self, seed: int, start: Position, processes: int) -> Iterator[Taken]:
        """A process's pictures in the order of training, without end."""
        skip = start.pictures
        for turn in itertools.count(start.shard, processes):
            epoch, place = divmod(turn, len(self.shards))
            shard = int(permutation(len(self.shards), seed, epoch)[place])
            done = 0
            for number, block in enumerate(_blocks(self.read(shard))):
                if not number and not any(sample.content for sample in block):
                    raise self._without_pictures(shard, block)
                if done + len(block) <= skip:
                    done += len(block)
                    continue
                for i in _block_order(len(block), seed, turn, number):
                    done += 1
                    if done > skip:
                        yield Taken(block[i], self.shards[shard], Position(turn, done))
            if not done:
                raise self._without_pictures(shard, [])
            if done < skip:
                raise DataError(
                    f"{self.shards[shard]}: has {done:,} pictures, but had {skip:,} or more when this run was saved: "
                    "it is another file. Put the old one back, or start another run with --fresh or --out"
                )
            skip = 0

    def _decoded(self, taken: Iterator[Taken]) -> Generator[tuple[Taken, np.ndarray], None, None]:
        """The sound ones of pictures, read ahead and decoded in workers, in the same order."""
        broken: list[tuple[str, str]] = []
        chunks = ahead(_chunks(taken, CHUNK), BLOCK // CHUNK)
        count = self.config.workers or usual_workers()
        with closing(chunks), closing(decoded(chunks, self.config, count)) as pictures:
            for seen, (one, found) in enumerate(pictures, 1):
                if not isinstance(found, str):
                    yield one, found
                    continue
                broken.append((one.name, found))
                if len(broken) <= 10:
                    say(f"warning    {one.name}: {found}; left out")
                if len(broken) > self.config.max_broken * max(seen, FEW):
                    check_broken(broken, seen, self.config.max_broken)

    def _without_pictures(self, shard: int, block: Sequence[Sample]) -> DataError:
        what = f"its first {len(block):,} samples have none: {block[0].problem}" if block else "it is empty"
        return DataError(
            f"{self.shards[shard]}: a shard without pictures: {what}. Remove it from data.root, or correct "
            "data.image_column"
        )


def _below(names: Sequence[str]) -> list[str]:
    """Names without the folders that all of them begin with."""
    parts = [re.split(r"[/\\]", name) for name in names]
    depth = len(os.path.commonprefix([path[:-1] for path in parts]))  # noqa: RUF071 (of lists, so by whole names)
    return ["/".join(path[depth:]) for path in parts]


def _blocks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Runs of `BLOCK` samples, or of fewer that have `BLOCK_BYTES` together: a function of the shard alone."""
    block: list[Sample] = []
    held = 0
    for sample in samples:
        block.append(sample)
        held += len(sample.content)
        if len(block) == BLOCK or held >= BLOCK_BYTES:
            yield block
            block, held = [], 0
    if block:
        yield block


def _block_order(count: int, seed: int, turn: int, number: int) -> np.ndarray:
    from ddpm.noise import Purpose, rng

    return rng(seed, Purpose.BLOCK, turn, number).permutation(count)


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    return iter(lambda: list(itertools.islice(items, size)), [])


def whole_label(value: object, classes: int, where: str) -> int:
    """A class by its number, as text or as an integer. Raises DataError for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < classes:
        raise DataError(
            f"{where}: found the label {value!r}, expected a whole number from 0 to {classes - 1} "
            f"(network.classes: {classes})"
        )
    return value
