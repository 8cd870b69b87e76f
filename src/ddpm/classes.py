"""Which class each image is drawn for, and what that makes of the network and of the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from ddpm.conditioning import Conditional, LabelledNet
from ddpm.config import Config, SamplingSection
from ddpm.diffusion import Net
from ddpm.errors import UsageError
from ddpm.images import PAPER, grid
from ddpm.noise import Purpose, rng
from ddpm.samplers import Guided

GRID_LIMIT = 64
"""Pictures in grid.png."""


def class_numbers(classes: Any, names: tuple[str, ...]) -> tuple[int, ...] | Literal["all", "random", "none"]:
    """The numbers of classes given as "all", "random", "none", a name, a number, or a list of names and numbers.

    None is all. A text with commas that is no name is a list. Raises UsageError naming what is no class.

    Args:
        names: of the model's classes, in order.
    """
    count = len(names)
    if classes in (None, "all", "random", "none"):
        return classes or "all"
    if isinstance(classes, str) and classes not in names:
        classes = [part.strip() for part in classes.split(",")]
    numbers = []
    for each in classes if isinstance(classes, list | tuple) else [classes]:
        if isinstance(each, str) and each in names:
            numbers.append(names.index(each))
        elif not isinstance(each, bool) and str(each).isdecimal() and int(each) < count:
            numbers.append(int(each))
        else:
            shown = ", ".join(f"{i} {name}" if str(i) != name else name for i, name in enumerate(names[:20]))
            more = ", ..." if count > 20 else ""
            raise UsageError(
                f"classes: {each!r} is no class of this model. It has {count}: {shown}{more}; or all, random, none"
            )
    if not numbers:
        raise UsageError("classes: an empty list; expected names or numbers, all, random or none")
    return tuple(numbers)


def labels_of(config: Config, indices: Sequence[int], settings: SamplingSection) -> list[int] | None:
    """The class of each image by its number; None where they have none."""
    count, classes = config.network.classes, settings.classes
    if count is None or classes == "none":
        return None
    if classes == "random":
        return [int(rng(settings.seed, Purpose.CLASS, i).integers(count)) for i in indices]
    turn = classes if isinstance(classes, tuple) else range(count)
    return [turn[i % len(turn)] for i in indices]


def condition(
    network: LabelledNet, config: Config, indices: Sequence[int], settings: SamplingSection, device: torch.device
) -> Net:
    """The network as a net(x_t, t) for the images numbered `indices`: their classes bound, guided as set."""
    of_images = labels_of(config, indices, settings)
    if of_images is None:
        return network
    labels = torch.tensor(of_images, device=device)
    if settings.guidance is None or not settings.guided:
        return Conditional(network, labels)
    low, high = settings.guidance_interval or (0, 1)
    T = config.diffusion.timesteps
    until = high * T if high < 1 else math.inf
    return Guided(network, labels, settings.guidance, config.data.channels, after=low * T, until=until)


def grid_count(config: Config, told: SamplingSection | None = None) -> int:
    """Pictures in grid.png: of all classes (which is the default), as many of each."""
    classes = (config.network.classes or 1) if told is None or _in_turn(told) else 1
    return max(1, GRID_LIMIT // classes) * classes if classes <= GRID_LIMIT else GRID_LIMIT


def _in_turn(settings: SamplingSection) -> bool:
    return settings.classes in (None, "all")


def page(arrays: np.ndarray, indices: Sequence[int], config: Config, settings: SamplingSection) -> np.ndarray:
    """A grid of the pictures numbered `indices`, uint8 (N, H, W, C); of all classes: one row for each, in order."""
    labels = labels_of(config, indices, settings)
    if labels is None or not _in_turn(settings):
        return grid(arrays)
    rows = [[array for array, label in zip(arrays, labels, strict=True) if label == k] for k in sorted(set(labels))]
    columns = max(map(len, rows))
    if columns == 1:  # a column as long as there are classes
        return grid(arrays)
    blank = np.full_like(arrays[0], PAPER)
    return grid(np.stack([cell for row in rows for cell in [*row, *[blank] * (columns - len(row))]]), columns=columns)
