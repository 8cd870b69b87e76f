"""The real images that a model's samples are measured by."""

from __future__ import annotations

from ddpm.data import Split
from ddpm.errors import UsageError
from ddpm.evaluate.extractors import Extractor
from ddpm.evaluate.nll import evaluated_split, load_split
from ddpm.evaluate.reference import Reference, read_reference
from ddpm.generate import Model


def sides(
    model: Model, extractor: Extractor, *, root: str | None = None, batch_size: int = 512, progress: bool = True
) -> tuple[Reference, Reference | None]:
    """The images that a model was trained on, and those of its data that it was not; None if there are none."""

    def read(split: Split) -> Reference:
        images = load_split(model, split, root=root, progress=progress)
        name = model.config.data.source
        return read_reference(images, name, split, extractor, batch_size=batch_size, progress=progress)

    try:
        other = evaluated_split(model)
    except UsageError:
        return read("train"), None
    return read("train"), read(other)
