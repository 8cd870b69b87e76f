"""What a run's weights can do so far: a few quick samples, and cheap figures of them.

Few samples in few steps: the figures compare the moments of one run, and runs of the same settings. They are no
results; `ddpm evaluate` makes those.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ddpm import training_loop
from ddpm.classes import condition
from ddpm.config import Config
from ddpm.data import ImageSet, ImageStream
from ddpm.device import autocast
from ddpm.distributed import world
from ddpm.evaluate.distances import fid, kid
from ddpm.evaluate.extractor import Extractor, Features, load_extractor
from ddpm.evaluate.nll import subset
from ddpm.evaluate.pixels import Pixels, distance, pixels_of
from ddpm.generate import draw
from ddpm.images import Crop, to_arrays, unpacked
from ddpm.training_loop import TrainingState

REFERENCE = 2000
"""Training images, at most, that previews are compared with: always the same ones."""


class Preview(NamedTuple):
    """A look at the EMA weights."""

    images: np.ndarray
    """The grid's, uint8 (N, H, W, C)."""
    figures: dict[str, float]
    """As they are logged; empty where nothing is measured."""
    pixels: Pixels | None
    """What the monitors look at; None where nothing is measured."""

    @property
    def score(self) -> float | None:
        """The figure that says which of two moments of a run is better: the smaller. None: nothing was measured.

        KID, which has no bias however few samples there are, where an extractor knows the data.
        """
        return self.figures.get("preview/kid", self.figures.get("preview/distance"))


class Previews:
    """Looks at a run: a function of its weights and its configuration alone, so that a resumed run says the same."""

    def __init__(self, config: Config, images: ImageSet | ImageStream):
        """
        Args:
            images: what is trained on.
        """
        self._config, self._crop = config, images.crop
        self._extractor: Extractor | None = None
        self._features: Features | None = None
        self.data: Pixels | None = None
        """Of the training images; None where nothing is measured."""
        # Where the images have to be fetched, only the process whose figures are kept does so.
        if not config.training.preview_measured or (config.data.streamed and not world().first):
            return
        if isinstance(images, ImageStream):
            pictures = images.first(REFERENCE)
        else:
            pictures = images.take(np.sort(subset(len(images), REFERENCE)))
        reference = unpacked(pictures, self._crop)
        self.data = pixels_of(reference)
        if config.data.source == "mnist":
            self._extractor = load_extractor(device="cpu")  # everywhere the same numbers
            self._features = self._extractor(reference)

    def look(self, state: TrainingState) -> Preview:
        """Draw and measure what the EMA weights can do now."""
        training = self._config.training
        samples = drawn(self._config, state, max(training.preview_samples, training.preview_measured), self._crop)
        shown = samples[: training.preview_samples]
        if self.data is None:
            return Preview(shown, {}, None)
        samples = samples[: training.preview_measured]
        own = pixels_of(samples)
        figures = {
            "preview/distance": distance(own, self.data),
            "preview/mean_drift": float(np.abs(own.mean - self.data.mean).mean()),
            "preview/std_drift": float(np.abs(own.std - self.data.std).mean()),
            "preview/roughness": float(own.roughness.mean()),
        }
        if self._extractor is not None and self._features is not None:
            read = self._extractor(samples)
            figures["preview/kid"] = kid(read.vectors, self._features.vectors).value
            figures["preview/fid"] = fid(read.vectors, self._features.vectors)
            figures["preview/confidence"] = float(read.probabilities.max(1).mean())
        return Preview(shown, figures, own)


@torch.no_grad()
def drawn(config: Config, state: TrainingState, count: int, crop: Crop | None) -> np.ndarray:
    """Samples 0..count-1 of the EMA weights in the preview's few steps: uint8 (N, H, W, C)."""
    diffusion, training = training_loop.build_diffusion(config), config.training
    # What fits in training, with its gradients, fits here.
    size = min(config.sampling.batch_size, training.batch_size // training.accumulation)
    steps = min(training.preview_steps, diffusion.schedule.T)
    settings = config.sampling.model_copy(update={"steps": steps})
    parts = []
    for start in range(0, count, size):
        numbers = range(start, min(start + size, count))
        process, net = diffusion, condition(state.ema, config, numbers, config.sampling, state.device)
        if diffusion.variance != "learned_range":
            # With few steps beta leaves visible noise, and a variance learned for t -> t-1 says nothing of them.
            process, net = diffusion.with_posterior_variance(net)
        with autocast(state.precision, state.device):
            *_, last = draw(process, net, config, numbers, settings, state.device)
        parts.append(to_arrays(last.x, crop))
    return np.concatenate(parts)
