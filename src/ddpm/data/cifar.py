"""CIFAR-10 as its authors publish it: pickled batches, read without running what they may hold."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.data.download import cache_folder, fetch
from ddpm.data.find import find_file, search_folders, stat_entry
from ddpm.data.records import Item, Source
from ddpm.errors import DataError

_ARCHIVE, _FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
_URL = f"https://www.cs.toronto.edu/~kriz/{_ARCHIVE}"
_MD5 = "c58f30108f718f92721af3b95e74349a"
_PARTS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


# What reading a damaged or foreign pickle or archive may raise.
_BROKEN = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    pickle.UnpicklingError,
    tarfile.TarError,
)


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays, text, numbers and containers; anything else is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of images")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def cifar_source(root: str | None, part: str, *, progress: bool) -> Source:
    """The images and labels of one part, "train" (50,000) or "test" (10,000)."""
    from PIL import Image

    folders = search_folders(root, ("cifar10", "cifar-10", _FOLDER))
    names = [f"{_FOLDER}/{_PARTS[part][0]}", _PARTS[part][0], _ARCHIVE]
    found = find_file(names, folders, source="cifar10", root=root)
    if found is None:
        found = fetch([_URL], cache_folder() / "downloads" / "cifar10" / _ARCHIVE, file_md5=_MD5, progress=progress)
    read, manifest = _reader(found, part)
    meta = read("batches.meta")
    class_names = tuple(name.decode() for name in meta[b"label_names"])
    items = []
    for name in _PARTS[part]:
        batch = read(name)
        images = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        if len(images) != len(batch[b"labels"]):
            raise DataError(f"{found}: {name} has {len(images):,} images but {len(batch[b'labels']):,} labels")
        items += [
            Item(f"{name} image {i}", lambda image=image: Image.fromarray(np.ascontiguousarray(image)), int(label))  # type: ignore[misc]
            for i, (image, label) in enumerate(zip(images, batch[b"labels"], strict=True))
        ]
    return Source(items, manifest, class_names)


def _reader(found: Path, part: str) -> tuple[Callable[[str], dict[bytes, Any]], list[tuple[str, int, int]]]:
    """A function that reads a batch by name, from the archive or the folder, and the files' manifest."""
    if found.name == _ARCHIVE:

        def content(name: str) -> bytes:
            # Read in place: no member is ever written to the disk.
            with tarfile.open(found) as archive:
                member = archive.extractfile(f"{_FOLDER}/{name}")
                if member is None:
                    raise KeyError(name)
                return member.read()

        manifest = [stat_entry(found)]
    else:

        def content(name: str) -> bytes:
            return (found.parent / name).read_bytes()

        present = [found.parent / name for name in _PARTS[part] if (found.parent / name).is_file()]
        manifest = [stat_entry(path) for path in present]

    def read(name: str) -> dict[bytes, Any]:
        try:
            batch = _ArraysOnly(io.BytesIO(content(name)), encoding="bytes").load()
            if not isinstance(batch, dict):
                raise ValueError("it holds no dictionary")
            return batch
        except _BROKEN as error:
            raise DataError(f"{found}: cannot read {name}: {error}; replace it with a whole copy") from error

    return read, manifest
