"""Where a number comes from: everything that would have to be the same for it to come out again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.config import SamplingSection
from ddpm.errors import DDPMError
from ddpm.evaluate.drawing import IN_SHARES, UNNAMED
from ddpm.evaluate.extractor import Extractor
from ddpm.evaluate.reference import Reference, key_of
from ddpm.generate import Model, network_calls


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How samples were drawn."""

    checkpoint: str
    checkpoint_sha256: str
    step: int
    """Training steps behind the checkpoint."""
    weights: str
    """ema or raw."""
    precision: str
    sampler: str
    steps: int
    network_calls: int
    """An image."""
    seed: int
    settings: dict[str, Any]
    """All sampling settings that decide what the images look like."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Stored beside every number."""

    samples: int
    """Images measured."""
    samples_sha256: str
    """Of their shape and pixels."""
    drawn: Origin | None
    """None for samples that were read from files."""
    samples_from: str | None
    """The file or folder; None if they were drawn."""
    samples_settings: dict[str, Any] | None
    """What the folder's settings.json says of them; nobody checked it."""
    data: str
    reference_split: str
    reference_size: int
    reference_sha256: str
    reference_key: str
    """Of the cached features."""
    unseen_split: str | None
    unseen_size: int | None
    unseen_sha256: str | None
    extractor: str
    extractor_sha256: str
    extractor_mark: str | None
    """"unverified", where nobody could check its numbers against published ones."""
    transform: str
    ddpm: str
    """Version of this package."""
    torch: str

    @property
    def key(self) -> str:
        """A short name for all of it; the same evaluation again has the same."""
        return key_of(asdict(self))[:12]


def provenance(
    samples: np.ndarray,
    reference: Reference,
    unseen: Reference | None,
    extractor: Extractor,
    *,
    drawn: tuple[str, Model, SamplingSection] | None = None,
    samples_from: Path | None = None,
) -> Provenance:
    """The provenance of what is measured on samples, uint8 (N, H, W, C).

    Args:
        drawn: the checkpoint's path, its model and the sampling settings, if they were drawn.
        samples_from: where they were read, if they were.
    """
    from importlib.metadata import version

    return Provenance(
        samples=len(samples),
        samples_sha256=hashlib.sha256(repr(samples.shape).encode() + np.ascontiguousarray(samples).data).hexdigest(),
        drawn=drawn and _origin(*drawn),
        samples_from=str(samples_from) if samples_from else None,
        samples_settings=_settings_beside(samples_from) if samples_from else None,
        data=reference.source,
        reference_split=reference.split,
        reference_size=len(reference),
        reference_sha256=reference.sha256,
        reference_key=reference.key,
        unseen_split=None if unseen is None else unseen.split,
        unseen_size=None if unseen is None else len(unseen),
        unseen_sha256=None if unseen is None else unseen.sha256,
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        extractor_mark=extractor.mark or None,
        transform=extractor.transform,
        ddpm=version("ddpm"),
        torch=torch.__version__,
    )


def _origin(checkpoint: str, model: Model, settings: SamplingSection) -> Origin:
    said = settings.model_dump(mode="json", exclude={"batch_size"}, exclude_none=True)
    if settings.classes in UNNAMED:
        said["classes"] = IN_SHARES
    return Origin(
        checkpoint=checkpoint,
        checkpoint_sha256=model.sha256,
        step=model.step,
        weights=model.weights,
        precision=model.precision,
        sampler=settings.sampler,
        steps=settings.steps or model.diffusion.schedule.T,
        network_calls=network_calls(model, settings),
        seed=settings.seed,
        settings=said,
    )


def _settings_beside(path: Path) -> dict[str, Any] | None:
    """What `ddpm sample` noted of the set that a path is, or lies in."""
    note = (path if path.is_dir() else path.parent) / "settings.json"
    try:
        return dict(json.loads(note.read_text())) if note.exists() else None
    except (OSError, ValueError, TypeError) as error:
        raise DDPMError(f"{note}: is damaged ({error}); remove it if these samples are to be measured") from error
