"""Pictures that come as one array."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ddpm.data.records import Contents, Item
from ddpm.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


def array_contents(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], *, where: str) -> Contents:
    """Pictures and labels as a source's contents.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 3).
        labels: integers (N,), 0..number of classes - 1.
        where: the file that the labels are from, for the message.

    Raises DataError when a label has no class.
    """
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise DataError(
            f"{where}: labels run from {labels.min()} to {labels.max()}, expected 0 to {len(class_names) - 1}; "
            "for other data use data.source: folder"
        )
    pairs = zip(images, labels.tolist(), strict=True)
    return Contents(
        [Item(f"image {i}", partial(_picture, pixels), n) for i, (pixels, n) in enumerate(pairs)], class_names
    )


def _picture(pixels: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels))
