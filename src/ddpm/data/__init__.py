"""Images: from where they lie to packed uint8 arrays and batches."""

from __future__ import annotations

import hashlib
from typing import get_args

import numpy as np

from ddpm.config import DataSection
from ddpm.data.order import batch_indices as batch_indices
from ddpm.data.order import batches as batches
from ddpm.data.pack import pack
from ddpm.data.prefetch import ahead as ahead
from ddpm.data.records import Batch as Batch
from ddpm.data.records import ImageSet as ImageSet
from ddpm.data.records import Position as Position
from ddpm.data.records import ScanReport as ScanReport
from ddpm.data.records import Source
from ddpm.data.records import Split as Split
from ddpm.data.stream import ImageStream as ImageStream
from ddpm.errors import DataError


def load(config: DataSection, split: Split = "train", *, progress: bool = True) -> ImageSet:
    """The images of a split.

    Args:
        split: `train` is what training sees; `held_out` the share `data.held_out` of the training images that it
            does not see, the same for every seed; `test` the source's own test images.
        progress: show bars while downloading and decoding, and the scan report after decoding (on stderr).

    Raises:
        DataError: no such files, too many broken ones, or no such split; says what to do.
    """
    if split not in get_args(Split):
        raise ValueError(f"split: found {split!r}, expected one of {', '.join(get_args(Split))}")
    if split == "held_out" and not config.held_out:
        raise DataError("data.held_out: is 0, so that no images are held out; set it, for example to 0.05")
    packed = pack(_source(config, split, progress=progress), config, progress=progress)
    facts, index = packed.facts, None
    if split != "test" and config.held_out:
        index = _split_index(len(packed.images), config.held_out, held_out=split == "held_out")
    labels = facts.labels if facts.labels is None or index is None else facts.labels[index]
    return ImageSet(
        packed.images, index, labels, facts.class_names, facts.crop, _fingerprint(facts.sha256, index), facts.report
    )


def open_stream(config: DataSection, classes: int | None, *, processes: int = 1) -> ImageStream:
    """The training images of a source that is streamed; one sample is read, to see that it can be.

    Args:
        classes: how many the network is told; None: labels are not read.
        processes: how many will read it.

    Raises:
        DataError: no such files, no pictures or labels in them, fewer shards than processes; says what to do.
        ConfigError: the data have another number of classes.
    """
    if config.source == "webdataset":
        from ddpm.data.webdataset import webdataset_stream

        stream = webdataset_stream(config, classes)
    else:
        from ddpm.data.huggingface import huggingface_stream

        stream = huggingface_stream(config, classes)
    stream.check(processes)
    return stream


def _source(config: DataSection, split: Split, *, progress: bool) -> Source:
    """The pictures of a split (`train` and `held_out` share them), found or downloaded but not read."""
    name, test = config.source, split == "test"
    if test and name in ("digits", "folder"):
        raise DataError(
            f"data.source: {name} has no test images of its own; use the held-out ones (data.held_out, split held_out)"
        )
    if config.streamed and (name == "webdataset" or not test):
        raise DataError(
            f"data.source: {name} is a stream, whose images are read in training alone and never all kept; there is "
            f"no set {split!r} to be read whole"
        )
    match name:
        case "digits":
            from ddpm.data.digits import digits_source

            return digits_source()
        case "mnist" | "fashion_mnist" | "kmnist":
            from ddpm.data.idx import idx_source

            return idx_source(name, config.root, "t10k" if test else "train", progress=progress)
        case "cifar10":
            from ddpm.data.cifar import cifar_source

            return cifar_source(config.root, "test" if test else "train", progress=progress)
        case "folder":
            from ddpm.data.folder import folder_source

            return folder_source(config.root)
        case "huggingface":
            from ddpm.data.huggingface import huggingface_source

            return huggingface_source(config, "test" if test else "train")
        case "webdataset":
            raise AssertionError("is a stream")


def _split_index(count: int, share: float, *, held_out: bool) -> np.ndarray:
    """Which images are held out, or kept: ascending, the same for every training seed; at least one of each."""
    from ddpm.noise import Purpose, rng

    held = max(1, round(count * share))
    if held >= count:
        raise DataError(f"data.held_out: {share:g} of {count:,} images leaves none to train on; lower it")
    order = rng(0, Purpose.SPLIT).permutation(count)
    return np.sort(order[:held] if held_out else order[held:])


def _fingerprint(sha256: str, index: np.ndarray | None) -> str:
    """Of a part of the packed images: from the hash of all and the indices, since reading all again takes long."""
    return sha256 if index is None else hashlib.sha256(sha256.encode() + index.astype("<i8").tobytes()).hexdigest()
