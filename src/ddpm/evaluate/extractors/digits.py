"""The digit extractor: a small classifier of 28x28 grey digits, trained on MNIST, whose weights ship with the package.

Inception's features were learned on photographs and say little about digits.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.errors import CheckpointError
from ddpm.evaluate.extractors.extractor import Extractor
from ddpm.files import atomic_write

FEATURES = 64
SHAPE = (1, 28, 28)
TRANSFORM = "none: 28x28 grey levels / 255"
SHIPPED = Path(str(files("ddpm") / "evaluate" / "weights" / "digits.safetensors"))
SHA256 = "unset"
"""Of the shipped weights file."""


class DigitNet(nn.Module):
    """Four convolutions, a linear map to 64 features, and one from their positive part to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_block(1, 16, stride=1), *_block(16, 32, stride=2), *_block(32, 64, stride=2), *_block(64, 64, stride=1)
        )
        self.features = nn.Linear(64 * 7 * 7, FEATURES)
        self.classes = nn.Linear(FEATURES, 10)

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 1, 28, 28) -> features (B, 64), logits (B, 10)."""
        x = (levels.float() / 255).contiguous(memory_format=torch.channels_last)
        features = self.features(self.convolutions(x).flatten(1))
        return features, self.classes(features.relu())


def _block(inputs: int, outputs: int, *, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


@dataclass(frozen=True)
class DigitFacts:
    """How weights came to be, and how good they are; kept in the header of their file."""

    accuracy: float
    """On the 10,000 test images of MNIST, in 0..1."""
    epochs: int
    batch_size: int
    learning_rate: float
    shift: int
    seed: int
    recipe: str
    data_sha256: str
    """Fingerprint of the training images and labels."""


def save(path: Path, network: DigitNet, facts: DigitFacts) -> None:
    """Write the weights (float32) and their facts as safetensors, whole or not at all."""
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with atomic_write(path) as file:
        file.write(to_bytes(tensors, {"facts": json.dumps(asdict(facts), sort_keys=True)}))


def digits(device: torch.device | str = "cpu", path: Path = SHIPPED) -> Extractor:
    """The digit extractor, from the shipped weights or from a file that `ddpm extractor train` wrote.

    Raises CheckpointError if the file is missing or damaged, or the shipped one is not the one that was shipped.
    """
    network, _, sha256 = read_file(path)
    device = torch.device(device)
    network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    return Extractor("digits", sha256, TRANSFORM, SHAPE, tuple("0123456789"), network, device)


def read_file(path: Path = SHIPPED) -> tuple[DigitNet, DigitFacts, str]:
    """The network of a weights file, its facts and the file's SHA-256; raises CheckpointError as `digits` does."""
    from safetensors import SafetensorError, safe_open

    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if path == SHIPPED and sha256 != SHA256:
        raise CheckpointError(f"{path}: has SHA-256 {sha256}, expected {SHA256}; install ddpm again")
    network = DigitNet()
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return network, DigitFacts(**facts), sha256
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a digit extractor's weights file: {error}") from error
