"""Data sets by Hugging Face's `datasets` (an extra): by name from the hub, or from a local path."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm.config import DataSection
from ddpm.data.decode import open_picture
from ddpm.data.find import stat_entry
from ddpm.data.records import Contents, Item, Source
from ddpm.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_LABELS = ("label", "labels", "fine_label", "class", "category", "target")
"""Columns that hold the class, by their usual names."""


def huggingface_source(config: DataSection, part: str) -> Source:
    """The pictures of a split.

    Args:
        part: "train" or "test".

    Raises DataError: no such data set, split or column; or the package is missing.
    """
    datasets = _package()
    if not config.root:
        raise DataError("data.root: is missing; name a data set of the hub, such as ylecun/mnist, or a local path")
    try:
        table = _open(datasets, config.root, part)
    except DataError:
        raise
    except Exception as error:  # the library raises its transport's errors too
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"data.root: {config.root}: cannot be read as a data set: {lines[0]}") from error
    image = _image_column(datasets, config, table)
    label = _label_column(config, table, image)
    files = sorted({Path(entry["filename"]) for entry in table.cache_files})
    manifest = [stat_entry(path) for path in files]
    manifest.append((f"{table._fingerprint} {image} {label}", len(table), 0))
    return Source(f"huggingface {part}", manifest, partial(_read, datasets, table, image, label))


def _open(datasets: Any, root: str, part: str) -> Any:
    """One split of a data set. Raises DataError for a split that is not there, and whatever the library raises."""
    path = Path(root).expanduser()
    if path.exists() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        found = datasets.load_from_disk(str(path))
    else:
        found = datasets.load_dataset(str(path) if path.exists() else root)
    if not isinstance(found, Mapping):  # saved without splits
        if part == "train":
            return found
        raise DataError(f"data.root: {root}: has no split {part!r}: it was saved as one table")
    if part not in found:
        raise DataError(f"data.root: {root}: has no split {part!r}; it has {', '.join(map(str, found))}")
    return found[part]


def _image_column(datasets: Any, config: DataSection, table: Any) -> str:
    names: list[str] = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    wanted = config.image_column
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"data.image_column: found {wanted!r}, which holds no pictures; some do: {_of(names)}")
        return wanted
    if len(names) != 1:
        raise DataError(
            f"data.image_column: is missing; {config.root} has {len(names)} columns of pictures ({_of(names)}) "
            f"among {_of(table.features)}"
        )
    return names[0]


def _label_column(config: DataSection, table: Any, image: str) -> str | None:
    others: list[str] = [name for name in table.features if name != image]
    if config.label_column is not None:
        if config.label_column not in others:
            raise DataError(f"data.label_column: found {config.label_column!r}, expected one of {_of(others)}")
        return config.label_column
    with_names = [name for name in others if hasattr(table.features[name], "names")]
    if len(with_names) == 1:
        return with_names[0]
    return next((name for name in _LABELS if name in others), None)


def _read(datasets: Any, table: Any, image: str, label: str | None) -> Contents:
    labels, names = _labels(table, label)
    # The bytes as they lie there: decoded as any other picture is, and by our own readers alone.
    raw = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    items = [Item(f"row {i}", partial(_picture, raw, image, i), labels[i]) for i in range(len(raw))]
    return Contents(items, names)


def _picture(table: Any, column: str, row: int) -> Image:
    entry = table[row][column]
    if not entry or (entry.get("bytes") is None and entry.get("path") is None):
        raise ValueError("is empty")
    if entry.get("bytes") is not None:
        return open_picture(io.BytesIO(entry["bytes"]))
    return open_picture(Path(entry["path"]))


def _labels(table: Any, column: str | None) -> tuple[Sequence[int | None], tuple[str, ...]]:
    """The number of each row's class, and the classes' names."""
    if column is None:
        return [None] * len(table), ()
    feature, values = table.features[column], list(table[column])
    if hasattr(feature, "names"):
        return [None if v is None or v < 0 else int(v) for v in values], tuple(feature.names)
    if any(not isinstance(v, str | int | np.integer) or isinstance(v, bool) for v in values):
        odd = next(v for v in values if not isinstance(v, str | int | np.integer) or isinstance(v, bool))
        raise DataError(f"data.label_column: {column} holds {odd!r}, expected texts or whole numbers")
    found = sorted(set(values))
    number = {value: i for i, value in enumerate(found)}
    return [number[v] for v in values], tuple(map(str, found))


def _of(names: Any) -> str:
    return ", ".join(names) or "none"


def _package() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError("data.source: huggingface needs the package datasets: pip install 'ddpm[datasets]'") from None
    return datasets
