"""Monitors of a run: each is provoked by a drill, and silent in a healthy run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm import ema, monitors, previews
from ddpm.data import load as load_data
from ddpm.errors import DDPMError
from ddpm.evaluate.pixels import Pixels, pixels_of
from ddpm.monitors import Monitors
from ddpm.run import train
from ddpm.training_loop import new_state
from tests.tiny import tiny


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of six steps are judged as if they were long."""
    monkeypatch.setattr(monitors, "EARLY", 0)
    monkeypatch.setattr(monitors, "LATE", 0)


def _real(*_: Any) -> np.ndarray:
    """Real images, as a good network would draw them; others than are compared with."""
    images = load_data(tiny().data, "held_out", progress=False)
    return images.take(np.arange(64)).transpose(0, 2, 3, 1)


def _warned(folder: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> list[str]:
    capsys.readouterr()
    train(tiny(training__preview_measured=64, sampling__batch_size=64, **changes), folder, progress=False)
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]


def test_a_healthy_run_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(previews, "drawn", _real)
    assert _warned(tmp_path, capsys) == []


def test_an_average_that_is_never_updated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(previews, "drawn", _real)
    monkeypatch.setattr(ema, "update", lambda *_: None)
    (line,) = _warned(tmp_path, capsys)  # once, though there are two previews
    assert "step 3: the moving average of the weights (EMA) has not moved since step 0" in line
    assert "--weights raw" in line


def test_weights_that_rest_altogether_are_no_fault_of_the_average() -> None:
    state = new_state(tiny(), device=torch.device("cpu"))
    watch = Monitors(state, 6)
    assert watch.warnings(state, None, None) == []
    with torch.no_grad():
        state.network.conv_out.bias += 1
    assert len(watch.warnings(state, None, None)) == 1


def test_samples_of_another_brightness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(previews, "drawn", lambda *_: _real() // 2 + 120)
    (line,) = _warned(tmp_path, capsys)
    assert "the samples' colours have drifted: grey is +81 levels" in line
    assert "zero_terminal_snr" in line


def test_samples_of_another_colour() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 200, (300, 4, 4, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    state, data = new_state(tiny(), device=torch.device("cpu")), pixels_of(pictures[:200])

    def said(samples: np.ndarray) -> list[str]:
        return Monitors(state, 6).warnings(state, pixels_of(samples), data)

    assert said(pictures[200:264]) == []
    assert said(pictures[200:204]) == []  # so few differ by chance
    (line,) = said(pictures[200:264] + np.array([0, 0, 50], np.uint8))
    assert "blue is +49" in line
    (line,) = said(rng.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8))
    assert "the samples are noise" in line  # and not their colour, which is off too


def test_noise_by_a_network_that_never_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real drill: the learning rate is nothing, so that real samples are drawn from fresh weights."""
    (line,) = _warned(tmp_path, capsys, training__learning_rate=1e-12)
    assert "the samples are noise: their roughness is" in line
    assert "training.warmup_steps" in line


def test_nothing_is_said_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(monitors, "EARLY", 7)
    assert _warned(tmp_path, capsys, training__learning_rate=1e-12) == []


def test_rough_data_are_not_called_noise() -> None:
    state = new_state(tiny(), device=torch.device("cpu"))
    noise = pixels_of(np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8))
    assert isinstance(noise, Pixels)
    assert Monitors(state, 6).warnings(state, noise, noise) == []


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    done = train(tiny(training__steps=3), tmp_path, progress=False)
    content = torch.load(done.checkpoint, weights_only=True)
    content["network"]["conv_out.bias"].fill_(float("nan"))
    torch.save(content, done.checkpoint)
    (tmp_path / "manifest.json").unlink()  # which would tell
    with pytest.raises(DDPMError, match=r"(?s)diverged.*training\.learning_rate"):
        train(tiny(), tmp_path, progress=False)
