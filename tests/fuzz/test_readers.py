"""The readers of images: whatever the bytes, a picture, a reason, or a readable error."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpm.data import cifar, folder, scan
from ddpm.data.decode import open_picture
from ddpm.data.idx import read_idx
from ddpm.data.records import Item
from tests.data.files import cifar_files, idx, noise, save_tar, section
from tests.fuzz.damage import Edit, damaged, edits
from tests.fuzz.guard import assert_readable, cases, one_case

RGB = Image.fromarray(noise(12, 9, 3))


def encoded(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


PICTURES = {
    "png": encoded(RGB, format="PNG"),
    "png, 16 bits": encoded(Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600), format="PNG"),
    "png, palette": encoded(RGB.convert("P"), format="PNG", transparency=3),
    "jpeg": encoded(RGB, format="JPEG"),
    "jpeg, CMYK": encoded(RGB.convert("CMYK"), format="JPEG"),
    "gif": encoded(RGB.convert("P"), format="GIF", save_all=True, append_images=[RGB.convert("P")]),
    "bmp": encoded(RGB, format="BMP"),
    "tiff": encoded(RGB, format="TIFF", compression="tiff_lzw"),
    "tiff, float": encoded(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), format="TIFF"),
    "webp": encoded(RGB, format="WEBP"),
    "ppm": encoded(RGB, format="PPM"),
    "jpeg 2000": encoded(RGB, format="JPEG2000"),
}
CONFIG = section("folder", root="x", image_size=(8, 16), channels=3)


def decode(name: str, content: bytes, config: Any) -> None:
    frame = scan.frame_of(Item(name, lambda: open_picture(io.BytesIO(content)), None), config)
    if isinstance(frame, Exception):
        reason = scan.reason(frame)
        assert 0 < len(reason) <= 200
        assert "\n" not in reason
    else:
        assert len(frame.pixels) == 8 * 16 * config.channels


@cases(0.2)
@given(
    kind=st.sampled_from(sorted(PICTURES)),
    changes=edits,
    channels=st.sampled_from((1, 3)),
    resize=st.sampled_from(("crop", "stretch", "pad")),
)
def test_pictures(kind: str, changes: list[Edit], channels: int, resize: str) -> None:
    config = CONFIG.model_copy(update={"channels": channels, "resize": resize})
    with one_case("pictures"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decode(kind, damaged(PICTURES[kind], changes), config)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


sizes = st.sampled_from((0, 1, 2, 5, 255, 2**16, 2**31, 2**32 - 1)) | st.integers(0, 2**32 - 1)


@cases(0.1)
@given(
    dimensions=st.sampled_from((1, 3)),
    magic=st.sampled_from((b"\0\0\x08", b"\0\0\x08", b"\0\0\x09", b"PK\x03")),
    axes=st.lists(sizes, max_size=4),
    data=st.binary(max_size=60),
    packed=st.booleans(),
    changes=st.just([]) | edits,
)
def test_idx(
    place: Path, dimensions: int, magic: bytes, axes: list[int], data: bytes, packed: bool, changes: list[Edit]
) -> None:
    content = magic + bytes([len(axes)]) + struct.pack(f">{len(axes)}I", *axes) + data
    content = damaged(gzip.compress(content) if packed else content, changes)
    (place / "x").write_bytes(content)
    with one_case("IDX"):
        assert read_idx(place / "x", dimensions).dtype == np.uint8


@cases(0.05)
@given(changes=edits, packed=st.booleans())
def test_damaged_idx(place: Path, changes: list[Edit], packed: bool) -> None:
    content = idx(noise(3, 4, 5))
    (place / "x").write_bytes(damaged(gzip.compress(content) if packed else content, changes))
    with one_case("IDX"):
        assert read_idx(place / "x", 3).ndim == 3


FILES, _, _ = cifar_files(1)
OPCODES = [b"\x80\x02", b"}", b"]", b"(", b")", b"u.", b"e", b"R", b"b", b"t", b"0", b"2", b"q\x00", b"h\x00", b"K\x05"]
OPCODES += [
    b"cos\nsystem\n",
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"U\x04data",
    b"\x8a\x08" + b"\xff" * 8,
    b".",
    b"N",
]
OPCODES += [
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"\x8e" + b"\xff" * 8,
    b"B\xff\xff\xff\x7f",
    b"\x95" + b"\xff" * 8,
    b"Ucat",
]
OPCODES += [b"c_codecs\nencode\n", b"\x93", b"\x81", b"o", b"i__builtin__\neval\n", b"P1\n", b"Q", b"r\xff\xff\xff\x7f"]


@cases(0.1)
@given(
    content=st.tuples(st.just(FILES["data_batch_1"]), edits).map(lambda pair: damaged(*pair))
    | st.lists(st.sampled_from(OPCODES), max_size=20).map(b"".join)
)
def test_cifar_batches(content: bytes) -> None:
    with one_case("CIFAR"):
        cifar._contents({"data_batch_1": content, "batches.meta": FILES["batches.meta"]}, Path("here"))


@pytest.fixture(scope="module")
def archive(place: Path) -> bytes:
    save_tar(place / "x.tar.gz", {f"cifar-10-batches-py/{name}": content for name, content in FILES.items()})
    return (place / "x.tar.gz").read_bytes()


@cases(0.05)
@given(changes=edits, inside=st.booleans())
def test_cifar_archives(place: Path, archive: bytes, changes: list[Edit], inside: bool) -> None:
    content = gzip.compress(damaged(gzip.decompress(archive), changes), 1) if inside else damaged(archive, changes)
    (place / "x.tar.gz").write_bytes(content)
    with one_case("CIFAR"):
        cifar._read_archive(place / "x.tar.gz", ["data_batch_1", "batches.meta"])


def _zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/1.png", "b/2.png", "notes.txt"):
            archive.writestr(name, PICTURES["png"])
    return file.getvalue()


ZIPPED = _zipped()


@cases(0.05)
@given(changes=edits)
def test_zip_files(place: Path, changes: list[Edit]) -> None:
    (place / "x.zip").write_bytes(damaged(ZIPPED, changes))
    with one_case("zip files"):
        contents = folder.folder_source(str(place / "x.zip")).read()
        for item in contents.items:
            frame = scan.frame_of(item, CONFIG)
            if isinstance(frame, Exception):
                assert_readable(f"the reason: {scan.reason(frame)}")
