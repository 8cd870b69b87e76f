"""Sources: real files, malformed files, files that are not there, and a zoo of pictures."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm import data
from ddpm.config import DataSection
from ddpm.data.cifar import _ArraysOnly
from ddpm.data.download import fetch
from ddpm.data.idx import read_idx
from ddpm.errors import DataError


def section(**values: Any) -> DataSection:
    return DataSection(**{"source": "folder", "image_size": 8, "channels": 3, **values})


def load(split: str = "train", **values: Any) -> data.ImageSet:
    return data.load(section(**values), split, progress=False)  # type: ignore[arg-type]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def everything(images: data.ImageSet) -> np.ndarray:
    return images.take(np.arange(len(images)))


# The MNIST family


def test_digits_are_the_scans() -> None:
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = load(source="digits", channels=1)
    assert len(images) == 1797
    assert np.array_equal(everything(images)[:, 0], np.round(scans.images * 255 / 16))
    assert images.labels is not None
    assert np.array_equal(images.labels, scans.target)
    assert images.class_names == tuple("0123456789")


def test_real_mnist(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_DATA_ROOT", str(shared_data))
    test = load("test", source="mnist", image_size=32, channels=1, resize="pad")
    assert len(test) == 10_000
    assert test.crop == (2, 2, 28, 28)
    raw = gzip.decompress((shared_data / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    expected = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    images = everything(test)
    assert np.array_equal(images[:, 0, 2:30, 2:30], expected)
    assert images[:, :, :2].max() == 0
    assert test.labels is not None
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture
def mnist_like(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 50), ("t10k", 10)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (count, 28, 28), np.uint8)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(rng.integers(0, 10, count, np.uint8)))
    return tmp_path


@pytest.mark.parametrize("place", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("form", ["{}-idx3-ubyte", "{}.idx3-ubyte"])
@pytest.mark.parametrize("compressed", [False, True])
def test_files_are_found_in_any_usual_form(mnist_like: Path, place: str, form: str, compressed: bool) -> None:
    folder = mnist_like / "elsewhere" / place
    folder.mkdir(parents=True, exist_ok=True)
    for path in mnist_like.glob("*ubyte"):
        name = path.name if "{}-idx3" in form else path.name.replace("-idx", ".idx")
        content = path.read_bytes()
        (folder / (name + ".gz" * compressed)).write_bytes(gzip.compress(content) if compressed else content)
    assert len(load(source="mnist", root=str(mnist_like / "elsewhere"), image_size=28, channels=1)) == 50


def test_a_named_root_without_the_files_is_an_error_not_a_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root.*train-images-idx3-ubyte.*Searched.*DDPM_DATA_ROOT"):
        load(source="mnist", root=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-5], "is not whole"),
        (lambda b: b + b"x", "is not whole"),
        (lambda b: b"\x00\x00\x0d\x03" + b[4:], "is not an IDX file"),
        (lambda b: b[:9], "is not an IDX file"),
        (lambda b: b"", "is not an IDX file"),
        (lambda b: gzip.compress(b)[:-20], "cannot be read"),
        (lambda b: b"\x1f\x8bgarbage", "cannot be read"),
        (lambda b: b[:4] + b"\xff" * 12 + b[16:], "is not whole"),
    ],
)
def test_malformed_idx_files_are_named(mnist_like: Path, change: Any, message: str) -> None:
    path = mnist_like / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_images_without_labels_for_each_are_refused(mnist_like: Path) -> None:
    (mnist_like / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(49, np.uint8)))
    with pytest.raises(DataError, match=r"50 images but .* 49 labels"):
        load(source="mnist", root=str(mnist_like))


# CIFAR-10


def cifar(folder: Path, payload: object = None) -> Path:
    inside = folder / "cifar-10-batches-py"
    inside.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {b"data": rng.integers(0, 256, (4, 3072), np.uint8), b"labels": [0, 1, 2, 9]}
        (inside / name).write_bytes(pickle.dumps(payload if payload and name == "data_batch_3" else batch, 2))
    (inside / "batches.meta").write_bytes(pickle.dumps({b"label_names": [f"class {i}".encode() for i in range(10)]}, 2))
    return inside


def test_cifar_folder_and_archive(tmp_path: Path) -> None:
    inside = cifar(tmp_path / "a")
    images = load(source="cifar10", root=str(tmp_path / "a"), image_size=32)
    assert len(images) == 20
    assert images.class_names[9] == "class 9"
    first = pickle.loads((inside / "data_batch_1").read_bytes())[b"data"][0].reshape(3, 32, 32)
    assert np.array_equal(everything(images)[0], first)
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(inside, "cifar-10-batches-py")
    packed = load(source="cifar10", root=str(tmp_path / "b"), image_size=32)
    assert np.array_equal(everything(packed), everything(images))
    assert len(load("test", source="cifar10", root=str(tmp_path / "b"), image_size=32)) == 4


class _Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("import builtins; builtins.pwned = True",)


def test_a_batch_cannot_run_code(tmp_path: Path) -> None:
    import builtins

    cifar(tmp_path, payload={b"data": _Payload()})
    with pytest.raises(DataError, match=r"data_batch_3.*exec is not allowed"):
        load(source="cifar10", root=str(tmp_path), image_size=32)
    assert not hasattr(builtins, "pwned")
    with pytest.raises(pickle.UnpicklingError):
        _ArraysOnly(io.BytesIO(pickle.dumps(Path))).load()


@pytest.mark.parametrize("content", [b"", b"\x80\x02", pickle.dumps([1, 2]), pickle.dumps({b"data": 3}), b"garbage"])
def test_damaged_batches_are_named(tmp_path: Path, content: bytes) -> None:
    (cifar(tmp_path) / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError):
        load(source="cifar10", root=str(tmp_path), image_size=32)


# Folders


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 8), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(levels).convert(mode).save(path, **options)
    return path


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/deep/2.png", "dog/1.jpg", "a b/ü\n.png"):
        picture(tmp_path / name)
    (tmp_path / ".hidden").mkdir()
    picture(tmp_path / ".hidden" / "x.png")
    picture(tmp_path / "__MACOSX" / "y.png")
    (tmp_path / "notes.txt").write_text("hello")
    images = load(root=str(tmp_path))
    assert images.class_names == ("a b", "cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 1, 2]
    assert images.report.ignored == 1
    assert "4 of 4 pictures read, 1 other files" in str(images.report)


def test_a_picture_beside_the_classes_leaves_all_without_labels(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png")
    picture(tmp_path / "2.png")
    images = load(root=str(tmp_path))
    assert images.labels is None
    assert images.class_names == ()


def test_a_zip_file_is_a_folder(tmp_path: Path) -> None:
    picture(tmp_path / "tree" / "cat" / "1.png")
    picture(tmp_path / "tree" / "dog" / "2.png")
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for path in (tmp_path / "tree").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "tree"))
        archive.write(path, "../outside/3.png")  # never written anywhere, only read
    zipped, plain = load(root=str(tmp_path / "tree.zip")), load(root=str(tmp_path / "tree"))
    assert len(zipped) == 3
    assert np.array_equal(everything(zipped)[1:], everything(plain))
    assert not (tmp_path / "outside").exists()


def test_real_cifar_pictures(shared_data: Path) -> None:
    images = load(root=str(shared_data / "cifar10_jpeg_10k.zip"), image_size=32)
    assert len(images) == 10_000
    assert len(images.class_names) == 10
    assert images.labels is not None
    assert np.bincount(images.labels).tolist() == [1000] * 10
    levels = images.take(np.arange(0, 10_000, 10))
    assert np.abs(levels.mean((0, 2, 3)) - [125, 123, 114]).max() < 4  # CIFAR-10's published channel means


def _zoo(folder: Path) -> dict[str, str]:
    """A folder of odd files; returns a part of the reason that each broken one must be given."""
    for mode, name in (
        ("L", "grey.png"),
        ("1", "bit.png"),
        ("P", "palette.png"),
        ("RGBA", "alpha.png"),
        ("LA", "grey alpha.png"),
        ("CMYK", "ink.jpg"),
        ("YCbCr", "ycc.jpg"),
        ("RGB", "spaces and ü.bmp"),
        ("RGB", "UPPER.JPG"),
    ):
        picture(folder / name, mode)
    picture(folder / "one.png", size=(1, 1))
    picture(folder / "long.png", size=(10000, 1))
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(folder / "float.tif")
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    picture(folder / "really a jpeg.png", format="JPEG")
    whole = picture(folder / "cut.png", size=(64, 64)).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "again").symlink_to(folder)
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    (folder / "bomb.png").write_bytes(bomb.getvalue())
    return {"cut": "", "empty": "", "text": "", "loop": "", "dangling": "", "bomb": "12000 x 12000"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_a_zoo_of_files(tmp_path: Path, channels: int, resize: str) -> None:
    broken = _zoo(tmp_path)
    images = load(root=str(tmp_path), channels=channels, resize=resize, max_broken=0.5, image_size=[8, 12])
    assert {name.split(".")[0] for name, _ in images.report.skipped} == set(broken)
    for name, reason in images.report.skipped:
        assert broken[name.split(".")[0]] in reason
        assert reason
    assert len(images) == images.report.kept == 15
    assert everything(images).shape == (15, channels, 8, 12)
    assert images.report.animated == 1


def test_too_many_broken_files_stop_the_load_by_name(tmp_path: Path) -> None:
    _zoo(tmp_path)
    with pytest.raises(DataError, match=r"(?s)more than data\.max_broken: 0\.01.*bomb\.png.*raise data\.max_broken"):
        load(root=str(tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such folder"),
        (lambda p: p.mkdir(), "has no pictures"),
        (lambda p: p.write_text("x"), "neither a folder nor"),
    ],
)
def test_folders_without_pictures(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(DataError, match=message):
        load(root=str(tmp_path / "x"))


def test_no_root_is_said() -> None:
    with pytest.raises(DataError, match=r"data\.root"):
        load()


def test_all_broken(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(DataError, match="no picture"):
        load(root=str(tmp_path), max_broken=0.999)


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_sources_without_test_images_say_so(source: str) -> None:
    with pytest.raises(DataError, match="held_out"):
        load("test", source=source)


# Downloads, from a server on this machine


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


def test_the_second_mirror_is_tried_and_the_content_checked(server: tuple[Path, str], tmp_path: Path) -> None:
    import hashlib

    folder, url = server
    content = b"images" * 1000
    (folder / "good.gz").write_bytes(gzip.compress(content))
    (folder / "bad.gz").write_bytes(gzip.compress(b"something else"))
    md5 = hashlib.md5(content).hexdigest()
    target = tmp_path / "cache" / "x.gz"
    urls = [url + "absent.gz", url + "bad.gz", url + "good.gz"]
    assert fetch(urls, target, content_md5=md5, progress=False) == target
    assert gzip.decompress(target.read_bytes()) == content
    (folder / "good.gz").unlink()
    assert fetch(urls, target, content_md5=md5, progress=False) == target  # cached: nobody is asked again


def test_a_failed_download_names_each_mirror_and_leaves_nothing(server: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = server
    (folder / "bad.gz").write_bytes(b"not even gzip")
    target = tmp_path / "cache" / "x.gz"
    with pytest.raises(DataError, match=r"(?s)absent\.gz: 404.*bad\.gz.*DDPM_DATA_ROOT"):
        fetch([url + "absent.gz", url + "bad.gz"], target, content_md5="0" * 32, progress=False)
    with pytest.raises(DataError, match="wrong content"):
        fetch([url + "bad.gz"], target, file_md5="0" * 32, progress=False)
    assert list(target.parent.iterdir()) == []
