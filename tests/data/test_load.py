"""Splits: what is trained on, what is held out, and what the messages say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ddpm.data import load
from ddpm.errors import DataError
from tests.data.files import quiet, save, save_idx, section


def test_digits_are_scaled_and_need_no_cache(cache: Path) -> None:
    digits, original = quiet(section("digits")), load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(digits.images[:, 0], np.round(original.images * 255 / 16))
    np.testing.assert_array_equal(digits.labels, original.target)
    assert digits.class_names == tuple("0123456789")
    assert not digits.images.flags.writeable
    assert list(cache.iterdir()) == []


def test_held_out_and_train_are_disjoint_and_complete(tmp_path: Path) -> None:
    images, labels = save_idx(tmp_path, count=50)
    config = section("mnist", root=tmp_path, image_size=6, held_out=0.1)
    train, held_out = quiet(config), quiet(config, "held_out")
    assert (len(train), len(held_out)) == (45, 5)
    assert train.index is not None
    assert held_out.index is not None
    assert sorted([*train.index, *held_out.index]) == list(range(50))
    for part in (train, held_out):
        np.testing.assert_array_equal(part.images[:, 0], images[part.index])
        np.testing.assert_array_equal(part.labels, labels[part.index])
        np.testing.assert_array_equal(part.take(np.array([2, 0])), part.images[[2, 0]])
        assert isinstance(part.packed, np.memmap), "the split must not be a copy in memory"
    whole = quiet(config.model_copy(update={"held_out": 0.0}))
    assert whole.index is None
    assert len({whole.fingerprint, train.fingerprint, held_out.fingerprint}) == 3


def test_what_is_held_out_is_settled() -> None:
    """Other images held out after an update would let a continued run train on them."""
    assert quiet(section("digits", held_out=0.003), "held_out").index.tolist() == HELD_OUT  # type: ignore[union-attr]


HELD_OUT = [253, 269, 668, 968, 1542]


def test_at_least_one_image_is_held_out_and_one_is_kept(tmp_path: Path) -> None:
    save_idx(tmp_path, count=5)
    assert len(quiet(section("mnist", root=tmp_path, held_out=0.01), "held_out")) == 1
    with pytest.raises(DataError, match=r"data.held_out: 0.95 of 5 images leaves none"):
        quiet(section("mnist", root=tmp_path, held_out=0.95))


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    pixels = [save(tmp_path / "a" / f"{i}.png") for i in range(3)]
    for i, p in enumerate(pixels):
        save(tmp_path / "b" / f"{i}.bmp", p)
        save(tmp_path / "c" / f"{i}.png", p[:, ::-1] if i == 2 else p)
    a, b, c = (quiet(section("folder", root=tmp_path / name)).fingerprint for name in "abc")
    assert a == b
    assert a != c


def test_messages_on_splits(tmp_path: Path) -> None:
    save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"data.held_out: is 0"):
        quiet(section("digits"), "held_out")
    for config in (section("digits"), section("folder", root=tmp_path)):
        with pytest.raises(DataError, match="no test images of its own; use the held-out"):
            quiet(config, "test")
    with pytest.raises(ValueError, match="split: found 'val', expected one of train, held_out, test"):
        quiet(section("digits"), "val")  # type: ignore[arg-type]


def test_the_report_is_shown_once_and_not_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "x.png")
    load(section("folder", root=tmp_path))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "reading folder: 100%" in shown.err
    assert "1 of 1 pictures read\nsizes    8 x 8: 1\nformats  L: 1" in shown.err
    load(section("folder", root=tmp_path))
    assert capsys.readouterr() == ("", "")


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'sklearn', 'PIL', 'tqdm', 'pooch', 'filelock', 'platformdirs'}"
    code = f"import ddpm.data, sys; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
