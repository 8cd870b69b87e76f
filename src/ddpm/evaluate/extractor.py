"""The digit extractor: a small classifier of MNIST's digits whose features and probabilities judge digit images.

Inception's features know photographs, not digits. The weights come with the package; `extractor_training` is how they
were made.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.device import batch_fits, choose_device
from ddpm.errors import DDPMError
from ddpm.generate import file_sha256

SIDE = 28
FEATURES = 64
CLASSES = 10
BATCH = 500
TRANSFORM = f"grey by ITU-R 601, centred in a square of black, resized to {SIDE}x{SIDE} bilinearly (antialiased)"
METADATA = "ddpm"
"""Entry of a weights file's metadata that tells how they were made and how good they are, as JSON."""
SHA256 = "7e41ecd06ac9e2f8c86f6ad9326f373b5472b9ae5a4a6d9dfffdca734293e800"
"""Of the shipped weights' file."""


class DigitNet(nn.Module):
    """(B, 1, 28, 28) in [-1, 1] -> 64 features and the logits of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.features = nn.Linear(64 * 7 * 7, FEATURES)
        self.logits = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(self.body(x).flatten(1))
        return features, self.logits(F.relu(features))


class Features(NamedTuple):
    """What an extractor says of N images."""

    vectors: np.ndarray
    """(N, D) float64."""
    probabilities: np.ndarray
    """(N, K) float64, of the extractor's classes."""


class Extractor(NamedTuple):
    """An extractor, ready to use and named by what it is."""

    name: str
    sha256: str
    transform: str
    network: nn.Module
    """Prepared images -> features and logits."""
    device: torch.device
    prepare: Callable[[np.ndarray], Tensor]
    """uint8 (B, H, W, C) -> what the network sees, as `transform` says."""
    batch: int = BATCH
    """Images at a time; changes the features by rounding alone."""
    mark: str = ""
    """A word that its numbers carry; empty: none."""

    def __call__(self, images: np.ndarray) -> Features:
        """uint8 (N, H, W, C), of any size, 1 or 3 channels -> features."""
        parts = (self._batch(images[start : start + self.batch]) for start in range(0, len(images), self.batch))
        return _joined(parts)

    @torch.no_grad()
    def _batch(self, images: np.ndarray) -> Features:
        with batch_fits(len(images)):
            vectors, logits = self.network(self.prepare(images).to(self.device))
        return Features(vectors.double().cpu().numpy(), logits.double().softmax(1).cpu().numpy())


def _joined(parts: Iterable[Features]) -> Features:
    vectors, probabilities = zip(*parts, strict=True)
    return Features(np.concatenate(vectors), np.concatenate(probabilities))


def transform(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, C) -> float32 (B, 1, 28, 28) in [-1, 1], as `TRANSFORM` says."""
    x = torch.from_numpy(images.astype(np.float32))
    grey = x[..., 0] if x.shape[-1] == 1 else x @ torch.tensor([0.299, 0.587, 0.114])
    height, width = grey.shape[1:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    square = F.pad(grey[:, None], (left, side - width - left, top, side - height - top))
    if side != SIDE:
        square = F.interpolate(square, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return square / 127.5 - 1


@functools.cache
def shipped() -> Path:
    """The weights that come with the package."""
    return Path(str(resources.files("ddpm.evaluate"))) / "weights" / "digits.safetensors"


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """A hash of the weights alone, whatever is said of them: two extractors of one hash give the same features."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_extractor(path: Path | None = None, *, device: torch.device | str | None = None) -> Extractor:
    """The digit extractor with the shipped weights, or those of `ddpm extractor train`.

    Raises DDPMError: no such file, not an extractor, or the shipped file is not the one that this version was made
    with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file, chosen, network = path or shipped(), choose_device(device), DigitNet()
    try:
        network.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DDPMError(f"{file}: is not a digit extractor: {str(error).splitlines()[0]}") from None
    found = file_sha256(file)
    if path is None and found != SHA256:
        raise DDPMError(f"{file}: SHA-256 {found}, expected {SHA256}: the package is damaged; install it again")
    return Extractor("digits", found, TRANSFORM, network.eval().requires_grad_(False).to(chosen), chosen, transform)
