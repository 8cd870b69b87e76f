"""Class-conditional models measured: the likelihood with the images' labels, samples in the data's shares."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm import data
from ddpm.cli import main
from ddpm.data import ImageSet
from ddpm.diffusion import Diffusion
from ddpm.errors import UsageError
from ddpm.evaluate import drawing
from ddpm.evaluate.drawing import IN_SHARES, class_sequence, draw_samples
from ddpm.evaluate.nll import measure, measure_model
from ddpm.generate import Model, load, sampling_settings
from ddpm.run import train
from ddpm.schedule import make_schedule
from tests.tiny import tiny

DIFFUSION = Diffusion(schedule=make_schedule("cosine", 50), variance="fixed_small")
LEVELS = np.array([30, 128, 220], np.uint8)
"""Images of class k are of this level throughout."""


def _oracle(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """Epsilon for images of the level of their class; told none, of the mean level."""
    assert labels is not None or len(x_t)
    x0 = torch.from_numpy(LEVELS / 127.5 - 1)
    x0 = x0.mean().expand(len(x_t)) if labels is None else x0[labels]
    a = DIFFUSION.schedule.alpha_bar[t].view(-1, 1, 1, 1)
    return ((x_t.double() - a.sqrt() * x0.view(-1, 1, 1, 1)) / (1 - a).sqrt()).float()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_each_image_is_measured_with_its_own_label(batch_size: int) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 20)
    levels = np.broadcast_to(LEVELS[labels][:, None, None, None], (20, 1, 4, 4)).copy()

    def transitions(told: np.ndarray | None) -> float:
        found = measure(DIFFUSION, _oracle, levels, labels=told, batch_size=batch_size, progress=False)
        return float(found.bound.bits[:, 1:-1].sum(1).mean())

    assert transitions(labels) < 1e-6  # it knows the image
    assert transitions(np.roll(labels, 1)) > 1
    assert transitions(None) > 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny(network__classes=10, training__steps=30, training__save_every=30, training__learning_rate=1e-2)
    return train(config, tmp_path_factory.mktemp("runs") / "run", device="cpu", progress=False).checkpoint


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    return load(checkpoint, device="cpu", precision="float32")


def _held_out(model: Model) -> ImageSet:
    return data.load(model.config.data, "held_out", progress=False)


def test_a_model_with_classes_is_told_them_unless_it_should_not(model: Model) -> None:
    images, index = _held_out(model), np.array([5, 3, 90])
    assert images.labels is not None
    told, none = (measure_model(model, images, index, told=told, progress=False) for told in (True, False))
    assert (told.told, none.told) == ("labels", "no class")
    by_hand = measure(model.diffusion, model.network, images.take(index), labels=images.labels[index], progress=False)
    assert torch.equal(told.bound.bits, by_hand.bound.bits)
    unaware = measure(model.diffusion, model.network, images.take(index), progress=False)
    assert torch.equal(none.bound.bits, unaware.bound.bits)
    assert not torch.equal(none.bound.bits, told.bound.bits)
    for strange in (replace(images, labels=None), replace(images, class_names=("cat", "dog"))):
        with pytest.raises(UsageError, match="--class none"):
            measure_model(model, strange, index, progress=False)
        assert measure_model(model, strange, index, told=False, progress=False).told == "no class"


@pytest.mark.parametrize("counts", [[5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], [3, 0, 1], [99, 1]])
def test_classes_come_in_the_datas_shares(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    sequence = np.array(class_sequence(labels, 5000))
    shares = np.array(counts) / sum(counts)
    for n in (1, 10, 64, 500, 2048, 5000):
        found = np.bincount(sequence[:n], minlength=len(counts))
        assert np.abs(found - n * shares).max() < 2.5, n
    assert class_sequence(labels, 7) == tuple(sequence[:7])


def test_samples_are_drawn_with_these_classes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(drawing, "sample", lambda *_, **changes: asked.append(changes.get("classes")))
    labels = np.array([2, 2, 2, 7])
    for classes in (None, "random", "none", [3, 1]):
        settings = sampling_settings(model, steps=3, classes=classes)
        draw_samples(model, 8, settings, labels)
    assert asked[0] == asked[1] == class_sequence(labels, 8)
    assert set(asked[0]) == {2, 7}
    assert asked[2:] == ["none", (3, 1)]


def _figures(capsys: pytest.CaptureFixture[str], kind: str, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *arguments, "--json", "--device", "cpu"]) == 0
    return dict(json.loads(capsys.readouterr().out)[kind])


def test_the_command(checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = [str(checkpoint), "--out", str(tmp_path), "--images", "5", "--nll"]
    told, none = (_figures(capsys, "nll", *common, *more) for more in ([], ["--class", "none"]))
    assert (told["told"], none["told"]) == ("labels", "no class")
    assert told["bits_per_dimension"]["total"] != none["bits_per_dimension"]["total"]
    assert main(["evaluate", *common, "--device", "cpu"]) == 0
    assert "told each image's class: the bound is on -log2 p(x | class)" in capsys.readouterr().out
    samples = [str(checkpoint), "--out", str(tmp_path), "--samples", "20", "--steps", "3"]
    drawn = [_figures(capsys, "samples", *samples, *more) for more in ([], ["--class", "none"], ["--guidance", "2"])]
    said = [each["provenance"]["drawn"]["settings"] for each in drawn]
    assert [each["classes"] for each in said] == [IN_SHARES, "none", IN_SHARES]
    assert said[2]["guidance"] == 2
    assert len({each["provenance"]["samples_sha256"] for each in drawn}) == 3


def test_options_about_classes_without_effect_are_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = train(tiny(training__steps=1), tmp_path / "plain", device="cpu", progress=False).checkpoint
    for path, arguments, words in (
        (plain, ["--nll", "--class", "none"], "trained without classes"),
        (plain, ["--samples", "20", "--guidance", "2"], "trained without classes"),
        (checkpoint, ["--samples-from", "x", "--class", "none"], "--class: has no effect without"),
        (checkpoint, ["--nll", "--guidance", "2"], "--guidance: has no effect without --samples"),
    ):
        assert main(["evaluate", str(path), *arguments, "--device", "cpu"]) == 2
        assert words in capsys.readouterr().err


def test_the_papers_tables_and_figures(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(name: str, *options: str) -> dict[str, Any]:
        arguments = ["paper", name, str(checkpoint), "--quick", "--device", "cpu", "--out", str(tmp_path)]
        assert main([*arguments, *options]) == 0
        return dict(json.loads((tmp_path / f"{name}.json").read_text()))

    assert make("table4", "--images", "3")["bound"]["told"] == "labels"
    table = make("table1", "--images", "3", "--timesteps", "5", "--samples", "12")
    assert {split: bound["told"] for split, bound in table["nll"].items()} == {"held_out": "labels", "train": "labels"}
    assert "Classes: the model was told each image's class" in capsys.readouterr().out
    assert sum(make("neighbours", "--samples", "12")["classes"]) == 12
    assert make("fig6", "--samples", "3")["classes"] == [1] * 10
    assert make("fig7", "--samples", "2")["classes"] == "none"
