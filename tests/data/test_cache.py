"""The cache: decoded once, noticed when anything changes, never torn, one process at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddpm.config import DataSection
from ddpm.data import scan
from ddpm.data.records import ScanReport
from ddpm.errors import DataError
from tests.data.files import noise, quiet, save, section


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(4):
        save(tmp_path / "pictures" / f"{i}.png", noise(12, 14, 3))
    return tmp_path / "pictures"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures decoded."""
    names: list[str] = []
    real = scan.frame_of
    monkeypatch.setattr(scan, "frame_of", lambda item, config: names.append(item.name) or real(item, config))
    return names


def test_decoded_once_and_mapped_read_only(pictures: Path, decoded: list[str]) -> None:
    config = section("folder", root=pictures)
    first, second, held_out = quiet(config), quiet(config), quiet(config.model_copy(update={"held_out": 0.5}))
    assert len(decoded) == 4
    np.testing.assert_array_equal(first.images, second.images)
    assert first.fingerprint == second.fingerprint != held_out.fingerprint
    assert isinstance(first.images, np.memmap)
    assert not first.images.flags.writeable


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda p: os.utime(p / "1.png", ns=(0, 1)), 4),
        (lambda p: (p / "1.png").write_bytes((p / "1.png").read_bytes() + b"x"), 4),
        (lambda p: save(p / "5.png"), 5),
        (lambda p: (p / "1.png").unlink(), 3),
        (lambda p: (p / "1.png").rename(p / "9.png"), 4),
        (lambda p: (p / "notes.txt").write_text("x"), 0),
    ],
    ids=["time", "size", "added", "removed", "renamed", "not a picture"],
)
def test_changed_files_are_noticed(
    pictures: Path, decoded: list[str], change: Callable[[Path], object], again: int
) -> None:
    config = section("folder", root=pictures)
    quiet(config)
    decoded.clear()
    change(pictures)
    quiet(config)
    assert len(decoded) == again


@pytest.mark.parametrize(
    "change", [{"image_size": 6}, {"image_size": (8, 6)}, {"channels": 3}, {"resize": "pad"}, {"resize": "stretch"}]
)
def test_another_transform_is_another_pack(pictures: Path, decoded: list[str], change: dict[str, object]) -> None:
    first = quiet(section("folder", root=pictures))
    decoded.clear()
    other = quiet(section("folder", root=pictures, **change))
    assert len(decoded) == 4
    assert first.fingerprint != other.fingerprint
    # The first one is still there.
    decoded.clear()
    quiet(section("folder", root=pictures))
    assert decoded == []


def test_another_decoder_is_another_pack(pictures: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(section("folder", root=pictures))
    monkeypatch.setattr("ddpm.data.decode.VERSION", -1)
    quiet(section("folder", root=pictures))
    assert len(decoded) == 8


@pytest.mark.parametrize("file", ["images.bin", "facts.json", "labels.npy"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_what_a_crash_of_the_machine_tore_is_made_again(
    tmp_path: Path, cache: Path, decoded: list[str], file: str, damage: str
) -> None:
    save(tmp_path / "cat" / "1.png")
    save(tmp_path / "dog" / "2.png")
    config = section("folder", root=tmp_path)
    whole = quiet(config).images.copy()
    (path,) = (cache / "packed").glob(f"*/{file}")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3] if damage == "cut" else b"")
    again = quiet(config)
    np.testing.assert_array_equal(again.images, whole)
    assert again.labels is not None
    assert again.labels.tolist() == [0, 1]
    assert len(decoded) == 4
    quiet(config)
    assert len(decoded) == 4


def test_a_failed_load_leaves_nothing(pictures: Path, cache: Path) -> None:
    (pictures / "bad.png").touch()
    with pytest.raises(DataError, match="max_broken"):
        quiet(section("folder", root=pictures))
    assert list((cache / "packed").iterdir()) == []


def test_leftovers_of_a_killed_process_are_replaced(pictures: Path, cache: Path) -> None:
    config = section("folder", root=pictures)
    quiet(config)
    (pack,) = (cache / "packed").iterdir()
    shutil.move(pack, f"{pack}.tmp")
    (Path(f"{pack}.tmp") / "other").touch()
    assert len(quiet(config)) == 4
    assert [path.name for path in (cache / "packed").iterdir()] == [pack.name]
    assert sorted(path.name for path in pack.iterdir()) == ["facts.json", "images.bin"]


def test_a_full_disk_is_explained(pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"the data cache cannot be used \(No space left on device\).*DDPM_CACHE"):
        quiet(section("folder", root=pictures))
    assert list((cache / "packed").iterdir()) == []


def test_a_whole_pack_needs_no_right_to_write(pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = section("folder", root=pictures)
    quiet(config)
    shutil.rmtree(cache / "locks")
    (cache / "locks").write_text("no folder: a lock would fail")
    assert len(quiet(config)) == 4


PACKER = """
import sys
from ddpm.config import DataSection
from ddpm.data import load, scan
import ddpm.images, filelock, PIL.Image, tqdm

log = open(sys.argv[2], "ab", buffering=0)
decode = scan.frame_of
scan.frame_of = lambda item, config: (log.write(b"."), decode(item, config))[1]
print("ready", flush=True)
sys.stdin.readline()
images = load(DataSection(source="folder", root=sys.argv[1], image_size=64, channels=3), progress=False)
print(len(images), images.fingerprint, images.images.sum())
"""


def test_two_processes_at_once_pack_once(tmp_path: Path, cache: Path) -> None:
    for i in range(60):
        save(tmp_path / "in" / f"{i}.png", noise(100, 100, 3))
    log = tmp_path / "log"
    command = [sys.executable, "-c", PACKER, str(tmp_path / "in"), str(log)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    first, second = (process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert first == second
    assert first.startswith("60 ")
    assert log.stat().st_size == 60, "each picture is decoded by one of them"
    assert len(list((cache / "packed").iterdir())) == 1


def test_many_pictures_stay_in_order_and_stop_early(tmp_path: Path, decoded: list[str]) -> None:
    levels = [save(tmp_path / f"{i:04}.png", np.full((1, 1), i % 256, np.uint8))[0, 0] for i in range(1200)]
    found = quiet(section("folder", root=tmp_path, image_size=1))
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], levels)
    for i in range(400):
        (tmp_path / f"{i:04}.png").write_bytes(b"")
    decoded.clear()
    with pytest.raises(DataError, match="400 of 1,200 pictures are broken"):
        quiet(section("folder", root=tmp_path, image_size=1))
    assert len(decoded) <= 1200


def test_the_report_in_words() -> None:
    report = ScanReport(
        1000,
        tuple((f"{i}\n.png", "is empty") for i in range(7)),
        {f"{i} x {i}": i for i in range(1, 7)},
        {"RGB": 900, "L": 93},
        animated=2,
        ignored=3,
    )
    assert str(report).splitlines() == [
        "993 of 1,000 pictures read, 3 other files skipped: not an image",
        "sizes    6 x 6: 6, 5 x 5: 5, 4 x 4: 4, 3 x 3: 3 and 2 more",
        "formats  RGB: 900, L: 93",
        "animated 2: the first frame is taken",
        *(f"skipped  '{i}\\n.png': is empty" for i in range(5)),
        "skipped  2 more",
    ]


def test_the_config_alone_is_the_key(pictures: Path, decoded: list[str]) -> None:
    """Settings that do not change pixels share one pack."""
    base = section("folder", root=pictures)
    for change in ({"held_out": 0.25}, {"max_broken": 0.5}, {"horizontal_flip": True}):
        quiet(DataSection.model_validate(base.model_dump() | change))
    assert len(decoded) == 4
