"""Where a number comes from: everything that would have to be the same for it to come out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ddpm.config import SamplingSection
from ddpm.evaluate.extractor import Extractor
from ddpm.evaluate.reference import Reference
from ddpm.generate import Model, network_calls


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Stored beside every number."""

    samples: int
    """Images measured."""
    samples_from: str | None
    """File or folder they were read from; None: drawn for this."""
    samples_sha256: str
    """Of their pixels."""
    checkpoint: str | None
    checkpoint_sha256: str | None
    step: int | None
    """Training steps behind the checkpoint."""
    weights: str | None
    """ema or raw."""
    precision: str | None
    sampler: str | None
    steps: int | None
    network_calls: int | None
    seed: int | None
    sampling: dict[str, Any] | None
    """The sampling settings that decide what the images look like."""
    data: str
    reference_split: str
    reference_size: int
    reference_sha256: str
    reference_key: str
    unseen_split: str | None
    unseen_size: int | None
    unseen_sha256: str | None
    extractor: str
    extractor_sha256: str
    transform: str
    ddpm: str
    """Version of this package."""
    torch: str


def provenance(
    samples: int,
    samples_sha256: str,
    reference: Reference,
    unseen: Reference | None,
    extractor: Extractor,
    *,
    checkpoint: str | None = None,
    model: Model | None = None,
    settings: SamplingSection | None = None,
    samples_from: str | None = None,
) -> Provenance:
    """The provenance of samples that a model drew with `settings`, or that came from a file."""
    from importlib.metadata import version

    drawn = model is not None and settings is not None
    return Provenance(
        samples=samples,
        samples_from=samples_from,
        samples_sha256=samples_sha256,
        checkpoint=checkpoint if drawn else None,
        checkpoint_sha256=model.sha256 if model and drawn else None,
        step=model.step if model and drawn else None,
        weights=model.weights if model and drawn else None,
        precision=model.precision if model and drawn else None,
        sampler=settings.sampler if settings else None,
        steps=(settings.steps or model.diffusion.schedule.T) if model and settings else None,
        network_calls=network_calls(model, settings) if model and settings else None,
        seed=settings.seed if settings else None,
        sampling=settings.model_dump(exclude={"batch_size"}, exclude_none=True) if settings else None,
        data=reference.source,
        reference_split=reference.split,
        reference_size=len(reference),
        reference_sha256=reference.sha256,
        reference_key=reference.key,
        unseen_split=unseen.split if unseen else None,
        unseen_size=len(unseen) if unseen else None,
        unseen_sha256=unseen.sha256 if unseen else None,
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        transform=extractor.transform,
        ddpm=version("ddpm"),
        torch=torch.__version__,
    )
