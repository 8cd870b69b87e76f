"""Cheap figures of a run: the same for the same weights, better for better ones, and in every log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm import checkpoint, previews, run
from ddpm.config import Config, load_config
from ddpm.data import load as load_data
from ddpm.errors import ConfigError
from ddpm.images import Crop
from ddpm.previews import Previews
from ddpm.run import train
from ddpm.training_loop import TrainingState, new_state
from tests.tiny import tiny

CPU = torch.device("cpu")
ALWAYS = {"preview/distance", "preview/mean_drift", "preview/std_drift", "preview/roughness"}


def _rows(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "preview/distance" in row]


def test_every_preview_is_measured_and_logged(tmp_path: Path) -> None:
    done = train(tiny(), tmp_path / "run", progress=False)
    rows = _rows(done.folder)
    assert [row["step"] for row in rows] == [3, 6]
    assert all(row.keys() == ALWAYS | {"step"} for row in rows)
    board = EventAccumulator(str(done.folder)).Reload()  # type: ignore[no-untyped-call]
    for key in ALWAYS:
        logged = [(event.step, event.value) for event in board.Scalars(key)]  # type: ignore[no-untyped-call]
        assert logged == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows]
    again = train(tiny(), tmp_path / "again", progress=False)
    assert _rows(again.folder) == rows
    off = train(tiny(training__preview_measured=0), tmp_path / "off", progress=False)
    assert _rows(off.folder) == []
    # Looking does not change what is seen, nor what is learned.
    for step in (3, 6):
        assert (off.folder / f"samples/step-{step}.png").is_file()
    a, b = (checkpoint.load(each.checkpoint).network for each in (done, off))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_run_that_goes_on_says_the_same(tmp_path: Path) -> None:
    whole = train(tiny(), tmp_path / "whole", progress=False)
    train(tiny(training__steps=3), tmp_path / "parted", progress=False)
    parted = train(tiny(), tmp_path / "parted", progress=False)
    assert _rows(parted.folder) == _rows(whole.folder)


@pytest.fixture
def digits(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    settings = [
        f"data.root={shared_data / 'mnist'}",
        "network.channels=8",
        "network.norm_groups=4",
        "training.preview_steps=2",
        "training.preview_samples=4",
        "training.preview_measured=48",
    ]
    return load_config("image/mnist/ddpm_cpu", settings)


def test_digits_are_read_by_the_extractor(digits: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of real images are those of good samples; blurred, dark and random ones have worse."""
    images = load_data(digits.data, "train", progress=False)
    state, look = new_state(digits, device=CPU), Previews(digits, images)
    real = load_data(digits.data, "held_out", progress=False).take(np.arange(48))[..., 2:-2, 2:-2].transpose(0, 2, 3, 1)
    noise = np.random.default_rng(0).integers(0, 256, real.shape, dtype=np.uint8)
    found = {}
    for name, samples in {"real": real, "dark": real // 2, "noise": noise}.items():

        def drawn(_: Config, __: TrainingState, count: int, crop: Crop | None, samples: np.ndarray = samples) -> object:
            assert (count, crop) == (48, Crop(2, 2, 28, 28))
            return samples

        monkeypatch.setattr(previews, "drawn", drawn)
        found[name] = look.look(state)
        assert found[name].figures.keys() == ALWAYS | {"preview/kid", "preview/fid", "preview/confidence"}
        assert found[name].images.shape == (4, 28, 28, 1)
        assert found[name].score == found[name].figures["preview/kid"]
    kids, fids, distances = ([found[n].figures[f"preview/{key}"] for n in found] for key in ("kid", "fid", "distance"))
    assert abs(kids[0]) < 10_000 < kids[1] < kids[2]
    assert 2 * fids[0] < fids[1] < fids[2]
    assert distances[0] < 0.1 < min(distances[1:])
    assert found["real"].figures["preview/confidence"] > 0.97
    assert found["noise"].figures["preview/roughness"] == pytest.approx(1, abs=0.05)


def test_real_weights_are_drawn_from(digits: Config) -> None:
    images = load_data(digits.data, "train", progress=False)
    found = Previews(digits, images).look(new_state(digits, device=CPU))
    assert found.images.shape == (4, 28, 28, 1)
    assert found.figures["preview/fid"] > 300  # untrained


def test_other_data_go_by_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_data(tiny().data, "train", progress=False)
    look, state = Previews(tiny(training__preview_measured=32), images), new_state(tiny(), device=CPU)
    real = images.take(np.arange(32)).transpose(0, 2, 3, 1)
    scores = []
    for samples in (real, real // 2):
        monkeypatch.setattr(previews, "drawn", lambda *_, samples=samples: samples)
        scores.append(look.look(state).score)
    assert scores[0] is not None
    assert scores[0] * 4 < scores[1]  # type: ignore[operator]
    assert Previews(tiny(training__preview_measured=0), images).look(state).score is None


def test_too_few_to_measure_are_refused() -> None:
    with pytest.raises(ConfigError, match="preview_measured: 3 samples are too few"):
        tiny(training__preview_measured=3)


def test_it_may_change_when_a_run_goes_on() -> None:
    assert "training.preview_measured" in run.MAY_CHANGE
