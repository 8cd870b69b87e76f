"""Data sets by Hugging Face's `datasets` (an extra): by name from the hub, or from a local path."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm.config import DataSection
from ddpm.data.decode import open_picture
from ddpm.data.find import stat_entry
from ddpm.data.records import Contents, Item, Sample, Source
from ddpm.data.stream import ImageStream, whole_label
from ddpm.errors import ConfigError, DataError

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
    table = _table(datasets, config, part)
    image = _image_column(datasets, config, table)
    label = _label_column(config, table, image)
    files = sorted({Path(entry["filename"]) for entry in table.cache_files})
    manifest = [stat_entry(path) for path in files]
    manifest.append((f"{table._fingerprint} {image} {label}", len(table), 0))
    return Source(f"huggingface {part}", manifest, partial(_read, datasets, table, image, label))


def huggingface_stream(config: DataSection, classes: int | None) -> ImageStream:
    """The shards of the split `train`, as the library lists them; no picture is read.

    Args:
        classes: how many the network is told; None: labels are not read.

    Raises DataError: as `huggingface_source`; ConfigError: the data set has another number of classes.
    """
    datasets = _package()
    table = _table(datasets, config, "train", streaming=True)
    if not hasattr(table, "num_shards"):  # saved by save_to_disk: mapped into memory, not loaded
        table = table.to_iterable_dataset(num_shards=max(1, len(table.cache_files)))
    with _said_of(f"data.root: {config.root}"):
        table = table._resolve_features()
    image = _image_column(datasets, config, table)
    label = None if classes is None else _label_column(config, table, image)
    names = tuple(map(str, range(classes or 0)))
    if classes is not None:
        if label is None:
            raise DataError(
                f"data.label_column: is missing; none of {_of(table.features)} is known to hold classes. Name one, or "
                "remove network.classes"
            )
        names = tuple(getattr(table.features[label], "names", names))
        if len(names) != classes:
            raise ConfigError(
                f"network.classes: {classes}, but {label} of {config.root} has {len(names)} ({', '.join(names[:12])}). "
                f"Set network.classes: {len(names)}"
            )
    raw = table.select_columns([image, label] if label else [image]).cast_column(image, datasets.Image(decode=False))
    shards = _shard_names(table)

    def read(number: int) -> Iterator[Sample]:
        with _said_of(shards[number]):
            for i, row in enumerate(raw.shard(len(shards), number)):
                content = _content(row[image])
                known = whole_label(row[label], classes, f"{shards[number]}: row {i}") if label and classes else None
                yield Sample(f"row {i}", content, known, "" if content else "is empty")

    return ImageStream(shards, read, config, names)


def _shard_names(table: Any) -> tuple[str, ...]:
    """The files of a stream's shards where the library lists one each, else their numbers."""
    count = table.num_shards
    for value in getattr(table._ex_iterable, "kwargs", {}).values():
        if isinstance(value, list) and len(value) == count and all(isinstance(name, str) for name in value):
            return tuple(value)
    return tuple(f"shard {i} of {count}" for i in range(count))


def _content(entry: Any) -> bytes:
    """The bytes of a picture's file; none where there is no picture."""
    if not entry or (entry.get("bytes") is None and entry.get("path") is None):
        return b""
    if entry.get("bytes") is not None:
        return bytes(entry["bytes"])
    import fsspec

    with fsspec.open(entry["path"], "rb") as file:
        return bytes(file.read())


def _table(datasets: Any, config: DataSection, part: str, *, streaming: bool = False) -> Any:
    """A split, opened. Raises DataError."""
    if not config.root:
        raise DataError("data.root: is missing; name a data set of the hub, such as ylecun/mnist, or a local path")
    with _said_of(f"data.root: {config.root}"):
        return _open(datasets, config.root, part, streaming)


@contextmanager
def _said_of(where: str) -> Iterator[None]:
    """Whatever the library raises, its transport's errors too, as a DataError that says where."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{where}: cannot be read as a data set: {lines[0]}") from error


def _open(datasets: Any, root: str, part: str, streaming: bool) -> Any:
    """One split of a data set. Raises DataError for a split that is not there, and whatever the library raises."""
    path = Path(root).expanduser()
    if path.exists() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        found = datasets.load_from_disk(str(path))
    else:
        found = datasets.load_dataset(str(path) if path.exists() else root, streaming=streaming)
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
