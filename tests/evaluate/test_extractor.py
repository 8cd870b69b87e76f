"""The digit extractor: what ships, what it reads, and how it refuses what it is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddpm import data
from ddpm.cli import main
from ddpm.config import DataSection
from ddpm.data import ImageSet
from ddpm.errors import DDPMError
from ddpm.evaluate import extractor, extractor_training
from ddpm.evaluate.extractor import SHA256, DigitNet, load_extractor, shipped, transform, weights_sha256
from ddpm.images import unpacked

WEIGHTS = "1ecfc0079c315a49e34ee6c5f16894bdfc0cd8a20fb424f2af6889476f189829"


@pytest.fixture(scope="module")
def test_digits(shared_data: Path) -> ImageSet:
    section = DataSection(source="mnist", root=str(shared_data / "mnist"), image_size=28, channels=1)
    return data.load(section, "test", progress=False)


def test_the_shipped_weights_are_small_and_the_named_ones() -> None:
    assert shipped().stat().st_size < 1_500_000
    made = load_extractor(device="cpu")
    assert made.sha256 == SHA256
    assert (made.name, made.network.features.out_features) == ("digits", 64)
    # What is said of the weights may change, and with it the file's hash; the weights are those of the first version.
    assert weights_sha256(made.network.state_dict()) == WEIGHTS
    other = {name: value.clone() for name, value in made.network.state_dict().items()}
    other["logits.bias"][3] += 1e-6
    assert weights_sha256(other) != WEIGHTS


def test_the_file_says_how_it_was_made_and_how_good_it_is(
    capsys: pytest.CaptureFixture[str], test_digits: ImageSet
) -> None:
    assert main(["extractor", "info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sha256"] == SHA256
    assert facts["weights_sha256"] == WEIGHTS
    assert (facts["epochs"], facts["seed"], facts["parameters"]) == (4, 0, 271_098)
    assert "60,000 training images" in facts["recipe"]
    assert facts["test_accuracy"] >= 0.99
    network = DigitNet()
    network.load_state_dict(load_file(shipped()))
    assert extractor_training.accuracy_on(test_digits, network) == pytest.approx(facts["test_accuracy"])
    assert main(["extractor", "info"]) == 0
    assert "test_accuracy" in capsys.readouterr().out


def test_it_reads_digits_and_is_not_sure_of_noise(test_digits: ImageSet) -> None:
    pictures = unpacked(test_digits.images)[:2000]
    assert test_digits.labels is not None
    read = load_extractor(device="cpu")(pictures)
    assert (read.probabilities.argmax(1) == test_digits.labels[:2000]).mean() >= 0.99
    assert read.probabilities.max(1).mean() > 0.98
    wrong = load_extractor(device="cpu")(pictures.transpose(0, 2, 1, 3))  # digits lying on their side
    assert (wrong.probabilities.argmax(1) == test_digits.labels[:2000]).mean() < 0.6


def test_batches_change_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (37, 28, 28, 1), dtype=np.uint8)
    whole = load_extractor(device="cpu")(pictures)
    monkeypatch.setattr(extractor, "BATCH", 5)
    parts = load_extractor(device="cpu")(pictures)
    assert np.abs(whole.vectors - parts.vectors).max() < 1e-4 * np.abs(whole.vectors).max()
    assert whole.vectors.shape == (37, 64)
    assert np.allclose(whole.probabilities.sum(1), 1)


def test_the_transform() -> None:
    grey = np.zeros((1, 28, 28, 1), np.uint8)
    grey[0, 3, 4] = 255
    x = transform(grey)
    assert x.shape == (1, 1, 28, 28)
    assert (float(x[0, 0, 3, 4]), float(x.sum())) == (1.0, 1.0 - (28 * 28 - 1))
    colour = np.zeros((1, 28, 28, 3), np.uint8)
    colour[..., 1] = 255
    assert float(transform(colour).mean()) == pytest.approx(2 * 0.587 - 1, abs=1e-6)
    wide = transform(np.full((1, 14, 56, 1), 255, np.uint8))  # a white band, centred in black
    assert wide.shape == (1, 1, 28, 28)
    assert (float(wide[0, 0, 14, 14]), float(wide[0, 0, 2, 14])) == (1.0, -1.0)


def test_files_that_are_no_extractor_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(DDPMError, match=r"broken\.safetensors: is not a digit extractor"):
        load_extractor(broken)
    with pytest.raises(DDPMError, match="is not a digit extractor"):
        load_extractor(tmp_path / "absent.safetensors")
    monkeypatch.setattr(extractor, "SHA256", "0" * 64)
    with pytest.raises(DDPMError, match="the package is damaged"):
        load_extractor()


@pytest.mark.slow
def test_training_is_a_function_of_its_seed(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = extractor_training.load_mnist

    def few(root: str | None, split: data.Split) -> ImageSet:
        images = real(root, split)
        assert images.labels is not None
        return ImageSet(
            images.packed[:1280], None, images.labels[:1280], images.class_names, None, "few", images.report
        )

    monkeypatch.setattr(extractor_training, "load_mnist", few)
    root = ["--data-root", str(shared_data / "mnist"), "--epochs", "3"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main(["extractor", "train", "--out", str(tmp_path / name), *root, "--seed", seed]) == 0
    assert "of MNIST's test images" in capsys.readouterr().out
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert main(["extractor", "info", str(tmp_path / "c"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["epochs"], facts["seed"], facts["parameters"]) == (3, 1, 271_098)
    assert 0.5 < facts["test_accuracy"] < 0.99
    reader = load_extractor(tmp_path / "a", device="cpu")
    images = few(str(shared_data / "mnist"), "train")
    named = reader(unpacked(images.images)).probabilities.argmax(1)
    assert (named == images.labels).mean() > 0.6  # it has learned something
    assert torch.get_num_threads() == 1
