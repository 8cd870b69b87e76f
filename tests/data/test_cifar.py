"""CIFAR-10: read from archive and folder alike, and never run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from ddpm.data import cifar
from ddpm.errors import DataError
from tests.data.files import CIFAR_CLASSES, cifar_files, noise, python2_batch, python2_meta, quiet, save_tar, section

FOLDER = "cifar-10-batches-py"


def write_folder(root: Path, files: dict[str, bytes]) -> None:
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / FOLDER / name).write_bytes(content)


def write_archive(root: Path, files: dict[str, bytes]) -> None:
    # The published archive is not in order either.
    save_tar(root / "cifar-10-python.tar.gz", {f"{FOLDER}/{name}": files[name] for name in reversed(files)})


@pytest.mark.parametrize("write", [write_folder, write_archive])
@pytest.mark.parametrize("sub", ["", "cifar10"])
def test_images_labels_and_names(tmp_path: Path, write, sub: str) -> None:
    files, images, labels = cifar_files()
    (tmp_path / sub).mkdir(exist_ok=True)
    write(tmp_path / sub, files)
    config = section("cifar10", root=tmp_path, image_size=32, channels=3)
    train, test = quiet(config), quiet(config, "test")
    np.testing.assert_array_equal(train.images, images[:15].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(test.images, images[15:].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(train.labels, labels[:15])
    np.testing.assert_array_equal(test.labels, labels[15:])
    assert train.class_names == tuple(name.decode() for name in CIFAR_CLASSES)


def test_the_root_may_be_the_folder_itself(tmp_path: Path) -> None:
    files, _, _ = cifar_files()
    write_folder(tmp_path, files)
    assert len(quiet(section("cifar10", root=tmp_path / FOLDER))) == 15


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickled_again_by_python_3(tmp_path: Path, protocol: int, order: str) -> None:
    files, images, _ = cifar_files()
    pixels = np.asarray(images[:3], order=order)  # type: ignore[call-overload]
    files["data_batch_1"] = pickle.dumps({b"data": pixels, "labels": [1, 2, 3]}, protocol=protocol)
    write_folder(tmp_path, files)
    found = quiet(section("cifar10", root=tmp_path, image_size=32, channels=3))
    np.testing.assert_array_equal(found.images[:3].reshape(3, -1), images[:3])


class Payload:
    def __init__(self, function, *args: object):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_a_payload_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    payload = pickle.dumps({"data": Payload(os.mkdir, str(marker)), "labels": []}, protocol=2)
    pickle.loads(payload)
    assert marker.is_dir(), "the payload itself is harmless: the test would prove nothing"
    marker.rmdir()
    files, _, _ = cifar_files()
    for name in ("data_batch_3", "batches.meta"):
        for write in (write_folder, write_archive):
            root = tmp_path / f"{name}-{write.__name__}"
            root.mkdir()
            write(root, files | {name: payload})
            with pytest.raises(DataError, match=rf"{name} cannot be read: posix.mkdir is not allowed"):
                quiet(section("cifar10", root=root))
            assert not marker.exists()


@pytest.mark.parametrize(
    "payload",
    [
        Payload(eval, "1 + 1"),
        Payload(exec, "import os"),
        Payload(getattr, "x", "upper"),
        Payload(np.load, "x.npy"),
        Payload(np.array, [1]),
        {"data": np.array([print], dtype=object)},
        {"data": np.array([(1, 2)], dtype=[("a", "u1"), ("b", "u1")])},
        {"data": np.zeros((1, 3072))},
        pickle.Unpickler,
    ],
    ids=lambda p: type(p).__name__,
)
def test_nothing_but_bytes_in_containers(payload: object) -> None:
    with pytest.raises(DataError, match="batch cannot be read"):
        cifar._load(pickle.dumps({"x": payload}, protocol=2), Path("file"), "batch")


def test_no_codec_but_latin1() -> None:
    with pytest.raises(DataError, match="expected latin1"):
        cifar._load(
            b"\x80\x02}(U\x01xc_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86Ru.", Path("f"), "b"
        )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("data_batch_2", b"", "data_batch_2 cannot be read: Ran out of input"),
        ("data_batch_2", python2_batch(noise(3, 3072), [1, 2, 3])[:5000], "data_batch_2 cannot be read"),
        ("data_batch_2", pickle.dumps([1, 2], protocol=2), "it holds a list, expected a dictionary"),
        ("data_batch_2", python2_meta([b"x"]), "no 'data' of shape"),
        ("data_batch_2", python2_batch(noise(3, 3071), [1, 2, 3]), "no 'data' of shape"),
        ("data_batch_2", b"\x80\x02}(U\x04datacnumpy\nndarray\n)\x81U\x06labels]u.", "no 'data' of shape"),
        ("data_batch_2", python2_batch(noise(3, 3072), [1, 2]), "3 images but 2 labels"),
        ("data_batch_2", python2_batch(noise(3, 3072), [1, 2, 10]), "labels run from 0 to 10, expected 0 to 9"),
        ("data_batch_2", pickle.dumps({"data": noise(1, 3072), "labels": "7"}, protocol=2), "no list of numbers"),
        ("batches.meta", pickle.dumps({"label_names": [1]}, protocol=2), "no list of names"),
    ],
)
def test_malformed(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    files, _, _ = cifar_files()
    files["data_batch_1"] = python2_batch(noise(3, 3072), [0, 1, 2])
    write_folder(tmp_path, files | {name: content})
    with pytest.raises(DataError) as caught:
        quiet(section("cifar10", root=tmp_path))
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_damaged_archives(tmp_path: Path) -> None:
    files, _, _ = cifar_files()
    archive = tmp_path / "cifar-10-python.tar.gz"
    config = section("cifar10", root=tmp_path)
    write_archive(tmp_path, {name: content for name, content in files.items() if name != "data_batch_4"})
    with pytest.raises(DataError, match=f"has no {FOLDER}/data_batch_4"):
        quiet(config)
    archive.write_bytes(archive.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"tar.gz: cannot be read"):
        quiet(config)
    archive.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"tar.gz: cannot be read"):
        quiet(config)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"Looked for: cifar-10-python.tar.gz or cifar-10-batches-py/data_batch_1. Searched: /"
    ):
        quiet(section("cifar10", root=tmp_path))


def test_a_new_class_list_is_noticed(tmp_path: Path) -> None:
    files, _, _ = cifar_files()
    write_folder(tmp_path, files)
    config = section("cifar10", root=tmp_path)
    quiet(config)
    write_folder(tmp_path, {"batches.meta": python2_meta([f"other {i}".encode() for i in range(10)])})
    assert quiet(config).class_names[0] == "other 0"
