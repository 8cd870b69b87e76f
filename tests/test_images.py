"""The two scales, grids and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.errors import DDPMError
from ddpm.images import Crop, grid, read_png, save_gif, save_png, to_arrays, to_levels, to_model


def test_all_levels_survive_a_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    x = to_model(levels)
    assert x[0] == -1
    assert x[255] == 1
    assert torch.equal(to_levels(x), levels)


def test_levels_are_rounded_and_clamped() -> None:
    x = torch.tensor([-3.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.9999, 5.0])
    assert to_levels(x).tolist() == [0, 0, 0, 1, 255, 255]


def test_padding_is_cropped_off() -> None:
    x = torch.full((2, 1, 8, 8), -1.0)
    x[:, :, 2:6, 1:7] = 1
    arrays = to_arrays(x, Crop(2, 1, 4, 6))
    assert arrays.shape == (2, 4, 6, 1)
    assert (arrays == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_enlarges_and_leaves_gaps(channels: int) -> None:
    arrays = np.zeros((5, 8, 8, channels), np.uint8)
    arrays[3] = 100
    page = grid(arrays, columns=3, height=64)
    gap = 5
    assert page.shape == (2 * (64 + gap) + gap, 3 * (64 + gap) + gap, channels)
    assert (page[:gap] == 255).all()  # paper around
    assert (page[gap : gap + 64, gap : gap + 64] == 0).all()
    assert (page[2 * gap + 64 : 2 * gap + 128, gap : gap + 64] == 100).all()  # the fourth starts the second row
    assert (page[2 * gap + 64 :, 3 * gap + 128 :] == 255).all()  # no sixth picture


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path: Path, channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    save_png(tmp_path / "new folder" / "a.png", array)
    assert np.array_equal(read_png(tmp_path / "new folder" / "a.png"), array)
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["a.png"]  # no temporary file left


def test_gif_moves_and_rests(tmp_path: Path) -> None:
    frames = [np.full((4, 4, 1), level, np.uint8) for level in (0, 90, 180)]
    save_gif(tmp_path / "a.gif", frames, seconds=0.3, hold=1.0)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3
        durations = []
        for i in range(3):
            gif.seek(i)
            durations.append(gif.info["duration"])
            assert abs(np.asarray(gif.convert("L")).mean() - (0, 90, 180)[i]) < 2
        assert durations == [100, 100, 1000]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_png(path, np.zeros((2, 2, 1), np.uint8))
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError, AttributeError)):
        save_png(path, np.zeros((2, 2, 1), np.complex128))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_an_impossible_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DDPMError, match="cannot be written"):
        save_png(tmp_path / "file" / "a.png", np.zeros((2, 2, 1), np.uint8))
