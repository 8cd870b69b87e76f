"""Pictures: 8-bit levels and the model's [-1, 1], grids, PNG and GIF files.

The only place where the two scales meet: x = level / 127.5 - 1 (Section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm.crop import Crop as Crop
from ddpm.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

PAPER = 255
"""Grey level of the gaps in a grid."""


def to_model(levels: Tensor) -> Tensor:
    """uint8 levels 0..255 -> float32 in [-1, 1]."""
    return levels.to(torch.float32) / 127.5 - 1


def to_levels(x: Tensor) -> Tensor:
    """[-1, 1] (clamped) -> uint8 levels 0..255, rounded to the nearest."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_arrays(x: Tensor, crop: Crop | None = None) -> np.ndarray:
    """[-1, 1] (B, C, H, W) on any device -> uint8 (B, H, W, C), padding cropped off."""
    levels = to_levels(x)
    if crop:
        levels = levels[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def unpacked(levels: np.ndarray, crop: Crop | None = None) -> np.ndarray:
    """Packed uint8 (N, C, H, W) -> (N, H, W, C), padding cropped off; a view."""
    if crop:
        levels = levels[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return levels.transpose(0, 2, 3, 1)


def to_picture(array: np.ndarray) -> Image:
    """uint8 (H, W, C) with 1 or 3 channels -> a Pillow image."""
    from PIL import Image

    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def grid(arrays: np.ndarray, *, columns: int | None = None, height: int | None = None) -> np.ndarray:
    """Pictures side by side with gaps, small ones enlarged: by whole pixels, tiny ones (below 16) smoothly.

    Enlarged many times, single pixels hide the shape that they make.

    Args:
        arrays: uint8 (N, H, W, C).
        columns: pictures a row (default: as square as possible).
        height: height in pixels that each picture is at least enlarged to (default 64).

    Returns:
        uint8 (H', W', C) on white.
    """
    count, h, w, channels = arrays.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    arrays = enlarge(arrays, height or 64)
    h, w = arrays.shape[1:3]
    gap = max(2, h // 12)
    page = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, channels), PAPER, np.uint8)
    for i, array in enumerate(arrays):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        page[y : y + h, x : x + w] = array
    return page


def enlarge(arrays: np.ndarray, height: int) -> np.ndarray:
    """Pictures, uint8 (N, H, W, C), enlarged to at least `height`: by whole pixels, tiny ones (below 16) smoothly."""
    h = arrays.shape[1]
    scale = max(1, math.ceil(height / h))
    if h < 16:
        return np.stack([_smooth(array, scale) for array in arrays])
    return arrays.repeat(scale, axis=1).repeat(scale, axis=2)


def _smooth(array: np.ndarray, scale: int) -> np.ndarray:
    from PIL import Image

    h, w, channels = array.shape
    return np.asarray(to_picture(array).resize((w * scale, h * scale), Image.Resampling.BICUBIC)).reshape(
        h * scale, w * scale, channels
    )


def save_png(path: Path, array: np.ndarray) -> None:
    """Write uint8 (H, W, C) as a PNG file, whole or not at all."""
    with atomic_write(path) as file:
        to_picture(array).save(file, format="PNG")


def read_png(path: Path) -> np.ndarray:
    """A PNG file written by `save_png`: uint8 (H, W, C)."""
    from PIL import Image

    with Image.open(path) as picture:
        array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array


def save_gif(path: Path, frames: Sequence[np.ndarray], *, seconds: float = 4.0, hold: float = 2.0) -> None:
    """Write frames, uint8 (H, W, C) each, as an endless GIF that rests on its last frame.

    Args:
        seconds: length of the motion.
        hold: time that the last frame stays.
    """
    pictures = [to_picture(frame) for frame in frames]
    each = max(20, round(1000 * seconds / len(pictures)))
    durations = [each] * (len(pictures) - 1) + [round(1000 * hold)]
    with atomic_write(path) as file:
        pictures[0].save(
            file, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False
        )
