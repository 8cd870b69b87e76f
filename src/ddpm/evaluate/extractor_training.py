"""How the digit extractor is made: `ddpm extractor train`. The same command gives the same weights on one machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm import data
from ddpm.config import DataSection
from ddpm.data import ImageSet
from ddpm.errors import DDPMError
from ddpm.evaluate.extractor import METADATA, SIDE, TRANSFORM, DigitNet, Extractor, transform, weights_sha256
from ddpm.files import atomic_write
from ddpm.generate import file_sha256
from ddpm.images import to_model, unpacked
from ddpm.noise import Purpose, rng, torch_seed
from ddpm.progress import progress_bar

BATCH, RATE, SHIFT = 128, 2e-3, 2
RECIPE = (
    f"MNIST's 60,000 training images, shifted by up to {SHIFT} pixels; Adam with decoupled weight decay 0.01, "
    f"{RATE} falling along a cosine, batches of {BATCH}"
)


class Trained(NamedTuple):
    """A finished extractor."""

    path: Path
    sha256: str
    accuracy: float
    """On MNIST's 10,000 test images."""


def load_mnist(root: str | None, split: data.Split) -> ImageSet:
    """MNIST in its own size."""
    section = DataSection(source="mnist", root=root, image_size=SIDE, channels=1)
    return data.load(section, split, progress=True)


def train_extractor(
    out: Path, *, root: str | None = None, epochs: int = 4, seed: int = 0, progress: bool = True
) -> Trained:
    """Train on the CPU, write the weights (float32 safetensors, recipe in the metadata) and test them."""
    images = load_mnist(root, "train")
    if images.labels is None:
        raise DDPMError("the digit extractor needs MNIST's labels")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Purpose.INIT))
        network = DigitNet()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    total = epochs * (len(images) // BATCH)
    with progress_bar("training", total, "step", show=progress) as bar:
        for step, (x, y) in enumerate(_batches(images, total, seed)):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 + math.cos(math.pi * step / total)) / 2
            loss = F.cross_entropy(network(x)[1], y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()
    accuracy = accuracy_on(load_mnist(root, "test"), network)
    write_extractor(out, network.state_dict(), {"epochs": epochs, "seed": seed, "torch": torch.__version__}, accuracy)
    return Trained(out, file_sha256(out), accuracy)


def write_extractor(out: Path, weights: Mapping[str, Tensor], how: dict[str, Any], accuracy: float) -> None:
    """Write the weights with what is to be known of them in the metadata: the recipe, the accuracy, their own hash."""
    from safetensors.torch import save

    said = {"recipe": RECIPE, **how, "test_accuracy": accuracy, "weights_sha256": weights_sha256(weights)}
    tensors = {name: value.contiguous() for name, value in weights.items()}
    with atomic_write(out) as file:
        file.write(save(tensors, {METADATA: json.dumps(said)}))  # one entry: of several the order is not fixed


def accuracy_on(images: ImageSet, network: DigitNet) -> float:
    """The share of labelled digits that a network names rightly."""
    assert images.labels is not None
    reader = Extractor("digits", "", TRANSFORM, network.eval(), torch.device("cpu"), transform)
    return float((reader(unpacked(images.images)).probabilities.argmax(1) == images.labels).mean())


def _batches(images: ImageSet, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step, batch in zip(range(count), data.batches(images, BATCH, seed=seed), strict=False):
        assert batch.labels is not None
        shifts = rng(seed, Purpose.FLIP, step).integers(0, 2 * SHIFT + 1, (BATCH, 2))
        padded = np.pad(batch.images, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
        cut = [image[:, y : y + SIDE, x : x + SIDE] for image, (y, x) in zip(padded, shifts, strict=True)]
        x0 = to_model(torch.from_numpy(np.stack(cut))).contiguous(memory_format=torch.channels_last)
        yield x0, torch.from_numpy(batch.labels)
