"""Your own pictures: a zoo of files, none of which may crash a run."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.data import folder as folder_module
from ddpm.errors import DataError
from tests.data.files import noise, quiet, save, section

ODD_NAMES = ["with space.png", "zażółć 图像.png", "new\nline.png", "UPPER.PNG", "%s{}'\".png", "-dash.png"]


def png_of(width: int, height: int) -> bytes:
    """The beginning of a PNG file that claims to be this large."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", b"")]
    packed = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def broken_files(top: Path) -> dict[str, str]:
    """Files that cannot be read, by name, and a part of the reason."""
    (top / "empty.png").touch()
    save(top / "truncated.jpg", noise(64, 64, 3))
    content = (top / "truncated.jpg").read_bytes()
    (top / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (top / "text.png").write_text("no picture at all")
    (top / "dangling.png").symlink_to(top / "nowhere.png")
    (top / "loop.png").symlink_to(top / "loop.png")
    (top / "bomb.png").write_bytes(png_of(10_000, 9_000))
    (top / "large bomb.png").write_bytes(png_of(100_000, 100_000))
    save(top / "nan.tif", np.full((8, 8), np.nan, np.float32))
    os.mkfifo(top / "pipe.png")
    return {
        "empty.png": "is no image",
        "truncated.jpg": "truncated",
        "text.png": "is no image",
        "dangling.png": "No such file",
        "loop.png": "symbolic links",
        "bomb.png": "10000 x 9000 pixels: refused as a decompression bomb",
        "large bomb.png": "decompression bomb",
        "nan.tif": "levels from nan",
        "pipe.png": "no regular file",
    }


def sound_files(top: Path) -> set[str]:
    save(top / "a one.png", noise(1, 1))
    save(top / "a long.png", noise(1, 10_000))
    save(top / "a tall.png", noise(3_000, 1, 3))
    save(top / "a 16.png", np.full((8, 8), 40_000, np.uint16))
    save(top / "a float.tif", np.full((8, 8), 0.5, np.float32))
    Image.new("CMYK", (9, 9), (9, 99, 199, 0)).save(top / "a cmyk.jpg")
    palette = Image.fromarray(noise(8, 8)).convert("P")
    palette.save(top / "a palette.png", transparency=3)
    Image.new("LA", (8, 8), (9, 99)).save(top / "a la.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(top / "a rgba.webp")
    Image.new("1", (8, 8)).save(top / "a bit.bmp")
    frames = [Image.new("L", (8, 8), level) for level in (70, 250)]
    frames[0].save(top / "a moving.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    save(top / "a turned.jpg", noise(5, 9, 3), exif=exif)
    save(top / "a misnamed.jpg", format="PNG")
    for name in ODD_NAMES:
        save(top / name, format="PNG")
    return {path.name for path in top.iterdir()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_a_zoo(tmp_path: Path, channels: int, resize: str) -> None:
    sound = sound_files(tmp_path)
    broken = broken_files(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "weird").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "a one.png").write_text("no picture")
    (tmp_path / "again").symlink_to(tmp_path)
    config = section("folder", root=tmp_path, channels=channels, resize=resize, image_size=(16, 24), max_broken=0.5)
    images = quiet(config)
    assert images.images.shape == (len(sound), channels, 16, 24)
    assert images.labels is None
    assert images.class_names == ()
    report = images.report
    assert report.found == len(sound) + len(broken)
    assert report.kept == len(sound)
    assert report.ignored == 2
    assert report.animated == 1
    assert report.sizes["1 x 1"] == report.sizes["10000 x 1"] == 1
    assert {"CMYK", "LA", "RGBA", "1", "F", "P", "L", "RGB"} <= set(report.modes)
    assert {name for name, _ in report.skipped} == set(broken)
    for name, reason in report.skipped:
        assert broken[name] in reason, name
        assert str(tmp_path) not in reason
    text = str(report)
    assert f"{len(sound)} of {len(sound) + len(broken)} pictures read, 2 other files skipped: not an image" in text
    assert "animated 1: the first frame is taken" in text
    assert len(text.splitlines()) < 15
    # The report is remembered with the pictures.
    again = quiet(config).report
    assert again == report


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (70, 250)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (quiet(section("folder", root=tmp_path)).images == 70).all()


def test_broken_files_stop_the_load_at_the_limit(tmp_path: Path) -> None:
    for i in range(18):
        save(tmp_path / f"{i}.png")
    (tmp_path / "bad 1.png").touch()
    (tmp_path / "bad 2.png").touch()
    for limit, stops in ((0.0, True), (0.01, True), (0.09, True), (0.1, False), (0.5, False), (0.05, True)):
        config = section("folder", root=tmp_path, max_broken=limit)
        if stops:
            with pytest.raises(DataError) as caught:
                quiet(config)
            for part in ("2 of 20 pictures are broken", "data.max_broken", "'bad 1.png': is no", "'bad 2.png': is no"):
                assert part in str(caught.value)
        else:
            assert len(quiet(config)) == 18


def test_files_that_are_no_images_do_not_count_as_broken(tmp_path: Path) -> None:
    save(tmp_path / "x.png")
    for i in range(9):
        (tmp_path / f"{i}.txt").touch()
    assert quiet(section("folder", root=tmp_path, max_broken=0.0)).report.ignored == 9


def test_no_pictures(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.heic").touch()
    (tmp_path / ".hidden.png").touch()
    with pytest.raises(DataError) as caught:
        quiet(section("folder", root=tmp_path))
    for part in (str(tmp_path), "has no pictures (3 other files seen)", ".jpg", ".png", "data.root"):
        assert part in str(caught.value)


def test_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"data.root: is missing"):
        quiet(section("folder"))
    with pytest.raises(DataError, match="no such folder"):
        quiet(section("folder", root=tmp_path / "absent"))
    (tmp_path / "x.rar").write_text("?")
    with pytest.raises(DataError, match=r"neither a folder nor a whole .zip"):
        quiet(section("folder", root=tmp_path / "x.rar"))
    save(tmp_path / "pictures" / "x.png")
    monkeypatch.chdir(tmp_path)
    assert len(quiet(section("folder", root="pictures"))) == 1
    monkeypatch.setenv("DDPM_DATA_ROOT", str(tmp_path / "pictures"))
    assert len(quiet(section("folder"))) == 1


def classes(*names: str) -> tuple[list[int | None], tuple[str, ...]]:
    return folder_module._classes(names)


def test_sub_folders_are_classes() -> None:
    assert classes("a.png", "b.png") == ([None, None], ())
    assert classes("cat/1.png", "cat/2.png") == ([0, 0], ("cat",))
    assert classes("cat/1.png", "dog/2.png", "cat/more/3.png") == ([0, 1, 0], ("cat", "dog"))
    assert classes("top/cat/1.png", "top/dog/2.png") == ([0, 1], ("cat", "dog"))
    assert classes("top/deep/cat/1.png", "top/deep/dog/2.png") == ([0, 1], ("cat", "dog"))
    assert classes("cat/1.png", "catfish/2.png") == ([0, 1], ("cat", "catfish"))
    assert classes("cat/1.png", "2.png") == ([0, None], ("cat",))
    assert classes("top/cat/1.png", "top/2.png") == ([0, None], ("cat",))


def test_labels_follow_their_pictures(tmp_path: Path) -> None:
    for level, name in enumerate(("dog/b", "cat/z", "dog/a", "cat/a")):
        save(tmp_path / f"{name}.png", np.full((8, 8), level, np.uint8))
    (tmp_path / "cat" / "y.png").touch()
    images = quiet(section("folder", root=tmp_path, max_broken=0.5))
    assert images.class_names == ("cat", "dog")
    assert images.images[:, 0, 0, 0].tolist() == [3, 1, 2, 0]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.labels.dtype == np.int64


def test_a_picture_beside_the_classes_takes_the_labels_and_is_reported(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png")
    save(tmp_path / "2.png")
    images = quiet(section("folder", root=tmp_path))
    assert images.labels is None
    assert images.class_names == ()
    assert "labels   none: 1 of the pictures lie beside the class folders" in str(images.report)


@pytest.mark.parametrize("names", [("cat", "dog"), ("x/cat", "x/dog")])
def test_a_zip_file_is_read_in_place(tmp_path: Path, names: tuple[str, str]) -> None:
    pixels = [save(tmp_path / "in" / name / "zażółć.png") for name in names]
    (tmp_path / "in" / names[0] / "bad.jpg").write_text("no picture")
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((tmp_path / "in").rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path / "in"))
        archive.writestr("__MACOSX/cat/._1.png", "no picture")
        archive.writestr("cat/.hidden.png", "no picture")
        archive.writestr("notes.txt", "no picture")
    before = sorted(tmp_path.rglob("*"))
    images = quiet(section("folder", root=path, max_broken=0.5))
    np.testing.assert_array_equal(images.images[:, 0], pixels)
    assert images.class_names == ("cat", "dog")
    assert images.report.skipped == (
        (f"{names[0]}/bad.jpg", "is no image that can be read (empty, damaged or of another kind)"),
    )
    assert images.report.ignored == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_zip_files(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    save(tmp_path / "a.png", noise(99, 99))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
        archive.write(tmp_path / "a.png", "b.png")
    content = path.read_bytes()
    path.write_bytes(content[:500] + bytes(100) + content[600:])
    report = quiet(section("folder", root=path, max_broken=0.5)).report
    assert [name for name, _ in report.skipped] == ["a.png"]
    assert "CRC" in report.skipped[0][1]
    path.write_bytes(content[:2000])
    with pytest.raises(DataError, match=r"neither a folder nor a whole .zip file"):
        quiet(section("folder", root=path))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_MAX_MEMBER", 10_000)
    save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.png", "a.png")
        archive.writestr("bomb.png", bytes(10_001))
    report = quiet(section("folder", root=tmp_path / "x.zip", max_broken=0.5)).report
    assert report.skipped == (("bomb.png", "unpacks to 10,001 bytes, too many for a picture"),)


def test_links_are_followed_but_no_folder_twice(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "1.png")
    top = tmp_path / "top"
    save(top / "real" / "2.png")
    (top / "linked").symlink_to(tmp_path / "elsewhere")
    (top / "again").symlink_to(top / "real")
    (top / "real" / "up").symlink_to(top)
    (tmp_path / "elsewhere" / "back").symlink_to(top)
    images = quiet(section("folder", root=top))
    assert len(images) == 2
    assert images.class_names == ("linked", "real")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "cat" / "1.png")
    save(tmp_path / "dog" / "2.png")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match="dog: this folder cannot be read: Permission denied"):
        quiet(section("folder", root=tmp_path))


@pytest.mark.parametrize("shape", [(30, 47), (47, 30)])
def test_rectangles(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = save(tmp_path / "x.png", noise(*shape))
    np.testing.assert_array_equal(quiet(section("folder", root=tmp_path, image_size=shape)).images[0, 0], pixels)
    for resize in ("crop", "stretch", "pad"):
        assert quiet(section("folder", root=tmp_path, image_size=(16, 24), resize=resize)).images.shape[2:] == (16, 24)


def test_padding_is_remembered_where_all_share_it(tmp_path: Path) -> None:
    save(tmp_path / "1.png", noise(6, 5))
    save(tmp_path / "2.png", noise(6, 5))
    config = section("folder", root=tmp_path, resize="pad")
    assert quiet(config).crop == (1, 1, 6, 5)
    assert quiet(section("folder", root=tmp_path, resize="stretch")).crop is None
    assert quiet(section("folder", root=tmp_path, resize="pad", image_size=(6, 5))).crop is None
    save(tmp_path / "3.png", noise(5, 5))
    assert quiet(config).crop is None


def test_real_cifar_pictures(shared_data: Path) -> None:
    """10,000 JPEGs in class folders inside a .zip file, read in place."""
    images = quiet(section("folder", root=shared_data / "cifar10_jpeg_10k.zip", image_size=32, channels=3))
    assert len(images) == 10_000
    assert len(images.class_names) == 10
    assert images.labels is not None
    assert np.bincount(images.labels).tolist() == [1000] * 10
    levels = images.take(np.arange(0, 10_000, 10))
    assert np.abs(levels.mean((0, 2, 3)) - [125, 123, 114]).max() < 4  # CIFAR-10's published channel means
