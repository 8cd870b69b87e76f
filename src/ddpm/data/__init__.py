"""Images: from where they lie to packed uint8 arrays and batches."""

from __future__ import annotations

import hashlib

import numpy as np

from ddpm.config import DataSection
from ddpm.data.batches import Batch as Batch
from ddpm.data.batches import batch_indices as batch_indices
from ddpm.data.batches import batches as batches
from ddpm.data.download import cache_folder
from ddpm.data.pack import pack
from ddpm.data.records import ImageSet as ImageSet
from ddpm.data.records import ScanReport as ScanReport
from ddpm.data.records import Source
from ddpm.data.records import Split as Split
from ddpm.errors import DataError
from ddpm.noise import Purpose, rng


def load(config: DataSection, split: Split = "train", *, progress: bool = True) -> ImageSet:
    """The images of a split.

    Args:
        split: `train` is what training sees; `held_out` the share `data.held_out` of the training images that it
            does not see, the same for every seed; `test` the source's own test images.
        progress: show bars while downloading and decoding, and the scan report after decoding.

    Raises:
        DataError: no such files, too many broken ones, or no such split; says what to do.
    """
    if split == "held_out" and not config.held_out:
        raise DataError("data.held_out: is 0, so that no images are held out; set it, for example to 0.05")
    source = _source(config, split, progress=progress)
    packed, made = pack(source, config, cache_folder() / "packed", progress=progress)
    if made and progress:
        from tqdm import tqdm

        tqdm.write(str(packed.report))
    index = None if split == "test" else _split_index(len(packed.images), config.held_out, split)
    labels = packed.labels if packed.labels is None or index is None else packed.labels[index]
    identity = packed.sha256 + ("" if index is None else hashlib.sha256(index.tobytes()).hexdigest())
    return ImageSet(
        packed.images,
        index,
        labels,
        source.class_names,
        packed.crop,
        hashlib.sha256(identity.encode()).hexdigest(),
        packed.report,
    )


def _source(config: DataSection, split: Split, *, progress: bool) -> Source:
    """The pictures of a split (`train` and `held_out` share them), found or downloaded but not decoded."""
    name, part = config.source, "test" if split == "test" else "train"
    if part == "test" and name in ("digits", "folder"):
        raise DataError(f"data.source: {name} has no test images of its own; use data.held_out")
    match name:
        case "digits":
            from ddpm.data.digits import digits_source

            return digits_source()
        case "mnist" | "fashion_mnist" | "kmnist":
            from ddpm.data.idx import idx_source

            return idx_source(name, config.root, "t10k" if part == "test" else "train", progress=progress)
        case "cifar10":
            from ddpm.data.cifar import cifar_source

            return cifar_source(config.root, part, progress=progress)
        case "folder":
            from ddpm.data.folder import folder_source

            return folder_source(config.root)


def _split_index(count: int, share: float, split: Split) -> np.ndarray | None:
    """Which images are held out, or kept: the same for every training seed."""
    if not share:
        return None
    held = max(1, round(count * share))
    if held >= count:
        raise DataError(f"data.held_out: {share} of {count} images leaves none to train on")
    order = rng(0, Purpose.SPLIT).permutation(count)
    return np.sort(order[:held] if split == "held_out" else order[held:])
