"""`ddpm evaluate --samples` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.cli import main
from ddpm.evaluate import extractor, inception
from ddpm.evaluate.extractor import TRANSFORM, DigitNet, Extractor, transform
from ddpm.run import train
from tests.tiny import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(tiny(training__steps=2), out, device="cpu", progress=False).checkpoint


@pytest.fixture(autouse=True)
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random features are features too, and these tests are about what surrounds them."""

    def load(*_: Any, **__: Any) -> Extractor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Extractor("digits", "f" * 64, TRANSFORM, DigitNet().eval(), torch.device("cpu"), transform)

    monkeypatch.setattr(extractor, "load_extractor", load)


def _figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *arguments, "--json", "--device", "cpu"]) == 0
    return dict(json.loads(capsys.readouterr().out)["samples"])


def test_a_table_and_a_file_that_says_where_its_numbers_come_from(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [str(checkpoint), "--samples", "30", "--steps", "3", "--out", str(tmp_path)]
    assert main(["evaluate", *arguments, "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    for words in ("unseen images", "KID ", "recall", "near-copies", "left out (--force gives it", "digits train"):
        assert words in text
    (path,) = tmp_path.iterdir()
    stored = json.loads(path.read_text())
    assert stored["samples"]["fid"] is None
    assert stored["floors"]["unseen_against_train"]["images"] == 30
    origin = stored["provenance"]
    expected = {"samples": 30, "reference_split": "train", "reference_size": 1617, "unseen_split": "held_out"}
    assert {key: origin[key] for key in expected} == expected
    assert origin["extractor_sha256"] == "f" * 64
    drawn = {"step": 2, "weights": "ema", "sampler": "ancestral", "steps": 3, "network_calls": 3, "seed": 0}
    assert {key: origin["drawn"][key] for key in drawn} == drawn
    assert len(origin["drawn"]["checkpoint_sha256"]) == 64


def test_the_same_command_gives_the_same_numbers_and_others_give_others(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    common = [str(checkpoint), "--samples", "24", "--steps", "3", "--force", "--out", str(tmp_path)]
    first = _figures(capsys, *common)
    assert _figures(capsys, *common) == first
    assert first["samples"]["fid"] > 0
    assert first["samples"]["fid_of_too_few_images"] is True
    other_batch = _figures(capsys, *common, "--batch-size", "5")
    # One grey level of difference in a pixel is what another batch size may make of an image.
    assert other_batch["samples"]["fid"] == pytest.approx(first["samples"]["fid"], rel=1e-2)
    for change in (["--seed", "1"], ["--weights", "raw"], ["--sampler", "ddim"]):
        other = _figures(capsys, *common, *change)
        assert other["samples"]["fid"] != first["samples"]["fid"], change
        assert other["files"] != first["files"], change


def test_the_inception_extractors_numbers_carry_its_mark(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(**_: Any) -> Extractor:
        device, network = torch.device("cpu"), DigitNet().eval()
        return Extractor("inception", "e" * 64, "resized", network, device, transform, batch=7, mark="unverified")

    monkeypatch.setattr(inception, "load_inception", load)
    arguments = [str(checkpoint), "--samples", "12", "--steps", "2", "--extractor", "inception", "--out", str(tmp_path)]
    assert main(["evaluate", *arguments, "--device", "cpu"]) == 0
    assert "UNVERIFIED" in capsys.readouterr().out
    origin = _figures(capsys, *arguments)["provenance"]
    assert (origin["extractor"], origin["extractor_mark"]) == ("inception", "unverified")


def test_samples_from_a_folder_or_file_are_measured_as_the_drawn_ones(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    drawn = _figures(capsys, str(checkpoint), "--samples", "20", "--steps", "3", "--out", str(tmp_path / "a"))
    folder = tmp_path / "set"
    sample = ["sample", str(checkpoint), "--num-samples", "20", "--steps", "3", "--out", str(folder), "--device", "cpu"]
    assert main([*sample, "--precision", "float32", "--batch-size", "64"]) == 0
    for path in (folder, folder / "samples.npz"):
        read = _figures(capsys, str(checkpoint), "--samples-from", str(path), "--out", str(tmp_path / "b"))
        assert read["samples"] == drawn["samples"]
        assert read["provenance"]["samples_sha256"] == drawn["provenance"]["samples_sha256"]
        assert read["provenance"]["drawn"] is None
        assert read["provenance"]["samples_settings"]["steps"] == 3
    (folder / "samples.npz").unlink()
    pictures = _figures(capsys, str(checkpoint), "--samples-from", str(folder), "--out", str(tmp_path / "b"))
    assert pictures["samples"] == drawn["samples"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure was named; say --samples N"),
        (["--samples", "20", "--timesteps", "3"], "--timesteps: has no effect without --nll"),
        (["--nll", "--force"], "--force: has no effect without --samples or --samples-from"),
        (["--samples-from", "here", "--steps", "3"], "--steps: has no effect without --samples;"),
        (["--samples-from", "nowhere"], "nowhere: expected a folder or an .npz file"),
        (["--samples", "5", "--steps", "2"], "samples: 5 images; distances need at least 11"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    checkpoint: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(checkpoint), *arguments, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_other_files_are_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((20, 8, 8, 1)))
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((20, 9, 9, 1), np.uint8))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("floats.npz", "holds float64 (20, 8, 8, 1), expected uint8"),
        ("large.npz", "found pictures of 9x9x1, the data have 8x8x1"),
        ("broken.npz", "expected a folder or an .npz file"),
        ("empty", "has neither samples.npz nor PNG pictures"),
    ):
        assert main(["evaluate", str(checkpoint), "--samples-from", str(tmp_path / name), "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err
