"""Data sets of the library `datasets`, saved here: columns found or chosen, classes, broken rows, splits."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm import data
from ddpm.config import DataSection
from ddpm.errors import ConfigError, DataError
from tests.tiny import tiny

EXTRA = "an extra: pip install 'ddpm[datasets]'"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not ours to mend
        datasets = pytest.importorskip("datasets", reason=EXTRA)
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def png(level: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(datasets: Any, count: int = 6, **columns: Any) -> Any:
    """Pictures of the levels 0, 10, 20, ... and other columns."""
    images = [{"bytes": png(10 * i), "path": None} for i in range(count)]
    made = datasets.Dataset.from_dict({"picture": images, **columns})
    return made.cast_column("picture", datasets.Image())


def config(root: Path | str, **changes: Any) -> DataSection:
    return DataSection(source="huggingface", root=str(root), image_size=8, channels=1, max_broken=0.5, **changes)


def load(section: DataSection, split: Any = "train") -> data.ImageSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyarrow's and the library's own
        return data.load(section, split, progress=False)


def test_named_classes_and_splits(library: Any, tmp_path: Path) -> None:
    names = library.ClassLabel(names=["cat", "dog"])
    train = table(library, digit=[0, 1, 0, 1, 1, 0]).cast_column("digit", names)
    test = table(library, 2, digit=[1, 0]).cast_column("digit", names)
    library.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "set")
    images = load(config(tmp_path / "set"))
    assert images.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert images.class_names == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert load(config(tmp_path / "set"), "test").images[:, 0, 0, 0].tolist() == [0, 10]
    again = load(config(tmp_path / "set"))  # from the cache
    assert isinstance(again.packed, np.memmap)
    assert again.fingerprint == images.fingerprint


def test_columns_are_chosen(library: Any, tmp_path: Path) -> None:
    made = table(library, kind=["b", "a", "c", "a", "b", "b"], label=[7, 7, 9, 9, 7, 9])
    made.save_to_disk(tmp_path / "set")
    found = load(config(tmp_path / "set"))
    assert found.class_names == ("7", "9")  # the usual name
    kinds = load(config(tmp_path / "set", label_column="kind", image_column="picture"))
    assert kinds.class_names == ("a", "b", "c")
    assert kinds.labels is not None
    assert kinds.labels.tolist() == [1, 0, 2, 0, 1, 1]
    made.remove_columns(["kind", "label"]).save_to_disk(tmp_path / "bare")
    assert load(config(tmp_path / "bare")).labels is None


def test_a_folder_of_parquet_files(library: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table(library, label=[0, 1, 2, 0, 1, 2]).to_parquet(tmp_path / "set" / "train-00000.parquet")
    assert len(load(config(tmp_path / "set"))) == 6


def test_broken_rows_are_reported(library: Any, tmp_path: Path) -> None:
    images = [{"bytes": png(10), "path": None}, {"bytes": b"no picture", "path": None}, None]
    made = library.Dataset.from_dict({"image": images}, features=library.Features({"image": library.Image()}))
    made.save_to_disk(tmp_path / "set")
    section = config(tmp_path / "set").model_copy(update={"max_broken": 0.9})
    found = load(section)
    assert len(found) == 1
    assert [name for name, _ in found.report.skipped] == ["row 1", "row 2"]
    with pytest.raises(DataError, match="2 of 3 pictures are broken"):
        load(config(tmp_path / "set"))


def test_what_is_not_there_is_said(library: Any, tmp_path: Path) -> None:
    others = [{"bytes": png(10 * i), "path": None} for i in range(6)]
    made = table(library, kind=[1.5] * 6, other=others).cast_column("other", library.Image())
    made.save_to_disk(tmp_path / "two")
    for change, message in (
        ({}, r"data\.image_column: is missing; .* has 2 columns of pictures \(picture, other\)"),
        ({"image_column": "kind"}, "found 'kind', which holds no pictures; some do: picture, other"),
        ({"image_column": "other", "label_column": "colour"}, "label_column: found 'colour', expected one of"),
        ({"image_column": "other", "label_column": "kind"}, r"kind holds 1\.5, expected texts or whole numbers"),
    ):
        with pytest.raises(DataError, match=message):
            load(config(tmp_path / "two", **change))
    with pytest.raises(DataError, match="has no split 'test': it was saved as one table"):
        load(config(tmp_path / "two", image_column="other"), "test")
    library.DatasetDict({"validation": made}).save_to_disk(tmp_path / "split")
    with pytest.raises(DataError, match="has no split 'train'; it has validation"):
        load(config(tmp_path / "split"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read as a data set"):
        load(config(tmp_path / "empty"))


def test_settings_and_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="image_column: 'img' has no effect on the source digits"):
        tiny(data__image_column="img")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package datasets: pip install 'ddpm\[datasets\]'"):
        load(config("owner/name"))


def test_a_run_trains_on_it(library: Any, tmp_path: Path) -> None:
    from ddpm.run import train

    table(library, 12, label=[0, 1] * 6).save_to_disk(tmp_path / "set")
    section = tiny(
        data__source="huggingface", data__root=str(tmp_path / "set"), data__held_out=0.0, network__classes=2,
        training__steps=1,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert train(section, tmp_path / "run", device="cpu", progress=False).step == 1
