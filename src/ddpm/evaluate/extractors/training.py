"""The digit extractor's recipe: everything in it is a function of the seed and the position."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ddpm import data
from ddpm.config import DataSection
from ddpm.data import ImageSet, Split
from ddpm.device import synchronize
from ddpm.errors import DataError
from ddpm.evaluate.extractors.digits import SHAPE, DigitFacts, DigitNet
from ddpm.noise import Purpose, rng, torch_seed
from ddpm.progress import progress_bar

RECIPE = (
    "MNIST's 60,000 training images, each shifted by up to `shift` pixels either way; cross-entropy; Adam with "
    "decoupled weight decay 0.01; the learning rate rises over the first fifth and falls to 0, linearly"
)


class Recipe(NamedTuple):
    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 4e-3
    shift: int = 2
    seed: int = 0


def mnist(split: Split, root: str | None = None, *, progress: bool = True) -> ImageSet:
    """MNIST as the digit extractor sees it."""
    return data.load(DataSection(source="mnist", root=root, image_size=28, channels=1), split, progress=progress)


def train(
    images: ImageSet, test: ImageSet, recipe: Recipe, device: torch.device, *, progress: bool = True
) -> tuple[DigitNet, DigitFacts]:
    """Train a digit extractor; the same machine and thread count give the same weights again."""
    if images.labels is None or test.labels is None:
        raise DataError("the digit extractor needs labelled images")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(recipe.seed, Purpose.EXTRACTOR))
        network = DigitNet()
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    levels, labels, per_epoch = images.images, images.labels, len(images) // recipe.batch_size
    total = per_epoch * recipe.epochs
    with progress_bar("digit extractor", total, "step", show=progress) as bar:
        for step in range(total):
            epoch, place = divmod(step, per_epoch)
            if place == 0:
                order = rng(recipe.seed, Purpose.EXTRACTOR, 0, epoch).permutation(len(images))
            chosen = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
            batch = torch.from_numpy(shifted(levels[chosen], recipe.shift, rng(recipe.seed, Purpose.EXTRACTOR, 1, step)))
            rate = recipe.learning_rate * min((step + 1) / (total / 5), (total - step) / (total * 4 / 5))
            for group in optimizer.param_groups:
                group["lr"] = rate
            _, logits = network(batch.to(device))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[chosen]).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % 50 == 0:
                bar.set_postfix_str(f"loss {loss.item():.4f}")
            bar.update()
    synchronize(device)
    reached = accuracy(network, test, device)
    return network.cpu(), DigitFacts(reached, *recipe, RECIPE, images.fingerprint)


def shifted(levels: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """Each picture moved by up to `most` pixels each way, with black coming in: uint8 (B, 1, H, W)."""
    count, _, height, width = levels.shape
    frame = np.pad(levels, ((0, 0), (0, 0), (most, most), (most, most)))
    down, right = generator.integers(0, 2 * most + 1, (2, count, 1))
    rows, columns = down + np.arange(height), right + np.arange(width)
    return frame[np.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]].reshape(count, *SHAPE)


@torch.inference_mode()
def accuracy(network: DigitNet, images: ImageSet, device: torch.device) -> float:
    """Share of the images whose digit is named rightly."""
    assert images.labels is not None
    network.eval()
    right = 0
    for start in range(0, len(images), 1000):
        chosen = np.arange(start, min(start + 1000, len(images)))
        _, logits = network(torch.from_numpy(images.take(chosen)).to(device))
        right += int((logits.argmax(1).cpu().numpy() == images.labels[chosen]).sum())
    return right / len(images)
