"""Small data sets written for the tests."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm.config import DataSection
from ddpm.data import ImageSet, Split, load

RNG = np.random.default_rng(0)


def section(source: str, **settings: object) -> DataSection:
    values: dict[str, object] = {"source": source, "image_size": 8, "channels": 1}
    return DataSection.model_validate(values | {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()})


def quiet(config: DataSection, split: Split = "train") -> ImageSet:
    return load(config, split, progress=False)


def noise(*shape: int) -> np.ndarray:
    """Random levels, uint8."""
    return RNG.integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: np.ndarray | None = None, **options: object) -> np.ndarray:
    """Write an image file (default: 8x8 noise, grey); returns its pixels."""
    pixels = noise(8, 8) if pixels is None else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def save_idx(folder: Path, part: str = "train", *, count: int = 5, end: str = ".gz") -> tuple[np.ndarray, np.ndarray]:
    """A pair of IDX files with `count` images of 6x6 and labels."""
    images, labels = noise(count, 6, 6), RNG.integers(0, 10, count, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx(array)
        (folder / f"{part}-{name}-ubyte{end}").write_bytes(gzip.compress(content) if end == ".gz" else content)
    return images, labels


def _text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A CIFAR batch, opcode by opcode as Python 2 and its numpy pickled the published ones."""
    rows, columns = pixels.shape
    raw = pixels.tobytes()
    kind = b"cnumpy\ndtype\n" + _text(b"u1") + b"K\x00K\x01\x87R(K\x03" + _text(b"|") + b"NNN"
    kind += _number(-1) + _number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _text(b"b") + b"\x87R"
    array += b"(K\x01" + _number(rows) + _number(columns) + b"\x86" + kind
    array += b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(_number(n) for n in labels) + b"e"
    return b"\x80\x02}(" + _text(b"labels") + numbers + _text(b"data") + array + b"u."


def python2_meta(names: list[bytes]) -> bytes:
    return b"\x80\x02}(" + _text(b"label_names") + b"](" + b"".join(map(_text, names)) + b"eu."


CIFAR_CLASSES = [f"class {i}".encode() for i in range(10)]


def cifar_files(count: int = 3) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    """The files of a CIFAR folder with `count` images a batch, the images (N, 3072) and labels of 1..5, then test."""
    images, labels = noise(6 * count, 3072), [int(n) for n in RNG.integers(0, 10, 6 * count)]
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {
        name: python2_batch(images[i * count : (i + 1) * count], labels[i * count : (i + 1) * count])
        for i, name in enumerate(names)
    }
    return files | {"batches.meta": python2_meta(CIFAR_CLASSES)}, images, labels


def save_tar(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def shard(path: Path, samples: Iterable[Mapping[str, bytes]], *, first: int = 0) -> Path:
    """Write a tar file whose samples are numbered from `first` and have these files, by their endings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, files in enumerate(samples, first):
            for ending, content in files.items():
                member = tarfile.TarInfo(f"{number:04}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def level_png(level: int) -> bytes:
    """A grey picture of one level."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def level_shards(folder: Path, sizes: Sequence[int]) -> Path:
    """Shards of these sizes, whose pictures have the levels 0, 1, 2, ... and the classes 0, 1, 2, 0, 1, 2, ..."""
    levels = iter(range(sum(sizes)))
    for number, size in enumerate(sizes):
        samples = [{"png": level_png(level), "cls": b"%d" % (level % 3)} for level in islice(levels, size)]
        shard(folder / f"{number:03}.tar", samples, first=1000 * number)
    return folder
