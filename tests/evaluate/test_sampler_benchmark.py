"""Quality against network calls: the right number of calls, resumable, and refused where it is another benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ddpm.cli import main
from ddpm.evaluate import sampler_benchmark
from ddpm.generate import Model, load, network_calls, sampling_settings
from ddpm.images import read_png
from ddpm.run import train
from tests.tiny import tiny


@pytest.fixture(scope="module")
def checkpoint(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    config = tiny(
        data__source="mnist", data__root=str(shared_data / "mnist"), data__image_size=28, data__held_out=0.0,
        network__attention=(), training__preview_samples=1, training__preview_measured=0,
    )  # fmt: skip
    return train(config, folder / "run", progress=False).checkpoint


@pytest.fixture
def model(checkpoint: Path) -> Model:
    return load(checkpoint, device="cpu", precision="float32")


def test_each_sampler_takes_the_most_steps_within_the_budget(model: Model) -> None:
    plans = list(sampler_benchmark._plan(model, (7,), ("ddim", "heun", "pndm"), ("linspace",), {"seed": 0}))
    assert {p.settings.sampler: (p.settings.steps, p.calls) for p in plans}["ddim"] == (7, 7)
    for plan in plans:
        assert plan.calls <= 7
        more = sampling_settings(
            model, sampler=plan.settings.sampler, steps=(plan.settings.steps or 0) + 1, spacing="linspace"
        )
        assert network_calls(model, more) > 7


def test_the_command_goes_on_where_it_stopped(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampler_benchmark, "REFERENCE", 200)
    out = tmp_path / "out"
    command = ["benchmark", "samplers", str(checkpoint), "--images", "20", "--out", str(out), "--device", "cpu"]
    command += ["--calls", "3,5", "--samplers", "ddim,unipc"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "| `ddim` |" in printed
    assert printed.count("**") == 4  # the best of each column
    results = json.loads((out / "results.json").read_text())
    assert [(c["sampler"], c["calls"]) for c in results["cells"]] == [
        ("ddim", 3), ("ddim", 5), ("unipc", 3), ("unipc", 5)
    ]  # fmt: skip
    assert results["floor_fid"] < min(c["fid"] for c in results["cells"])  # an untrained model is far from the digits
    assert read_png(out / "curves.png").shape[2] == 3
    assert results["fid_of_too_few_images"] is True
    assert "Fewer than 2,048 images: these FIDs are biased" in printed
    assert results["reference_sha256"] != results["unseen_sha256"]
    assert {"checkpoint_sha256", "weights", "extractor_sha256", "transform", "seed", "images", "ddpm"} <= set(results)

    cell = out / "cells" / "ddim-trailing-3.json"
    kept = {path: path.read_bytes() for path in (out / "cells").iterdir()}
    cell.unlink()
    drawn = []
    real = sampler_benchmark.draw_samples
    monkeypatch.setattr(sampler_benchmark, "draw_samples", lambda *a, **k: drawn.append(a[2].sampler) or real(*a, **k))
    assert main(command) == 0
    assert drawn == ["ddim"]
    assert {path: path.read_bytes() for path in (out / "cells").iterdir()} == kept

    assert main([*command, "--seed", "1"]) == 2
    assert "holds a benchmark of something else (seed: 0 -> 1)" in capsys.readouterr().err
    assert main([*command, "--images", "10"]) == 2
    assert "--images: found 10; distances need at least 11" in capsys.readouterr().err
    assert main([*command, "--guidance", "2"]) == 2
    assert "guidance: 2.0 has no effect: this model was trained without classes" in capsys.readouterr().err
    assert main(["benchmark", "--most", "4", *command[1:]]) == 2
    assert "--config, --set and --most have no effect here" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--samplers", "dadim"])
    assert "'dadim': expected some of ancestral, ddim" in capsys.readouterr().err


def test_a_handful_held_out_is_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = tiny(data__held_out=0.004, training__steps=1)
    source = str(train(few, tmp_path / "run", progress=False).checkpoint)
    command = ["benchmark", "samplers", source, "--images", "12", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 2
    assert "train, held_out: 1,790 and 7 images; distances need at least 11 of each" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_leaves_out_what_was_not_measured() -> None:
    cell = sampler_benchmark.Cell("ddim", "linspace", 5, 5, 5, 12.345, 0.1, 0.01, 0.9)
    facts = {"extractor": "digits", "images": 20, "reference": "200 training images", "data": "mnist", "weights": "ema"}
    table = sampler_benchmark.Table(
        (cell, sampler_benchmark.Cell("heun", "linspace", 8, 7, 4, 3.0, 0.1, 0.01, 0.9)),
        facts | {"step": 6, "seed": 0, "fid_of_too_few_images": False}, 1.5, 20,
    )  # fmt: skip
    text = sampler_benchmark.markdown(table)
    assert "| `ddim` | **12.35** | - |" in text or "| `ddim` | **12.34** | - |" in text
    assert "| `heun` | - | **3.00** |" in text
    assert "biased" not in text
    assert np.asarray(sampler_benchmark.curves(table)).ndim == 3
