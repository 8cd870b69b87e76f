"""Each figure and table on a tiny model: files, facts, and what its numbers must satisfy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.cli import main
from ddpm.commands.paper import ENTRIES
from ddpm.config import to_yaml
from ddpm.images import read_png
from ddpm.paper import fig9, scores
from ddpm.paper.chain import Chain, chain
from ddpm.paper.scores import Scorer, Scores
from ddpm.paper.subject import Subject, open_subject
from ddpm.run import train
from tests.tiny import tiny

PICTURES = ("fig5", "fig6", "fig7", "fig8", "fig9", "fig10", "neighbours")
TABLES = ("table1", "table4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(tiny(training__steps=2), out, device="cpu", progress=False).checkpoint


@pytest.fixture
def subject(checkpoint: Path) -> Subject:
    return open_subject(checkpoint, device="cpu")


def _make(name: str, source: Path, out: Path, *options: str) -> dict[str, Any]:
    assert main(["paper", name, str(source), "--out", str(out), *options]) == 0
    return dict(json.loads((out / f"{name}.json").read_text()))


def _quick(name: str, checkpoint: Path, out: Path, *options: str) -> dict[str, Any]:
    return _make(name, checkpoint, out, "--quick", "--device", "cpu", *options)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--samples", "3"] if "samples" in ENTRIES[name].options else []
    numbers = _quick(name, checkpoint, tmp_path, *few)
    assert numbers["checkpoint"] == str(checkpoint)
    assert (numbers["step"], numbers["seed"], numbers["data"], numbers["weights"]) == (2, 0, "digits", "ema")
    picture = read_png(tmp_path / f"{name}.png")
    assert picture.shape[2] == 3
    assert (picture[0] == 255).all()  # on white
    assert (picture[-1] == 255).all()
    assert (picture < 60).any()  # ink
    assert f"{name}.png" in capsys.readouterr().out


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = _quick(name, checkpoint, tmp_path, "--images", "4", "--timesteps", "6")
    assert numbers["step"] == 2
    text = capsys.readouterr().out
    # The times of Table 4 are measured whatever else is left out; with T = 20 they are all.
    assert ("ESTIMATE from 6 of 20 timesteps" in text) == (name == "table1")
    assert ("9.46" in text) == (name == "table1")  # the paper's own figures beside
    assert ("0.951" in text) == (name == "table4")
    assert (tmp_path / f"{name}.md").read_text().count("```") == 2


def test_every_entry_is_tested() -> None:
    assert {*PICTURES, *TABLES, "forward", "table2"} == set(ENTRIES)


def test_table1(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = _make("table1", checkpoint, tmp_path, "--images", "3", "--device", "cpu")
    assert set(numbers["nll"]) == {"held_out", "train"}
    assert numbers["fid"] is None
    text = capsys.readouterr().out
    assert scores.ABSENT[3:] in text
    assert "ESTIMATE" not in text
    total = numbers["nll"]["held_out"]["bits_per_dimension"]["total"]["value"]
    assert f"<= {total:.2f}" in text


def test_table4_adds_up(checkpoint: Path, tmp_path: Path) -> None:
    numbers = _make("table4", checkpoint, tmp_path, "--images", "4", "--device", "cpu")
    table, bits = numbers["table"], numbers["bound"]["bits_per_dimension"]
    assert [row["reverse_time"] for row in table] == [20 - 2 * n for n in range(10)]
    rates = [row["rate"] for row in table]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] + bits["decoder"]["value"] == pytest.approx(bits["total"]["value"])
    assert numbers["rate"]["t"] == list(range(1, 21))
    assert numbers["rate"]["rate"][-1] == pytest.approx(bits["prior"]["value"])
    assert len(numbers["distortion"]["rmse"]) == 20


def test_forward(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(tiny()))
    numbers = _make("forward", config, tmp_path, "--images", "2", "--set", "diffusion.timesteps=40")
    assert numbers["t"] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    for a, snr in zip(numbers["alpha_bar"][1:], numbers["snr"][1:], strict=True):
        assert snr == pytest.approx(a / (1 - a))
    assert numbers["snr"][0] is None
    picture = read_png(tmp_path / "forward.png")
    assert picture.shape[2] == 3


def test_a_chain_taken_up_midway_ends_as_the_whole_one(subject: Subject) -> None:
    walk = chain(subject, steps=7, at=[11])
    moments = {m.t: m for m in walk.run([3, 4])}
    assert 11 in moments
    assert set(moments) == set(walk.times)
    *_, same = walk.run([3, 4], start=11, x=moments[11].x)
    torch.testing.assert_close(same.x, moments[0].x)
    *_, other = walk.run([5, 6], start=11, x=moments[11].x)  # the same latent with other noise
    assert (other.x - moments[0].x).abs().max() > 1e-3
    assert walk.near([0, 12, 20]) == [20, min(walk.times, key=lambda t: abs(t - 12)), 0]


def test_impossible_steps(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "fig6", str(checkpoint), "--steps", "21", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "1..20" in capsys.readouterr().err


def test_samples_that_share_more_differ_less(checkpoint: Path, tmp_path: Path) -> None:
    numbers = _make("fig7", checkpoint, tmp_path, "--device", "cpu")
    spread = dict(zip(numbers["t"], numbers["rmse_between_samples"], strict=True))
    assert list(spread) == [20, 15, 10, 5]
    assert spread[5] < spread[20]


def test_interpolation_keeps_its_ends(subject: Subject) -> None:
    """lambda = 0 and 1 are the reconstructions of the sources, with nothing of the other image in them."""
    walk: Chain = chain(subject)
    generator = torch.Generator().manual_seed(0)
    a, b, other = torch.rand(3, 1, 8, 8, generator=generator) * 2 - 1
    for t in (0, 4, 20):
        row = fig9.interpolated(walk, a, b, t)
        assert row.shape == (11, 1, 8, 8)
        torch.testing.assert_close(row[0], fig9.interpolated(walk, a, other, t)[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(row[-1], fig9.interpolated(walk, other, b, t)[-1], atol=1e-5, rtol=0)
    pixels = fig9.interpolated(walk, a, b, 0)
    torch.testing.assert_close(pixels[0], a)
    torch.testing.assert_close(pixels[5], (a + b) / 2)
    torch.testing.assert_close(pixels[-1], b)


def test_interpolated_pairs(checkpoint: Path, tmp_path: Path) -> None:
    numbers = _quick("fig9", checkpoint, tmp_path)
    at_zero = next(row for row in numbers["rows"] if row["t"] == 0)
    assert at_zero["rmse_of_reconstructions"] == [0, 0]
    assert len({*numbers["images"]}) == 2
    other = _quick("fig9", checkpoint, tmp_path, "--seed", "1")
    assert numbers["images"] != other["images"]


def test_an_extractor_is_used_where_there_is_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Scorer("two numbers", lambda images: Scores(7.25, len(images) / 2), lambda images: images[:, :2, 0, 0])
    for module in ("table1", "fig10", "neighbours"):
        monkeypatch.setattr(f"ddpm.paper.{module}.scorer", lambda subject: fake)
    quick = ["--samples", "5"]
    table = _quick("table1", checkpoint, tmp_path, "--images", "2", *quick)
    assert (table["extractor"], table["fid"], table["inception_score"]) == ("two numbers", 7.25, 2.5)
    assert "7.25" in capsys.readouterr().out
    assert _quick("fig10", checkpoint, tmp_path, *quick)["fid"] == [7.25] * 10
    near = _quick("neighbours", checkpoint, tmp_path, *quick)
    assert near["features"]["extractor"] == "two numbers"
    assert near["features"]["training_images"] != near["pixels"]["training_images"]


def test_estimates_are_kept_for_other_scorers(checkpoint: Path, tmp_path: Path) -> None:
    numbers = _quick("fig10", checkpoint, tmp_path, "--samples", "3")
    with np.load(tmp_path / "estimates.npz") as file:
        assert file["images"].shape == (10, 3, 8, 8, 1)
        assert file["t"].tolist() == numbers["t"] == [18, 16, 14, 12, 10, 8, 6, 4, 2, 0]
    assert numbers["rmse_to_sample"][-1] == 0


def test_without_matplotlib(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("fig5", "fig10"):
        assert main(["paper", name, str(checkpoint), "--quick", "--out", str(tmp_path), "--device", "cpu"]) == 1
        assert "ddpm[plots]" in capsys.readouterr().err
    _quick("table4", checkpoint, tmp_path, "--images", "2")
