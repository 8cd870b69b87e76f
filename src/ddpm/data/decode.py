"""One picture file -> one frame of the wanted size and channels, deliberately."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from ddpm.images import Crop

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1
"""Raised whenever the same file would decode to other pixels; part of the cache's key."""

MAX_PIXELS = 89_478_485
"""Larger pictures are taken for decompression bombs (Pillow's own limit for a warning)."""


Resize = Literal["crop", "stretch", "pad"]


def decode(picture: Image, *, size: tuple[int, int], channels: int, resize: Resize) -> tuple[np.ndarray, Crop]:
    """A picture as a frame.

    Args:
        size: (height, width) of the frame.
        channels: 1 or 3.
        resize: see `fit`.

    Returns:
        uint8 (channels, height, width), and where the picture lies in it.

    Raises:
        ValueError: too large to be a picture; and whatever Pillow raises for a broken file.
    """
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture)
    frame, crop = fit(to_mode(upright, "L" if channels == 1 else "RGB"), size, resize)
    array = np.asarray(frame)
    return (array[None] if channels == 1 else array.transpose(2, 0, 1)), crop


def to_mode(picture: Image, mode: Literal["L", "RGB"]) -> Image:
    """Any pixel format as 8-bit grey (luminance) or RGB; transparency is laid on white."""
    from PIL import Image as Pillow

    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture).astype(np.float64)
        # I is what Pillow makes of 16-bit files, so 65535 is white; floats run to 1 or, if any is larger, to 255.
        white = 65535.0 if picture.mode.startswith("I") else 1.0 if values.max(initial=0) <= 1 else 255.0
        picture = Pillow.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8))
    elif picture.has_transparency_data:
        front = picture.convert("RGBA")
        picture = Pillow.alpha_composite(Pillow.new("RGBA", front.size, "white"), front)
    if picture.mode not in ("1", "L"):
        picture = picture.convert("RGB")
    return picture.convert(mode)


def fit(picture: Image, size: tuple[int, int], resize: Resize) -> tuple[Image, Crop]:
    """A picture as one of `size` (height, width), antialiased, and where it lies in it.

    crop: the shortest side to size, then the centre; stretch: each side by itself; pad: shrunk only if it
    does not fit, never enlarged, in the centre of a black frame.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    height, width = size
    whole = Crop(0, 0, height, width)
    if picture.size == (width, height):
        return picture, whole
    smooth = Pillow.Resampling.BICUBIC
    match resize:
        case "stretch":
            return picture.resize((width, height), smooth), whole
        case "crop":
            return ImageOps.fit(picture, (width, height), smooth), whole
        case "pad":
            scale = min(1.0, height / picture.height, width / picture.width)
            if scale < 1:
                inner = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
                picture = picture.resize(inner, smooth)
            crop = Crop((height - picture.height) // 2, (width - picture.width) // 2, picture.height, picture.width)
            frame = Pillow.new(picture.mode, (width, height))
            frame.paste(picture, (crop.left, crop.top))
            return frame, crop
