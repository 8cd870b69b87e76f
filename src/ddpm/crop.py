"""Where a picture lies in its frame: plain numbers, so that the processes that decode pictures need no torch."""

from __future__ import annotations

from typing import NamedTuple


class Crop(NamedTuple):
    """Where the original picture lies inside a padded one, in pixels."""

    top: int
    left: int
    height: int
    width: int
