"""The models that come with the package: a stand-in through every command, and the real one's quality."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ddpm
from ddpm import checkpoint, model_file, shipped
from ddpm.cli import main
from ddpm.data import load as load_data
from ddpm.errors import DDPMError, UsageError
from ddpm.evaluate.evaluation import evaluate_samples
from ddpm.evaluate.extractor import load_extractor
from ddpm.evaluate.neighbours import RARE
from ddpm.evaluate.reference import sides
from ddpm.generate import file_sha256, sample
from ddpm.run import train
from ddpm.shipped import MODELS, Shipped
from tests.tiny import tiny


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    config = tiny(network__classes=10, training__steps=2, sampling__classes="random")
    saved = checkpoint.load(train(config, folder / "run", device="cpu", progress=False).checkpoint)
    model_file.write(folder / "tiny.safetensors", model_file.from_checkpoint(saved, storage="float16", card="A card."))
    return folder / "tiny.safetensors"


@pytest.fixture
def stand_in(packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setattr(shipped, "FOLDER", packed.parent)
    entry = Shipped(packed.name, file_sha256(packed), "a stand-in")
    monkeypatch.setattr(shipped, "MODELS", {"tiny": entry, "other": Shipped("other.safetensors", "0", "not there")})
    monkeypatch.chdir(tmp_path)
    return "tiny"


def test_commands(stand_in: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--pretrained", stand_in, "--device", "cpu"]
    assert main(["sample", *common, "--num-samples", "5"]) == 0
    folder = Path("output/pretrained/sample/tiny")
    assert np.load(folder / "samples.npz")["arr_0"].shape == (5, 8, 8, 1)
    assert json.loads((folder / "settings.json").read_text())["classes"] == "random"
    assert main(["evaluate", *common, "--samples", "15", "--nll", "--images", "2"]) == 0
    (path,) = Path("output/pretrained/evaluate/tiny").glob("samples-*.json")
    assert json.loads(path.read_text())["provenance"]["drawn"]["checkpoint"] == "tiny"
    capsys.readouterr()
    assert main(["info", "--pretrained", stand_in, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"] == "A card."
    assert main(["pretrained", "card", stand_in]) == 0
    assert capsys.readouterr().out == "A card.\n"
    assert main(["pretrained", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "a stand-in" in lines[0]
    assert "not in this installation" in lines[1]


def test_python(stand_in: str) -> None:
    model = ddpm.pretrained(stand_in, device="cpu", precision="float32")
    images = ddpm.sample(model, 3)
    assert images.shape == (3, 8, 8, 1)
    assert np.array_equal(ddpm.sample(model, 2, start=1, batch_size=1).astype(int), images[1:].astype(int))


def test_names_that_are_none_and_files_that_are_wrong(
    stand_in: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--pretrained", "minst"]) == 2
    assert "found 'minst'; the models that come with ddpm: tiny, other" in capsys.readouterr().err
    with pytest.raises(UsageError, match="tiny, other"):
        ddpm.pretrained("minst")
    assert main(["info", "--pretrained", "other"]) == 1
    assert "not in this installation" in capsys.readouterr().err
    monkeypatch.setitem(shipped.MODELS, "tiny", Shipped("tiny.safetensors", "0" * 64, ""))
    with pytest.raises(DDPMError, match="the package is damaged; install it again"):
        ddpm.pretrained("tiny")
    for arguments in (["sample"], ["info", "x.pt", "--pretrained", "tiny"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2


def _there(name: str) -> bool:
    return (shipped.FOLDER / MODELS[name].file).is_file()


@pytest.mark.parametrize("name", list(MODELS))
def test_what_ships_is_small_and_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not _there(name):
        pytest.skip(f"the weights of {name} are not in this checkout yet")
    assert shipped.path_of(name).stat().st_size <= 12_000_000
    assert main(["pretrained", "card", name]) == 0
    card = capsys.readouterr().out
    for word in ("Data", "Recipe", "Figures", "Licence", "Limits"):
        assert word in card
    assert "to be measured" not in card
    assert ddpm.sample(ddpm.pretrained(name, device="cpu"), 2, steps=3).shape[0] == 2


@pytest.mark.slow
def test_the_digits_that_ship_are_good(shared_data: Path) -> None:
    """As a user draws them: the model's own sampler, steps and classes."""
    if not _there("mnist"):
        pytest.xfail("the weights of mnist are not in this checkout yet")
    model = ddpm.pretrained("mnist", device="cpu")
    samples = sample(model, 2048, progress=True)
    extractor = load_extractor(device="cpu")
    root = str(shared_data / "mnist")
    reference, unseen = sides(model, extractor, root=root, progress=False)
    found = evaluate_samples(samples, reference, extractor, unseen=unseen)
    own, floor, copies = found.samples.comparison, found.floors.unseen, found.copies
    assert floor is not None
    assert copies is not None
    print(found.numbers(force=False))
    assert own.classes.confidence >= 0.97
    labels = load_data(model.config.data.model_copy(update={"root": root}), "train", progress=False).labels
    assert labels is not None
    shares = np.array(own.classes.histogram) / len(samples) / (np.bincount(labels) / len(labels))
    assert shares.min() > 0.5
    assert shares.max() < 2
    assert own.fid <= 3 * floor.comparison.fid
    error = (RARE * (1 - RARE) / 2000) ** 0.5
    assert copies.share <= RARE + 3 * error
