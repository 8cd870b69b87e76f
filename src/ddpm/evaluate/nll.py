"""The bound on the likelihood of a data split, in bits per dimension (Sections 3.3 and 4.3)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ddpm import data
from ddpm.conditioning import Conditional, LabelledNet
from ddpm.data import ImageSet, Split
from ddpm.device import batch_fits
from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.distributed import collected, world
from ddpm.errors import DataError, DDPMError, UsageError
from ddpm.files import atomic_write, write_json, write_text
from ddpm.gaussian import DecoderForm
from ddpm.generate import Model
from ddpm.images import Crop, to_model
from ddpm.likelihood import Bound, Term, collect, prior_term, rmse_of_levels, strata, term_at
from ddpm.noise import ImageNoise, Purpose, rng
from ddpm.progress import progress_bar
from ddpm.schedule import spaced_steps


class Mean(NamedTuple):
    """An average over images."""

    value: float
    error: float
    """Its standard error; 0 for a single image, which has none."""

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.error:.4f}"

    def times(self, factor: float) -> Mean:
        return Mean(self.value * factor, self.error * factor)


Told = Literal["labels", "no class"]


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The bound on some images, term by term."""

    bound: Bound
    """A part's column is its one measured term times its timesteps."""
    parts: Sequence[range]
    """The timesteps that each column stands for, ascending; one each where nothing is estimated."""
    dims: int
    """Dimensions of an image as the model sees it."""
    picture_dims: int
    """Dimensions of the picture without its padding."""
    told: Told | None = None
    """What a class-conditional network was told; None: it knows no classes."""

    @property
    def is_estimate(self) -> bool:
        """Whether some timesteps were left out."""
        return any(len(part) > 1 for part in self.parts)

    @property
    def prior(self) -> Mean:
        """L_T; all are in bits per dimension, padding included."""
        return mean_of(self.bound.bits[:, -1])

    @property
    def transitions(self) -> Mean:
        """The sum of L_{t-1}, t = 2..T."""
        return mean_of(self.bound.bits[:, 1:-1].sum(1))

    @property
    def decoder(self) -> Mean:
        """L_0."""
        return mean_of(self.bound.bits[:, 0])

    @property
    def total(self) -> Mean:
        """The bound on -log2 p(x_0)."""
        return mean_of(self.bound.total)

    @property
    def rate(self) -> Mean:
        """L_1 + ... + L_T: what telling the receiver x_1 costs (Section 4.3); the rest, L_0, is the distortion."""
        return mean_of(self.bound.rate[:, 0])

    @property
    def padding(self) -> float:
        """Dimensions seen for each of the picture: the factor from bits per dimension to bits per its dimension.

        All bits count, those of the border too: without them it would be no bound.
        """
        return self.dims / self.picture_dims

    def numbers(self) -> dict[str, Any]:
        """The sums with their standard errors, as JSON has them."""
        sums = {"prior": self.prior, "transitions": self.transitions, "decoder": self.decoder, "total": self.total}
        sums["rate"] = self.rate
        values: dict[str, Any] = {
            "images": len(self.bound.bits),
            "timesteps": self.parts[-1].stop - 1,
            "timesteps_visited": len(self.parts),
            "estimate": self.is_estimate,
            "scaling": SCALING if self.is_estimate else None,
            "told": self.told,
            "dimensions": self.dims,
            "bits_per_dimension": {name: mean._asdict() for name, mean in sums.items()},
        }
        if self.padding != 1:
            values["picture_dimensions"] = self.picture_dims
            values["bits_per_picture_dimension"] = {n: m.times(self.padding)._asdict() for n, m in sums.items()}
        return values

    def rows(self) -> list[dict[str, float]]:
        """The table per timestep, ascending: one row for each part, then L_T's."""
        rows: list[dict[str, float]] = []
        for k, part in enumerate(self.parts):
            term, rate = mean_of(self.bound.bits[:, k]), mean_of(self.bound.rate[:, k])
            rows.append(
                {
                    "t": part.start,
                    "t_last": part.stop - 1,
                    "bits_per_dimension": term.value,
                    "standard_error": term.error,
                    "rate": rate.value,
                    "distortion_rmse": float(rmse_of_levels(self.bound.x0_mse[:, k].mean())),
                    "x0_mse": float(self.bound.x0_mse[:, k].mean()),
                    "eps_mse": float(self.bound.eps_mse[:, k].mean()),
                }
            )
        return rows


CONDITIONAL = {
    "labels": "the model was told each image's class: the bound is on -log2 p(x | class)",
    "no class": "the model was told no class: the bound is that of the unconditional model within",
}
"""What is said of a class-conditional model's numbers."""

SCALING = (
    "each image visits one timestep, drawn evenly, of each part of 1..T; its term counts once for every timestep "
    "of the part, which leaves the expected total as it is. The standard errors cover the choice of timesteps"
)


def mean_of(values: Tensor) -> Mean:
    """The average of one number an image, (N,)."""
    return Mean(float(values.mean()), float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0)


def measure(
    diffusion: Diffusion,
    net: Net | LabelledNet,
    levels: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    parts: Sequence[range] | None = None,
    clip: Clip = True,
    decoder: DecoderForm = "exact",
    seed: int = 0,
    batch_size: int = 64,
    crop: Crop | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Likelihood:
    """The bound on images; the same numbers for any batch size.

    Args:
        levels: uint8 (N, C, H, W).
        labels: (N,), the class that `net` is told of each image; None: it is called without.
        parts: see `likelihood.strata`; None: every timestep.
        clip: how each estimate of x_0 is kept in range; the authors clip.
        seed: image i's noise and timesteps are functions of it and i.
        crop: where the picture lies, if it is padded.
    """
    count, T = len(levels), diffusion.schedule.T
    parts = strata(T) if parts is None else parts
    floor = diffusion.floor_log_var(spaced_steps(T))
    bounds = []
    starts = world().share(range(0, count, batch_size))
    with progress_bar("likelihood", len(starts) * len(parts), "step", show=progress) as bar:
        for start in starts:
            batch = torch.from_numpy(levels[start : start + batch_size])
            indices = range(start, start + len(batch))
            noise = ImageNoise(seed, indices, batch.shape[1:], device, purpose=Purpose.LIKELIHOOD)
            chosen = np.stack([rng(seed, Purpose.LIKELIHOOD_TIME, i).random(len(parts)) for i in indices])
            bar.set_postfix_str(f"images {start}-{indices[-1]}")
            with batch_fits(len(batch)):
                x0 = to_model(batch.to(device)).contiguous(memory_format=torch.channels_last)
                told: Net = net
                if labels is not None:
                    of_batch = torch.from_numpy(labels[start : start + len(batch)]).to(device)
                    told = Conditional(cast(LabelledNet, net), of_batch)
                terms = []
                for k in reversed(range(len(parts))):
                    part = parts[k]
                    t = part.start if len(part) == 1 else _within(part, chosen[:, k]).to(device)
                    eps = noise(part.start)
                    term = term_at(diffusion, told, x0, t, t - 1, eps, floor_log_var=floor, clip=clip, decoder=decoder)
                    terms.append(Term(term.bits * len(part), term.x0_mse, term.eps_mse))
                    bar.update()
                bounds.append(collect(terms, prior_term(diffusion, x0)))
    bound = Bound(*(torch.cat(part) for part in zip(*collected(bounds), strict=True)))
    if bound.bits.isnan().any():
        raise DDPMError("the bound is not a number: the network's answers are not, or T is too small for its variance")
    dims = int(np.prod(levels.shape[1:]))
    picture = levels.shape[1] * crop.height * crop.width if crop else dims
    return Likelihood(bound, parts, dims, picture, None if labels is None else "labels")


def measure_model(
    model: Model, images: ImageSet, index: np.ndarray, *, told: bool = True, **settings: Any
) -> Likelihood:
    """`measure` of a model on some images of a split; one with classes is told each image's.

    Args:
        index: places of the images in the split.
        told: False: a model with classes is told none.
        settings: of `measure`: parts, decoder, seed, batch_size, progress.

    Raises UsageError where the images do not say the model's classes.
    """
    classes = model.config.network.classes
    labels = labels_of_images(model, images)[index] if classes and told else None
    result = measure(
        model.diffusion,
        model.network,
        images.take(index),
        labels=labels,
        crop=model.data.crop,
        device=model.device,
        **settings,
    )
    return replace(result, told=("labels" if told else "no class") if classes else None)


def labels_of_images(model: Model, images: ImageSet) -> np.ndarray:
    """The labels, (N,), of images of a model with classes. Raises UsageError where they are not the model's classes."""
    if images.labels is None or images.class_names != model.data.class_names:
        found = "no labels" if images.labels is None else f"the classes {', '.join(images.class_names[:12])}"
        raise UsageError(
            f"classes: these images have {found}, but the model was trained with the classes "
            f"{', '.join(model.data.class_names[:12])}. Measure the unconditional model within with --class none"
        )
    return images.labels


def _within(part: range, share: np.ndarray) -> Tensor:
    """The timesteps that lie at `share`, (B,) in [0, 1), of a part."""
    return torch.from_numpy(part.start + (share * len(part)).astype(np.int64))


def evaluated_split(model: Model) -> Split:
    """The split that a model is judged on: the source's own test images, else the held-out ones.

    Raises UsageError where there are neither.
    """
    if model.config.data.source not in ("digits", "folder"):
        return "test"
    if model.config.data.held_out:
        return "held_out"
    raise UsageError(
        f"data.source: {model.config.data.source} has no test images, and this model was trained on all its images "
        "(data.held_out: 0). Its likelihood on those is --split train; train with data.held_out for an honest one"
    )


def load_split(model: Model, split: Split, *, root: str | None = None, progress: bool = True) -> ImageSet:
    """The images of a split, as the model's data section describes them.

    Args:
        root: where they lie now, if not where they lay in training.

    Raises DataError if `train` gives other images than the model was trained on.
    """
    section = model.config.data.model_copy(update={"root": root} if root else {})
    images = data.load(section, split, progress=progress)
    if split == "train" and images.fingerprint != model.data.fingerprint:
        raise DataError(
            f"data.source: {section.source} now gives other images ({len(images):,}, SHA-256 "
            f"{images.fingerprint[:12]}) than the model was trained on ({model.data.amount}, "
            f"{model.data.fingerprint[:12]}). Point to those with --data-root"
        )
    return images


def subset(count: int, wanted: int | None) -> np.ndarray:
    """Which of `count` images are evaluated: all, or a fixed draw; fewer are always the first of more.

    A draw, since the first images of a folder may all be of one class.
    """
    return rng(0, Purpose.SUBSET).permutation(count)[:wanted]


def write_tables(folder: Path, name: str, result: Likelihood, facts: dict[str, Any], index: np.ndarray) -> list[Path]:
    """Write the sums (JSON), the table per timestep (CSV) and the raw terms of each image (NPZ).

    Args:
        index: places of the images in their split.
    """
    paths = [folder / f"{name}.{suffix}" for suffix in ("json", "csv", "npz")]
    write_json(paths[0], facts | result.numbers())
    rows, text = result.rows(), io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(paths[1], text.getvalue())
    with atomic_write(paths[2]) as file:
        np.savez(
            file,
            bits=result.bound.bits.numpy(),
            x0_mse=result.bound.x0_mse.numpy(),
            eps_mse=result.bound.eps_mse.numpy(),
            t=np.array([part.start for part in result.parts]),
            t_last=np.array([part.stop - 1 for part in result.parts]),
            index=index,
        )
    return paths
