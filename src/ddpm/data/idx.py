"""The MNIST family: IDX files, compressed or not."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddpm.data.arrays import array_contents
from ddpm.data.cache import cache_folder
from ddpm.data.download import fetch
from ddpm.data.find import by_hand, find_together, missing, search_folders, stat_entry
from ddpm.data.records import Contents, Source
from ddpm.errors import DataError

_MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion_mnist": ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    "kmnist": ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
}
_SUBFOLDERS = {
    "mnist": ("mnist", "MNIST/raw", "MNIST"),
    "fashion_mnist": ("fashion_mnist", "FashionMNIST/raw", "FashionMNIST", "fashion-mnist"),
    "kmnist": ("kmnist", "KMNIST/raw", "KMNIST"),
}
# MD5 of the content for MNIST, whose mirrors compress it differently; of the .gz file for the others.
_MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    "kmnist": {
        "train-images-idx3-ubyte": "bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte": "5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte": "7320c461ea6c1c855c0b718fb2a4b134",
    },
}
_CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}  # fmt: skip


_MAX_BYTES = 2**29
"""The largest file has 47 million bytes; one that unpacks to more than this is a bomb."""


def idx_source(name: str, root: str | None, part: str, *, progress: bool) -> Source:
    """The images and labels of one part ("train" or "t10k") of a data set of the MNIST family.

    Raises DataError when the files are neither on disk nor to be downloaded.
    """
    files = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
    spellings = [[form + end for form in (f, f.replace("-idx", ".idx")) for end in ("", ".gz")] for f in files]
    folders = search_folders(root, _SUBFOLDERS[name])
    paths = find_together(spellings, folders)
    if paths is None:
        if root:
            raise missing(root, spellings, folders)
        paths = [_download(name, file, by_hand(spellings, folders), progress) for file in files]
    return Source(f"{name} {part}", [stat_entry(path) for path in paths], partial(_read, name, files, paths))


def _read(name: str, files: list[str], paths: list[Path]) -> Contents:
    for file, path in zip(files, paths, strict=True):
        _refuse_another(name, file, path)
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise DataError(
            f"{paths[0]} has {len(images):,} images but {paths[1]} {len(labels):,} labels; they are not of one data set"
        )
    return array_contents(images, labels, _CLASS_NAMES[name], where=str(paths[1]))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """A file of unsigned bytes in IDX format, gzipped or not: uint8 with `dimensions` axes.

    Raises DataError naming the file: truncated, not IDX, of another type or shape.
    """
    content = _content(path)  # uncompressed, a map of the file: no copy in memory
    header, magic = 4 + 4 * dimensions, bytes([0, 0, 8, dimensions])
    beginning = content[:4].tobytes()
    if len(content) < header or beginning != magic:
        raise DataError(
            f"{path}: is not an IDX file of unsigned bytes with {dimensions} dimension(s): it begins with the bytes "
            f"{beginning.hex() or '(none)'}, expected {magic.hex()}{_REPLACE}"
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, 4))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path}: is not whole: it has {len(content):,} bytes unpacked, but its header "
            f"({' x '.join(map(str, shape))}) says {expected:,}{_REPLACE}"
        )
    return content[header:].reshape(shape)


_REPLACE = ". Replace it with a whole copy, or delete it if it was downloaded by ddpm"


def _content(path: Path) -> np.ndarray:
    """All bytes of a file, unpacked, uint8 (n,), read-only."""
    with _read_errors(path), path.open("rb") as file:
        if _is_packed(file):
            with gzip.open(file) as stream:
                content = stream.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
            return np.frombuffer(content, np.uint8)
        empty = file.seek(0, os.SEEK_END) == 0
        return np.empty(0, np.uint8) if empty else np.memmap(file, np.uint8, "r")


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}{_REPLACE}") from error


def _is_packed(file: BinaryIO) -> bool:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return packed


def _refuse_another(name: str, file: str, path: Path) -> None:
    """The family shares its file names, so a folder of one is easily taken for another: known checksums tell."""
    known = {md5: (n, f) for n, table in _MD5.items() for f, md5 in table.items()}
    for md5 in _checksums(path):
        found = known.get(md5, (name, file))
        if found != (name, file):
            raise DataError(
                f"{path}: is {found[1]} of {found[0]}, not {file} of {name}. "
                f"Put the files of {name} into a folder of their own, such as {path.parent / name}"
            )


def _checksums(path: Path) -> Iterator[str]:
    """MD5 of a file and, if it is packed, of what is in it, a piece at a time."""
    md5 = partial(hashlib.md5, usedforsecurity=False)
    with _read_errors(path), path.open("rb") as file:
        packed = _is_packed(file)
        yield hashlib.file_digest(file, md5).hexdigest()
        if packed:
            with gzip.open(path) as unpacked:
                yield hashlib.file_digest(unpacked, md5).hexdigest()


def _download(name: str, file: str, otherwise: str, progress: bool) -> Path:
    md5, target = _MD5[name][file], cache_folder() / "downloads" / name / f"{file}.gz"
    return fetch(
        [f"{mirror}{file}.gz" for mirror in _MIRRORS[name]],
        target,
        file_md5=None if name == "mnist" else md5,
        content_md5=md5 if name == "mnist" else None,
        by_hand=otherwise,
        progress=progress,
    )
