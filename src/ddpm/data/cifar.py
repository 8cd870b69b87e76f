"""CIFAR-10 as its authors publish it: pickled batches, read without running what they may hold."""

from __future__ import annotations

import io
import pickle
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.data.arrays import array_contents
from ddpm.data.cache import cache_folder
from ddpm.data.download import fetch
from ddpm.data.find import by_hand, find_together, missing, search_folders, stat_entry
from ddpm.data.records import Contents, Source
from ddpm.errors import DataError

_ARCHIVE, _FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
_URLS = (f"https://www.cs.toronto.edu/~kriz/{_ARCHIVE}",)
_MD5 = "c58f30108f718f92721af3b95e74349a"
_NAMES = "batches.meta"
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_MAX_BYTES = 2**28
"""A batch has 31 million bytes; more than this in an archive is a bomb."""


def cifar_source(root: str | None, part: str, *, progress: bool) -> Source:
    """The images and labels of one part, "train" (50,000) or "test" (10,000).

    Raises DataError when they are neither on disk nor to be downloaded.
    """
    files = [*_BATCHES[part], _NAMES]
    folders = search_folders(root, ("cifar10", "CIFAR10", "cifar-10"))
    name = f"cifar10 {part}"
    extracted = find_together([[file] for file in files], [sub for f in folders for sub in (f / _FOLDER, f)])
    if extracted:
        return Source(name, [stat_entry(path) for path in extracted], partial(_read_folder, extracted))
    archives = find_together([[_ARCHIVE]], folders)
    if archives is None:
        wanted = [[_ARCHIVE, f"{_FOLDER}/{files[0]}"]]
        if root:
            raise missing(root, wanted, folders)
        target, otherwise = cache_folder() / "downloads" / "cifar10" / _ARCHIVE, by_hand(wanted, folders)
        archives = [fetch(_URLS, target, file_md5=_MD5, by_hand=otherwise, progress=progress)]
    return Source(name, [stat_entry(archives[0])], partial(_read_archive, archives[0], files))


def _read_folder(paths: list[Path]) -> Contents:
    try:
        pickles = {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return _contents(pickles, paths[0].parent)


def _read_archive(path: Path, files: list[str]) -> Contents:
    # Read in place and in the archive's order: nothing is written to the disk, nothing unpacked twice.
    pickles, size = {}, 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                size += member.size
                if size > 4 * _MAX_BYTES:
                    raise ValueError(f"it unpacks to more than {4 * _MAX_BYTES:,} bytes")
                folder, _, file = member.name.removeprefix("./").partition("/")
                if folder == _FOLDER and file in files and member.isfile():
                    if member.size > _MAX_BYTES:
                        raise ValueError(f"{member.name} has {member.size:,} bytes, too many for a batch")
                    stream = archive.extractfile(member)
                    pickles[file] = stream.read() if stream else b""
    except Exception as error:  # a damaged archive can raise anything
        raise DataError(f"{path}: cannot be read: {error}. Replace it with a whole copy") from error
    absent = [file for file in files if file not in pickles]
    if absent:
        raise DataError(f"{path}: has no {', '.join(f'{_FOLDER}/{file}' for file in absent)}. Replace it")
    return _contents({file: pickles[file] for file in files}, path)


def _contents(pickles: dict[str, bytes], where: Path) -> Contents:
    """The batches' images and labels, in order; the last pickle has the class names."""
    images, labels = [], []
    for file, content in pickles.items():
        if file == _NAMES:
            continue
        batch = _load(content, where, file)
        pixels, numbers = batch.get("data"), batch.get("labels")
        if not isinstance(pixels, _Array) or pixels.value.ndim != 2 or pixels.value.shape[1] != 3072:
            raise DataError(f"{where}: {file} has no 'data' of shape (N, 3072). Replace it with a whole copy")
        if not isinstance(numbers, list) or not all(isinstance(n, int) for n in numbers):
            raise DataError(f"{where}: {file} has no list of numbers 'labels'. Replace it with a whole copy")
        if len(numbers) != len(pixels.value):
            raise DataError(f"{where}: {file} has {len(pixels.value):,} images but {len(numbers):,} labels")
        images.append(pixels.value.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += numbers
    names = _load(pickles[_NAMES], where, _NAMES).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"{where}: {_NAMES} has no list of names 'label_names'. Replace it with a whole copy")
    class_names = tuple(name if isinstance(name, str) else name.decode("latin1") for name in names)
    return array_contents(np.concatenate(images), np.array(labels), class_names, where=str(where))


def _load(content: bytes, where: Path, file: str) -> dict[str, Any]:
    """A pickled dictionary, its keys as text."""
    try:
        value = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, expected a dictionary")
        return {key.decode("latin1") if isinstance(key, bytes) else key: part for key, part in value.items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{where}: {file} cannot be read: {error}. Replace it with a whole copy") from error


class _Type:
    """Stands in for numpy.dtype in a pickle."""

    def __init__(self, code: str | bytes, *_: object):
        self.code = code

    def __setstate__(self, state: object) -> None: ...


class _Array:
    """Stands in for numpy.ndarray in a pickle: takes the raw bytes, so that numpy unpickles nothing itself."""

    value: np.ndarray = np.empty(0, np.uint8)

    def __init__(self, *_: object): ...

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        _, shape, kind, columns_first, raw = state
        if kind.code not in ("u1", b"u1", "|u1", b"|u1"):
            raise ValueError(f"an array of {kind.code!r}, expected unsigned bytes (u1)")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if columns_first else "C")


def _latin1(text: str, encoding: str | bytes) -> bytes:
    """How Python 3 writes bytes into a pickle for Python 2."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"text in {encoding!r}, expected latin1")
    return text.encode("latin1")


_ADMITTED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    """Builds bytes, text, numbers, containers and arrays of bytes; nothing that a pickle names is imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of images") from None
