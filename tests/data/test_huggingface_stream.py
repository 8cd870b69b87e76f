"""Data sets of the library `datasets` that are streamed: shards, columns and labels as when they are packed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ddpm import data
from ddpm.config import DataSection
from ddpm.data import ImageStream, Position
from ddpm.data.records import Sample
from ddpm.errors import ConfigError, DataError
from ddpm.run import train
from tests.data.test_huggingface import library as library
from tests.data.test_huggingface import png, table
from tests.reliability.compare import unlike
from tests.tiny import tiny


@pytest.fixture(autouse=True)
def quiet_library(library: Any) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyarrow's and the library's own
        yield


def config(root: Path | str, **changes: Any) -> DataSection:
    settings: dict[str, Any] = {"image_size": 8, "channels": 1, "workers": 1, "streaming": True}
    return DataSection(source="huggingface", root=str(root), **settings | changes)


def samples(stream: ImageStream) -> list[Sample]:
    return [sample for number in range(len(stream.shards)) for sample in stream.read(number)]


def parquet(folder: Path, made: Any, count: int = 3) -> Path:
    """A folder of `count` Parquet files."""
    folder.mkdir(parents=True)
    for number in range(count):
        made.shard(count, number).to_parquet(folder / f"train-{number:05}-of-{count:05}.parquet")
    return folder


def test_files_are_shards_and_moved_ones_the_same(library: Any, tmp_path: Path) -> None:
    names = library.ClassLabel(names=["cat", "dog"])
    made = table(library, digit=[0, 1, 0, 1, 1, 0]).cast_column("digit", names)
    stream = data.open_stream(config(parquet(tmp_path / "a" / "set", made)), 2)
    assert [Path(name).name for name in stream.shards] == [f"train-{n:05}-of-00003.parquet" for n in range(3)]
    assert stream.class_names == ("cat", "dog")
    found = samples(stream)
    assert [(one.content, one.label) for one in found] == [(png(10 * i), k) for i, k in enumerate([0, 1, 0, 1, 1, 0])]
    again = data.open_stream(config(parquet(tmp_path / "b" / "else", made)), None)
    assert again.fingerprint == stream.fingerprint
    assert [one.label for one in samples(again)] == [None] * 6
    assert data.open_stream(config(parquet(tmp_path / "c", made, 2)), 2).fingerprint != stream.fingerprint
    with pytest.raises(DataError, match="3 shards for 4 processes"):
        data.open_stream(config(tmp_path / "a" / "set"), None, processes=4)


def test_saved_tables_and_folders_of_pictures(library: Any, tmp_path: Path) -> None:
    table(library, kind=[2, 0, 1, 2, 0, 1]).save_to_disk(tmp_path / "disk", num_shards=2)
    saved = data.open_stream(config(tmp_path / "disk", label_column="kind"), 3)
    assert len(saved.shards) == 2
    assert [(one.content, one.label) for one in samples(saved)] == [(png(10 * i), [2, 0, 1][i % 3]) for i in range(6)]
    for i in range(4):
        (folder := tmp_path / "pictures" / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(10 * i))
    lying = data.open_stream(config(tmp_path / "pictures"), 2)
    assert sorted((one.content, one.label) for one in samples(lying)) == sorted((png(10 * i), i % 2) for i in range(4))
    assert lying.class_names == ("a", "b")


def test_it_goes_on_from_where_it_was(library: Any, tmp_path: Path) -> None:
    stream = data.open_stream(config(parquet(tmp_path / "set", table(library, 20))), None)
    whole = list(islice(stream._taken(0, Position(1, 0), 2), 60))
    for done in (1, 7, 13, 39):
        assert list(islice(stream._taken(0, whole[done - 1].after, 2), 20)) == whole[done : done + 20]


def test_what_is_wrong_is_named(library: Any, tmp_path: Path) -> None:
    root = parquet(tmp_path / "set", table(library, name=["a", "b"] * 3, digit=[0, 1, 2, 0, 1, 2]))
    for changes, classes, message in (
        ({"image_column": "digit"}, None, "image_column: found 'digit', which holds no pictures"),
        ({"label_column": "none"}, 3, "label_column: found 'none', expected one of name, digit"),
        ({}, 3, r"label_column: is missing; none of picture, name, digit"),
        ({"label_column": "digit"}, 2, "row 0: found the label 2, expected a whole number from 0 to 1"),
        ({"label_column": "name"}, 2, "row 0: found the label 'a', expected a whole number"),
        ({"root": str(tmp_path / "nowhere")}, None, "nowhere: cannot be read as a data set"),
    ):
        with pytest.raises(DataError, match=message):
            samples(data.open_stream(config(root, **changes) if "root" not in changes else config(**changes), classes))
    named = table(library, label=[0, 1] * 3).cast_column("label", library.ClassLabel(names=["cat", "dog"]))
    named.save_to_disk(tmp_path / "named")
    with pytest.raises(ConfigError, match=r"classes: 3, but label of .* has 2 \(cat, dog\)\. Set network\.classes: 2"):
        data.open_stream(config(tmp_path / "named"), 3)
    with pytest.raises(DataError, match="is a stream, whose images"):
        data.load(config(tmp_path / "named"), "train", progress=False)


def test_the_test_split_is_packed_as_ever(library: Any, tmp_path: Path) -> None:
    library.DatasetDict({"train": table(library, 5), "test": table(library, 2)}).save_to_disk(tmp_path / "set")
    found = data.load(config(tmp_path / "set", max_broken=0.5), "test", progress=False)
    assert [int(picture[0, 0, 0]) for picture in found.images] == [0, 10]


def test_a_run_is_the_same_in_parts(library: Any, tmp_path: Path) -> None:
    root = parquet(tmp_path / "set", table(library, 20))
    settings: dict[str, object] = {f"data__{k}": v for k, v in config(root).model_dump(exclude_defaults=True).items()}
    settings |= {"data__held_out": 0.0, "training__kernels": "plain", "training__log_every": 1}
    for steps in ([5], [2, 5]):
        for end in steps:
            done = train(
                tiny(**settings, training__steps=end, training__preview_every=5, training__save_every=5),
                tmp_path / f"run{len(steps)}",
                progress=False,
                device="cpu",
            )
    assert done.step == 5
    assert [item for item in unlike(tmp_path / "run1", tmp_path / "run2") if "metrics" not in item] == []
