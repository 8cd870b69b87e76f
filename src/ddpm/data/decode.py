"""One picture file -> one frame of the wanted size and channels, deliberately."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from ddpm.crop import Crop

VERSION = 1
"""Raised whenever the same file would decode to other pixels; part of the cache's key."""

MAX_PIXELS = 89_478_485
"""Larger pictures are taken for decompression bombs (Pillow's own limit for a warning)."""

Resize = Literal["crop", "stretch", "pad"]


def open_picture(file: Path | BinaryIO) -> Image:
    """An image file, its header read. Raises OSError and more if it is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        raise ValueError("is no image that can be read (empty, damaged or of another kind)") from error


@cache
def _formats() -> tuple[str, ...]:
    """Pillow's plain readers; others run programs (EPS) or read what nobody keeps in a folder of pictures."""
    from PIL import Image

    Image.init()
    wanted = ("PNG", "JPEG", "MPO", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
    return tuple(name for name in wanted if name in Image.OPEN)


def decode(picture: Image, *, size: tuple[int, int], channels: int, resize: Resize) -> tuple[np.ndarray, Crop]:
    """A picture as a frame.

    Args:
        size: (height, width) of the frame.
        channels: 1 or 3.
        resize: see `fit`.

    Returns:
        uint8 (channels, height, width), and where the picture lies in it.

    Raises:
        ValueError: too large to be a picture, or levels out of range; and whatever Pillow raises for a broken file.
    """
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"has {picture.width} x {picture.height} pixels: refused as a decompression bomb")
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture)
    frame, crop = fit(to_mode(upright, "L" if channels == 1 else "RGB"), size, resize)
    array = np.asarray(frame)
    return (array[None] if channels == 1 else array.transpose(2, 0, 1)), crop


def to_mode(picture: Image, mode: Literal["L", "RGB"]) -> Image:
    """Any pixel format as 8-bit grey (luminance) or RGB.

    Transparency is laid on white; 16-bit levels are divided by 257; floats run from 0 to 1, or to 255 if any is
    larger than 1.
    """
    from PIL import Image as Pillow

    if picture.mode.startswith("I"):  # what Pillow makes of 16-bit grey: I;16 or I, by format and version
        picture = _levels(np.asarray(picture), white=65535)
    elif picture.mode == "F":
        values = np.asarray(picture)
        picture = _levels(values, white=1 if values.max(initial=0) <= 1 else 255)
    elif picture.has_transparency_data:
        front = picture.convert("RGBA")
        picture = Pillow.alpha_composite(Pillow.new("RGBA", front.size, "white"), front)
    if picture.mode not in ("1", "L"):
        picture = picture.convert("RGB")
    return picture.convert(mode)


def _levels(values: np.ndarray, *, white: int) -> Image:
    """Levels 0..white as 8-bit grey. Raises ValueError, rather than clip, if some are outside."""
    from PIL import Image

    if not (values.min() >= 0 and values.max() <= white):  # this form refuses NaN too
        raise ValueError(f"has levels from {values.min()} to {values.max()}, expected 0 to {white}")
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def fit(picture: Image, size: tuple[int, int], resize: Resize) -> tuple[Image, Crop]:
    """A picture (mode L or RGB) as one of `size` (height, width), antialiased, and where it lies in it.

    crop: the shortest side to size, then the centre; stretch: each side by itself; pad: shrunk only if it
    does not fit, never enlarged, in the centre of a black frame.
    """
    from PIL import Image as Pillow

    from ddpm.crop import Crop

    height, width = size
    whole = Crop(0, 0, height, width)
    if picture.size == (width, height):
        return picture, whole
    smooth = Pillow.Resampling.BICUBIC
    match resize:
        case "stretch":
            return picture.resize((width, height), smooth), whole
        case "crop":
            return picture.resize((width, height), smooth, box=_centre(picture.size, size)), whole
        case "pad":
            scale = min(height / picture.height, width / picture.width)
            if scale < 1:
                inner = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
                picture = picture.resize(inner, smooth)
            crop = Crop((height - picture.height) // 2, (width - picture.width) // 2, picture.height, picture.width)
            frame = Pillow.new(picture.mode, (width, height))
            frame.paste(picture, (crop.left, crop.top))
            return frame, crop


def _centre(outer: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part (left, top, right, bottom) of a picture (width, height) that becomes a frame (height, width).

    It begins at a whole pixel of the frame's scale: a picture that needs no scaling is cut, not blurred.
    """
    (width, height), (h, w) = outer, size
    scale = max(h / height, w / width)
    left, top = (round(width * scale) - w) // 2 / scale, (round(height * scale) - h) // 2 / scale
    return left, top, min(left + w / scale, width), min(top + h / scale, height)
