"""Pictures given by name: upright, of the model's size, and masks that go the same way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from ddpm.config import DataSection
from ddpm.data.decode import Resize
from ddpm.data.given import Box, box_mask, read_mask, read_picture
from ddpm.errors import DataError

RNG = np.random.default_rng(0)


def _data(channels: int = 1, resize: Resize = "crop", size: tuple[int, int] = (8, 8)) -> DataSection:
    values = {"source": "folder", "image_size": size, "channels": channels, "resize": resize}
    return DataSection.model_validate(values)


def _save(path: Path, array: np.ndarray, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(array).save(path, exif=exif)
    return path


def test_a_picture_of_the_right_size_is_left_alone(tmp_path: Path) -> None:
    array = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    given = read_picture(_save(tmp_path / "a.png", array), _data(channels=3))
    assert np.array_equal(given.frame, array.transpose(2, 0, 1))
    assert given.done == "8 x 8"


@pytest.mark.parametrize(
    ("resize", "shape", "done"),
    [
        ("crop", (20, 30), "30 x 20, scaled and cut to 8 x 8, as in training"),
        ("stretch", (20, 30), "30 x 20, stretched to 8 x 8, as in training"),
        ("pad", (6, 4), "4 x 6, padded to 8 x 8, as in training"),
        ("pad", (6, 9), "9 x 6, shrunk to fit 8 x 8, as in training"),
        ("crop", (8, 8, 3), "8 x 8, RGB made grey, as in training"),
    ],
)
def test_what_was_done_is_said(tmp_path: Path, resize: Resize, shape: tuple[int, ...], done: str) -> None:
    array = RNG.integers(0, 256, shape, np.uint8)
    assert read_picture(_save(tmp_path / "a.png", array), _data(resize=resize)).done == done


def test_a_box_means_the_upright_picture(tmp_path: Path) -> None:
    """A file that lies on its side: 6 wide, 4 high, which EXIF turns to 4 wide, 6 high."""
    data = _data(resize="pad", size=(6, 4))
    given = read_picture(_save(tmp_path / "a.png", RNG.integers(0, 256, (4, 6), np.uint8), orientation=6), data)
    assert given.size == (4, 6)
    assert given.done == "4 x 6"
    known = box_mask(Box(1, 4, 2, 2), given, data)
    expected = np.ones((1, 6, 4), bool)
    expected[0, 4:6, 1:3] = False
    assert np.array_equal(known, expected)


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("shape", [(32, 16), (16, 24), (6, 4)])
def test_a_mask_is_resized_as_its_picture_is(tmp_path: Path, resize: Resize, shape: tuple[int, int]) -> None:
    """White in the mask is where a picture drawn like it is white; a border is known."""
    array = np.zeros(shape, np.uint8)
    array[shape[0] // 2 :, : shape[1] // 2] = 255
    data = _data(resize=resize)
    given = read_picture(_save(tmp_path / "a.png", array), data)
    known = read_mask(_save(tmp_path / "mask.png", array), given, data)
    assert known.shape == (1, 8, 8)
    assert np.array_equal(known, given.frame < 128)
    height, width = shape
    assert np.array_equal(known, box_mask(Box(0, height // 2, width // 2, height - height // 2), given, data))


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    data = _data()
    given = read_picture(_save(tmp_path / "a.png", np.zeros((16, 12), np.uint8)), data)
    mask = _save(tmp_path / "mask.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"mask\.png: the mask has 8 x 8 pixels, but .*a\.png has 12 x 16"):
        read_mask(mask, given, data)
