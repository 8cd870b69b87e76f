"""`ddpm evaluate --nll` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddpm.cli import main
from ddpm.run import train
from tests.tiny import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(tiny(training__steps=2), out, device="cpu", progress=False).checkpoint


def _figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["evaluate", *arguments, "--json", "--device", "cpu"]) == 0
    return dict(json.loads(capsys.readouterr().out)["nll"])


def test_a_table_and_files(checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["evaluate", str(checkpoint), "--nll", "--images", "5", "--out", str(tmp_path), "--device", "cpu"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for words in (
        "held_out: 5 of 180 images",
        "L_T",
        "L_1 .. L_19",
        "L_0",
        "total",
        "standard error",
        "nll-held_out.csv",
    ):
        assert words in text
    assert "ESTIMATE" not in text
    assert {path.name for path in tmp_path.iterdir()} == {f"nll-held_out.{kind}" for kind in ("json", "csv", "npz")}
    assert main([*arguments, "--timesteps", "5"]) == 0
    assert "ESTIMATE from 5 of 20 timesteps" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_number(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [str(checkpoint), "--nll", "--images", "9", "--out", str(checkpoint.parent / "e")]
    first = _figures(capsys, *common, "--batch-size", "9")
    assert first["seed"] == 0
    assert first["estimate"] is False
    total = first["bits_per_dimension"]["total"]["value"]  # type: ignore[index]
    again = _figures(capsys, *common, "--batch-size", "4")["bits_per_dimension"]
    assert again["total"]["value"] == pytest.approx(total, rel=1e-5)  # type: ignore[index]
    for change in (["--seed", "1"], ["--split", "train"], ["--weights", "raw"], ["--timesteps", "6"]):
        other = _figures(capsys, *common, *change)["bits_per_dimension"]
        assert abs(other["total"]["value"] - total) > 1e-5, change  # type: ignore[index]
    forms = _figures(capsys, *common, "--decoder", "tanh")["bits_per_dimension"]
    assert forms["transitions"]["value"] == pytest.approx(first["bits_per_dimension"]["transitions"]["value"])  # type: ignore[index]
    assert forms["decoder"]["value"] != first["bits_per_dimension"]["decoder"]["value"]  # type: ignore[index]


def test_default_folder(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _figures(capsys, str(checkpoint), "--nll", "--images", "2")["files"]
    assert str(checkpoint.parent.parent / "evaluate" / "run" / "nll-held_out.json") in files  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--nll"),
        (["--nll", "--timesteps", "21"], "2..20"),
        (["--nll", "--timesteps", "1"], "2..20"),
        (["--nll", "--images", "181"], "181 is more than the 180 images"),
    ],
)
def test_usage(checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(["evaluate", str(checkpoint), *arguments, "--device", "cpu"]) == 2
    assert words in capsys.readouterr().err


def test_no_test_images(checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["evaluate", str(checkpoint), "--nll", "--split", "test", "--device", "cpu"]) == 1
    assert "has no test images" in capsys.readouterr().err
    whole = train(tiny(training__steps=1, data__held_out=0.0), tmp_path / "run", device="cpu", progress=False)
    assert main(["evaluate", str(whole.checkpoint), "--nll", "--device", "cpu"]) == 2
    assert "--split train" in capsys.readouterr().err
    assert (
        main(["evaluate", str(whole.checkpoint), "--nll", "--split", "train", "--images", "2", "--device", "cpu"]) == 0
    )


def test_other_training_images_are_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    from ddpm import data

    load = data.load
    monkeypatch.setattr(data, "load", lambda *a, **k: dataclasses.replace(load(*a, **k), fingerprint="0" * 64))
    assert main(["evaluate", str(checkpoint), "--nll", "--split", "train", "--device", "cpu"]) == 1
    assert "other images" in capsys.readouterr().err
