"""Pictures that come as one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, overload

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
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} pictures but {len(labels)} labels")
    return Contents(_Items(images, labels), class_names)


@dataclass(frozen=True, eq=False)
class _Items(Sequence[Item]):
    """Made when asked for: a million records would need more memory than their pictures."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        chosen = range(len(self))[index]
        return self._item(chosen) if isinstance(chosen, int) else [self._item(i) for i in chosen]

    def _item(self, index: int) -> Item:
        return Item(f"image {index}", partial(_picture, self.images[index]), int(self.labels[index]))


def _picture(pixels: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels))
