"""What every extractor is: a frozen network with a name, a hash and a stated transform."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.device import batch_fits
from ddpm.errors import UsageError
from ddpm.progress import progress_bar


class Reading(NamedTuple):
    """What an extractor says of N images."""

    features: np.ndarray
    """(N, D) float32."""
    probabilities: np.ndarray
    """(N, K) float32, of each class; rows sum to 1."""

    def take(self, index: np.ndarray) -> Reading:
        return Reading(self.features[index], self.probabilities[index])


Classifier = Callable[[Tensor], tuple[Tensor, Tensor]]
"""uint8 (B, C, H, W) -> features (B, D) and logits (B, K), float32."""


@dataclass(frozen=True)
class Extractor:
    """A network that reads images; its numbers can be compared with those of the same `name` and `sha256` alone."""

    name: str
    sha256: str
    """Of its weights file."""
    transform: str
    """What happens to a picture before the network sees it, in words."""
    shape: tuple[int, int, int]
    """(C, H, W) of the pictures that it reads."""
    classes: tuple[str, ...]
    network: Classifier
    device: torch.device

    def read(self, levels: np.ndarray, *, batch_size: int = 512, progress: bool = False) -> Reading:
        """Read pictures; batch size and order change the numbers by float32 rounding alone.

        Args:
            levels: uint8 (N, C, H, W), without padding.

        Raises UsageError for pictures of another shape.
        """
        if levels.dtype != np.uint8 or levels.shape[1:] != self.shape:
            raise UsageError(
                f"extractor {self.name}: found pictures of {_shape(levels.shape[1:])} ({levels.dtype}), expected "
                f"{_shape(self.shape)} (uint8); choose another with --extractor"
            )
        parts: list[Reading] = []
        with progress_bar(f"{self.name} features", len(levels), "image", show=progress) as bar, torch.inference_mode():
            for start in range(0, len(levels), batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(levels[start : start + batch_size]))
                with batch_fits(len(batch)):
                    features, logits = self.network(batch.to(self.device))
                parts.append(Reading(features.cpu().numpy(), logits.softmax(1).cpu().numpy()))
                bar.update(len(batch))
        return Reading(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _shape(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height}x{width} pixels, {channels} channel{'s' if channels > 1 else ''}"
