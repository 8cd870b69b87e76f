"""The MNIST family: found where it lies, checked, and refused with a reason."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddpm.data import idx as idx_module
from ddpm.errors import DataError
from tests.data.files import idx, noise, quiet, save_idx, section

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*args: object, by_hand: str, **options: object) -> Path:
        raise DataError(f"a download was tried\n{by_hand}")

    monkeypatch.setattr(idx_module, "fetch", fetch)


@pytest.mark.slow
def test_real_mnist_padded(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = section("mnist", root=shared_data / "mnist", image_size=32, resize="pad", held_out=0.05)
    train, held_out, test = quiet(config), quiet(config, "held_out"), quiet(config, "test")
    assert (len(train), len(held_out), len(test)) == (57_000, 3_000, 10_000)
    assert train.packed.shape == (60_000, 1, 32, 32)
    assert train.class_names == tuple("0123456789")
    assert train.crop == test.crop == (2, 2, 28, 28)
    content = gzip.decompress((shared_data / "mnist" / f"{IMAGES}.gz").read_bytes())
    raw = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)
    np.testing.assert_array_equal(train.packed[:, 0, 2:30, 2:30], raw)
    assert int(train.packed.sum(dtype=np.int64)) == int(raw.sum(dtype=np.int64))  # the border is black
    assert test.labels is not None
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert len({train.fingerprint, held_out.fingerprint, test.fingerprint}) == 3
    # The second time nothing is read but the pack, and the folder may be named by the environment, further up.
    monkeypatch.setattr(idx_module, "read_idx", None)
    monkeypatch.setenv("DDPM_DATA_ROOT", str(shared_data))
    again = quiet(config.model_copy(update={"root": None}))
    assert again.fingerprint == train.fingerprint


def test_another_data_set_of_the_family_is_recognised(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"t10k-images-idx3-ubyte of mnist, not t10k-images-idx3-ubyte of fashion_mnist"
    ):
        quiet(section("fashion_mnist", root=shared_data / "mnist"), "test")
    for kind in ("images-idx3", "labels-idx1"):
        shutil.copy(shared_data / "mnist" / f"t10k-{kind}-ubyte.gz", tmp_path / f"train-{kind}-ubyte.gz")
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte of mnist, not train-images-idx3-ubyte of mnist"):
        quiet(section("mnist", root=tmp_path))


@pytest.mark.parametrize("sub", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_found_in_the_usual_places(tmp_path: Path, sub: str, end: str) -> None:
    images, labels = save_idx(tmp_path / sub, end=end)
    found = quiet(section("mnist", root=tmp_path, image_size=6))
    np.testing.assert_array_equal(found.images[:, 0], images)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.crop is None


def test_the_dotted_names_too(tmp_path: Path) -> None:
    images, _ = save_idx(tmp_path, end="")
    for name in (IMAGES, LABELS):
        (tmp_path / name).rename(tmp_path / name.replace("-idx", ".idx"))
    np.testing.assert_array_equal(quiet(section("kmnist", root=tmp_path, image_size=6)).images[:, 0], images)


def test_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_idx(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert len(quiet(section("mnist", root="data"))) == 5


def test_its_own_folder_comes_before_the_shared_one(tmp_path: Path) -> None:
    save_idx(tmp_path)
    images, _ = save_idx(tmp_path / "fashion_mnist")
    np.testing.assert_array_equal(quiet(section("fashion_mnist", root=tmp_path, image_size=6)).images[:, 0], images)


def test_images_and_labels_come_from_one_folder(tmp_path: Path) -> None:
    save_idx(tmp_path / "mnist", count=7)
    (tmp_path / "mnist" / f"{LABELS}.gz").unlink()
    save_idx(tmp_path, count=5)
    assert len(quiet(section("mnist", root=tmp_path))) == 5


@pytest.mark.usefixtures("offline")
def test_a_named_folder_without_the_files_is_an_error(tmp_path: Path) -> None:
    save_idx(tmp_path)
    (tmp_path / f"{LABELS}.gz").unlink()
    with pytest.raises(DataError) as caught:
        quiet(section("mnist", root=tmp_path))
    message = str(caught.value)
    for part in ("data.root", str(tmp_path / "MNIST/raw"), LABELS, IMAGES, ".gz", "DDPM_DATA_ROOT", "download"):
        assert part in message
    with pytest.raises(DataError, match="is not a folder"):
        quiet(section("mnist", root=tmp_path / "absent"))


@pytest.mark.usefixtures("offline")
def test_an_environment_folder_without_the_files_leads_to_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPM_DATA_ROOT", str(tmp_path))
    with pytest.raises(DataError, match="a download was tried") as caught:
        quiet(section("mnist"))
    assert str(tmp_path / "mnist") in str(caught.value)
    assert "Without a network" in str(caught.value)


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        (IMAGES, lambda _: b"", "begins with the bytes (none), expected 00000803"),
        (IMAGES, lambda _: b"<!DOCTYPE html><html>not here", "begins with the bytes 3c21444f"),
        (IMAGES, lambda _: idx(noise(5)), "begins with the bytes 00000801, expected 00000803"),
        (
            IMAGES,
            lambda c: gzip.compress(_cut(gzip.decompress(c))),
            "has 98 bytes unpacked, but its header (5 x 6 x 6)",
        ),
        (IMAGES, lambda c: gzip.compress(gzip.decompress(c) + b"x"), "has 197 bytes unpacked"),
        (IMAGES, lambda c: b"\0\0\x09" + gzip.decompress(c)[3:], "begins with the bytes 00000903"),
        (IMAGES, _cut, "cannot be read: Compressed file ended"),
        (IMAGES, lambda c: c[:10] + b"\xff" * 10 + c[20:], "cannot be read: Error"),
        (LABELS, lambda _: gzip.compress(idx(noise(4) % 10)), "train-labels-idx1-ubyte.gz 4 labels"),
        (LABELS, lambda _: gzip.compress(idx(np.full(5, 25, np.uint8))), "labels run from 25 to 25, expected 0 to 9"),
    ],
)
def test_malformed(tmp_path: Path, name: str, damage: Callable[[bytes], bytes], says: str) -> None:
    save_idx(tmp_path)
    path = tmp_path / f"{name}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        quiet(section("mnist", root=tmp_path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_parts_are_kept_apart(tmp_path: Path) -> None:
    train, _ = save_idx(tmp_path)
    test, _ = save_idx(tmp_path, "t10k")
    config = section("mnist", root=tmp_path, image_size=6)
    np.testing.assert_array_equal(quiet(config).images[:, 0], train)
    np.testing.assert_array_equal(quiet(config, "test").images[:, 0], test)
