"""Weights alone in a safetensors file: what comes back, the same bytes each time, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm import checkpoint, model_file
from ddpm.checkpoint import DataFacts
from ddpm.cli import main
from ddpm.errors import CheckpointError, UsageError
from ddpm.generate import load, sample
from ddpm.images import Crop
from ddpm.run import train
from tests.tiny import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny(network__classes=10, training__steps=20, training__save_every=20)
    return train(config, tmp_path_factory.mktemp("runs") / "run", device="cpu", progress=False).checkpoint


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_a_file_holds_the_ema_weights_and_what_sampling_knows(
    trained: Path, tmp_path: Path, storage: model_file.Storage
) -> None:
    saved, path = checkpoint.load(trained), tmp_path / "made.safetensors"
    made = model_file.from_checkpoint(saved, storage=storage, card="# Card")
    model_file.write(path, made)
    found = model_file.read(path)
    assert (found.config, found.data, found.step) == (saved.config, saved.data, 20)
    assert (found.storage, found.card) == (storage, "# Card")
    stored = load_file(path)
    assert {value.dtype for value in stored.values()} == {getattr(torch, storage)}
    for name, value in saved.ema.items():
        assert torch.equal(found.weights[name], value.to(getattr(torch, storage)).float())
        assert torch.equal(found.weights[name], made.weights[name])  # what is measured is what is shipped
    one, other = (load(p, device="cpu", precision="float32") for p in (trained, path))
    a, b = (sample(m, 6, steps=5).astype(int) for m in (one, other))
    limit = {"float32": 0, "float16": 2, "bfloat16": 16}[storage]
    assert np.abs(a - b).max() <= limit
    assert sample(other, 1).shape == (1, 8, 8, 1)


def test_nothing_of_the_machine_is_told(trained: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(trained)
    config = saved.config.model_copy(
        update={
            "data": saved.config.data.model_copy(update={"root": "/home/somebody/pictures"}),
            "training": saved.config.training.model_copy(update={"init_from": "/home/somebody/a.pt"}),
        }
    )
    from dataclasses import replace

    model_file.write(
        tmp_path / "a.safetensors", model_file.from_checkpoint(replace(saved, config=config), storage="float16")
    )
    assert b"somebody" not in (tmp_path / "a.safetensors").read_bytes()


def test_the_same_model_gives_the_same_bytes_in_every_process(trained: Path, tmp_path: Path) -> None:
    """The library alone orders several entries of metadata anew in each process."""
    code = (
        "import sys; from pathlib import Path; from ddpm import checkpoint, model_file as m\n"
        "saved = checkpoint.load(Path(sys.argv[1]))\n"
        "m.write(Path(sys.argv[2]), m.from_checkpoint(saved, storage='float16', card='c'))"
    )
    subprocess.run([sys.executable, "-c", code, str(trained), str(tmp_path / "a")], check=True)
    content = (tmp_path / "a").read_bytes()
    for _ in range(8):
        model_file.write(
            tmp_path / "b", model_file.from_checkpoint(checkpoint.load(trained), storage="float16", card="c")
        )
        assert (tmp_path / "b").read_bytes() == content
    assert int.from_bytes(content[:8], "little") % 8 == 0  # tensors stay aligned


def test_a_crop_comes_back(trained: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    saved = replace(checkpoint.load(trained), data=DataFacts(3, "f", ("a", "b"), Crop(1, 2, 3, 4)))
    model_file.write(tmp_path / "a.safetensors", model_file.from_checkpoint(saved, storage="float16"))
    assert model_file.read(tmp_path / "a.safetensors").data == saved.data


def test_other_makers_may_leave_out_the_data(trained: Path, tmp_path: Path) -> None:
    saved, path = checkpoint.load(trained), tmp_path / "other.safetensors"
    metadata = {"format": "ddpm", "config": saved.config.model_dump_json(), "step": "20"}
    save_file({name: value.contiguous() for name, value in saved.ema.items()}, path, metadata)
    model = load(path, device="cpu")
    assert model.data.class_names == tuple("0123456789")
    assert np.array_equal(sample(model, 3, classes="7"), sample(load(trained, device="cpu"), 3, classes="7"))
    save_file({name: value.contiguous() for name, value in saved.network.items()}, path, metadata | {"weights": "raw"})
    with pytest.raises(UsageError, match="holds the raw weights alone"):  # not taken for the average
        load(path)
    raw = load(trained, device="cpu", weights="raw")
    assert np.array_equal(sample(load(path, device="cpu", weights="raw"), 2), sample(raw, 2))


def test_what_is_no_such_file_is_refused(trained: Path, tmp_path: Path) -> None:
    saved, path = checkpoint.load(trained), tmp_path / "x.safetensors"
    weights = {name: value.contiguous() for name, value in saved.ema.items()}
    config = saved.config.model_dump_json()
    with pytest.raises(CheckpointError, match="no such file"):
        load(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read as a safetensors file"):
        load(path)
    for metadata, words in (
        (None, "is not a model of ddpm"),
        ({"format": "pt"}, "is not a model of ddpm .*'pt'"),
        ({"format": "ddpm"}, "lack or misstate 'config'"),
        ({"format": "ddpm", "config": "{", "step": "1"}, "lack or misstate"),
        ({"format": "ddpm", "config": config, "step": "soon"}, "lack or misstate"),
        ({"format": "ddpm", "config": config, "step": "1", "data": "[]"}, "lack or misstate"),
    ):
        save_file(weights, path, metadata)
        with pytest.raises(CheckpointError, match=words):
            load(path)
    weights.pop("conv_out.bias")
    save_file(weights, path, {"format": "ddpm", "config": config, "step": "1"})
    with pytest.raises(CheckpointError, match=r"do not fit the network\n  conv_out\.bias: found none"):
        load(path)
    model_file.write(path, model_file.from_checkpoint(saved, storage="float16"))
    with pytest.raises(UsageError, match="holds the ema weights alone"):
        load(path, weights="raw")


def test_pack_and_the_commands_that_read_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("card.md").write_text("# Digits\n\nFID: to be measured\n")
    pack = ["pretrained", "pack", str(trained), "--card", "card.md", "--out", "a.safetensors"]
    assert main([*pack, "--set", "sampling.steps=4", "--set", "sampling.guidance=1.5"]) == 0
    printed = capsys.readouterr().out
    assert "SHA-256" in printed
    assert "the card says 'to be measured' in 1 place" in printed
    found = model_file.read(Path("a.safetensors"))
    sampling = found.config.sampling
    assert (sampling.steps, sampling.guidance, sampling.classes) == (4, 1.5, "random")
    assert found.card.startswith("# Digits")
    Path("other.md").write_text("# The same digits")
    again = ["pretrained", "pack", "a.safetensors", "--card", "other.md", "--out", "b.safetensors"]
    assert main([*again, "--set", "sampling.steps=3", "--set", "sampling.guidance=null"]) == 0
    other = model_file.read(Path("b.safetensors"))
    assert (other.config.sampling.steps, other.config.sampling.guidance, other.card) == (3, None, "# The same digits")
    assert all(torch.equal(value, found.weights[name]) for name, value in other.weights.items())
    capsys.readouterr()
    assert main(["sample", "a.safetensors", "--num-samples", "3", "--out", "s", "--device", "cpu"]) == 0
    settings = json.loads(Path("s/settings.json").read_text())
    assert (settings["classes"], settings["guidance"], settings["steps"]) == ("random", 1.5, 4)
    assert main(["info", "a.safetensors", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["step"], facts["stored_in"]) == (20, "float16")
    for wrong, words in (
        ([*pack[:-1], "a.pt"], "expected a name that ends in .safetensors"),
        ([*pack, "--set", "training.steps=4"], "the model is trained"),
        ([*pack, "--set", "sampling.stepz=4"], "Did you mean sampling.steps?"),
        ([*pack[:4], "absent.md", *pack[5:]], "cannot be read"),
    ):
        assert main(wrong) == 2
        assert words in capsys.readouterr().err
