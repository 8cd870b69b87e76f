"""Pictures and masks that a command is given by name: made into what the model saw in training, which is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from ddpm.config import DataSection
from ddpm.data.decode import decode, open_picture
from ddpm.data.scan import reason
from ddpm.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ddpm.images import Crop

T = TypeVar("T")

FILL = 128
"""Level of a mask from which on a pixel is to be filled; resizing leaves levels in between."""


@dataclass(frozen=True)
class Given:
    """A picture as the model sees it."""

    path: Path
    frame: np.ndarray
    """uint8 (C, H, W), of the model's channels and size."""
    crop: Crop
    """Where the picture lies in the frame."""
    size: tuple[int, int]
    """(width, height) of the file's picture, upright."""
    done: str
    """What was done to it, in words."""


class Box(NamedTuple):
    """A rectangle in pixels of a picture file, from its upper left corner."""

    x: int
    y: int
    width: int
    height: int


def read_picture(path: Path, config: DataSection) -> Given:
    """A picture file treated as the training's were. Raises DataError: no such file, or no picture."""

    def read(picture: Image) -> Given:
        size = _upright_size(picture)
        frame, crop = decode(picture, size=config.size, channels=config.channels, resize=config.resize)
        return Given(path, frame, crop, size, _treatment(size, picture.mode, config))

    return _read(path, read)


def read_mask(path: Path, picture: Given, config: DataSection) -> np.ndarray:
    """A mask file as bool (1, H, W): True where the picture is known, False where the mask is white.

    It is resized as the picture is. Raises DataError: no picture, of another size than `picture`, or of one kind alone.
    """

    def read(mask: Image) -> np.ndarray:
        if _upright_size(mask) != picture.size:
            raise ValueError(
                f"the mask has {_pixels(_upright_size(mask))} pixels, but {picture.path} has "
                f"{_pixels(picture.size)}; a mask has its picture's size"
            )
        return _known(mask, config)

    return _read(path, read)


def box_mask(box: Box, picture: Given, config: DataSection) -> np.ndarray:
    """`read_mask` of a rectangle to be filled. Raises UsageError if it does not lie inside the picture."""
    from PIL import Image

    width, height = picture.size
    if not (box.width and box.height and box.x + box.width <= width and box.y + box.height <= height):
        raise UsageError(
            f"--box {','.join(map(str, box))}: does not lie inside {picture.path}, which has {_pixels(picture.size)} "
            "pixels; expected x,y,width,height from the upper left corner, in pixels of the file"
        )
    mask = Image.new("L", picture.size)
    mask.paste(255, (box.x, box.y, box.x + box.width, box.y + box.height))
    try:
        return _known(mask, config)
    except ValueError as error:
        raise UsageError(f"--box {','.join(map(str, box))}: {error}") from None


def _known(mask: Image, config: DataSection) -> np.ndarray:
    levels, _ = decode(mask, size=config.size, channels=1, resize=config.resize)
    known = levels < FILL
    if known.all():
        raise ValueError("leaves nothing to fill in what the model sees of the picture (white is filled, black kept)")
    if not known.any():
        raise ValueError("leaves nothing of the picture (white is filled, black kept); see ddpm sample")
    return known


def _read(path: Path, read: Callable[[Image], T]) -> T:
    """`read` of an image file, whatever goes wrong turned into a DataError that names it."""
    if not path.is_file():
        what = "is a folder; name a picture file" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}")
    try:
        with warnings.catch_warnings(), open_picture(path) as picture:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files
            return read(picture)
    except Exception as error:  # a broken file can raise anything
        raise DataError(f"{path}: {reason(error)}") from error


def _upright_size(picture: Image) -> tuple[int, int]:
    """(width, height) after the rotation that EXIF asks for."""
    from PIL import ExifTags

    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (picture.height, picture.width) if turned else picture.size


def _treatment(size: tuple[int, int], mode: str, config: DataSection) -> str:
    height, width = config.size
    fits = size[0] <= width and size[1] <= height
    words = {"crop": "scaled and cut to", "stretch": "stretched to", "pad": "padded to" if fits else "shrunk to fit"}
    wanted = "L" if config.channels == 1 else "RGB"
    done = []
    if size != (width, height):
        done.append(f", {words[config.resize]} {width} x {height}")
    if mode != wanted:
        done.append(f", {mode} made {'grey' if wanted == 'L' else 'RGB'}")
    return _pixels(size) + "".join(done) + ", as in training" * bool(done)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
