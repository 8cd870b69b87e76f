"""The MNIST family: IDX files, compressed or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from ddpm.data.download import cache_folder, fetch
from ddpm.data.find import find_file, search_folders, stat_entry
from ddpm.data.records import Item, Source
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
    "mnist": ("MNIST/raw", "mnist"),
    "fashion_mnist": ("FashionMNIST/raw", "fashion_mnist"),
    "kmnist": ("KMNIST/raw", "kmnist"),
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
CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}  # fmt: skip


def idx_source(name: str, root: str | None, part: str, *, progress: bool) -> Source:
    """The images and labels of one part ("train" or "t10k") of a data set of the MNIST family."""
    from PIL import Image

    paths = [_locate(name, root, f"{part}-{kind}", progress) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise DataError(f"{paths[0]} has {len(images):,} images but {paths[1]} {len(labels):,} labels")
    items = [
        Item(f"{part} image {i}", lambda image=image: Image.fromarray(image), int(label))  # type: ignore[misc]
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return Source(items, [stat_entry(path) for path in paths], CLASS_NAMES[name])


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """A file of unsigned bytes in IDX format, gzipped or not: uint8 with `dimensions` axes.

    Raises DataError naming the file: truncated, not IDX, of another type or shape.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); replace it with a whole copy") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(
            f"{path}: is not an IDX file of unsigned bytes with {dimensions} dimension(s): "
            f"it begins with {content[:4].hex()}, expected {bytes([0, 0, 8, dimensions]).hex()}"
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, 4))
    expected = header + int(np.prod([int(n) for n in shape], dtype=object))
    if len(content) != expected:
        raise DataError(f"{path}: has {len(content):,} bytes, but its header says {expected:,}; it is not whole")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _locate(name: str, root: str | None, file: str, progress: bool) -> Path:
    """The file on disk: under the root, or downloaded."""
    names = [form + end for form in (file, file.replace("-idx", ".idx")) for end in ("", ".gz")]
    found = find_file(names, search_folders(root, _SUBFOLDERS[name]), source=name, root=root)
    if found:
        return found
    md5 = _MD5[name][file]
    kind = {"content_md5": md5} if name == "mnist" else {"file_md5": md5}
    urls = [mirror + file + ".gz" for mirror in _MIRRORS[name]]
    return fetch(urls, cache_folder() / "downloads" / name / f"{file}.gz", progress=progress, **kind)
