"""Table 2: its six rows, what each trains, and what is said of one that diverges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm import manifest, run
from ddpm.cli import main
from ddpm.config import Config, to_yaml
from ddpm.errors import ConfigError, DivergedError
from ddpm.images import read_png
from ddpm.paper.table2 import ROWS, make, row_config
from ddpm.training_loop import build_diffusion, build_objective
from tests.tiny import tiny


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(to_yaml(tiny()))
    return path


def test_the_rows_are_the_papers() -> None:
    found = [(row.prediction, row.loss, "learned" if row.learned else "fixed", row.inception_score) for row in ROWS]
    assert found == [
        ("mu", "bound", "learned", "7.28 +- 0.10"),
        ("mu", "bound", "fixed", "8.06 +- 0.09"),
        ("mu", "simple", "fixed", "-"),
        ("epsilon", "bound", "learned", "-"),
        ("epsilon", "bound", "fixed", "7.67 +- 0.13"),
        ("epsilon", "simple", "fixed", "9.46 +- 0.11"),
    ]
    assert [row.fid for row in ROWS] == ["23.69", "13.22", "-", "-", "13.51", "3.17"]
    assert len({row.name for row in ROWS}) == 6


def test_a_row_changes_what_the_table_varies_and_nothing_else() -> None:
    base = tiny(
        diffusion__variance="learned_range",
        training__loss="hybrid",
        training__vlb_weight=0.1,
        training__weighting="min_snr",
        training__timesteps="importance",
        sampling__steps=None,
    )
    for row in ROWS:
        config = row_config(base, row, "here", steps=100, seed=9)
        process, objective = build_diffusion(config), build_objective(config)
        assert process.prediction == row.prediction
        assert process.variance == ("learned" if row.learned else "fixed_large")
        assert (objective.loss, objective.min_snr_gamma) == (row.loss, None)
        assert (config.training.steps, config.training.save_every) == (100, 3)
        assert (config.training.seed, config.sampling.seed) == (9, 9)
        assert config.sampling.steps is None
        assert config.training.timesteps == "importance"
        assert config.network == base.network
        assert config.data == base.data
    small = row_config(tiny(diffusion__variance="fixed_small"), ROWS[-1], "here")
    assert small.diffusion.variance == "fixed_small"
    assert row_config(tiny(data__held_out=0.0), ROWS[0], "here").data.held_out == 0.1


def test_a_base_that_does_not_suit_is_refused_before_anything_is_trained(source: Path, tmp_path: Path) -> None:
    def train(*_: object, **__: object) -> Any:
        raise AssertionError("nothing should be trained")

    overrides = ["diffusion.prediction=v", "diffusion.zero_terminal_snr=true"]
    with pytest.raises(ConfigError, match=r"row mu-bound-learned.*'mu' says nothing"):
        make(source, tmp_path / "out", train=train, overrides=overrides)


@pytest.mark.slow
def test_the_command_trains_every_row(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["paper", "table2", str(source), "--out", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--steps", "2", "--images", "6", "--samples", "3", "--seed", "0", "--quick"]
    arguments += ["--set", "diffusion.timesteps=5"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "L, learned diagonal Sigma" in printed
    assert "9.46 +- 0.11" in printed
    assert "for comparison among these rows alone" in printed
    numbers = json.loads((tmp_path / "out" / "table2.json").read_text())
    assert [row["stable"] for row in numbers["rows"]] == [True] * 6
    assert (numbers["seed"], numbers["training_steps"], numbers["images"]) == (0, 2, 6)
    for row, described in zip(ROWS, numbers["rows"], strict=True):
        sums = described["likelihood"]["bits_per_dimension"]
        parts = sums["prior"]["value"] + sums["transitions"]["value"] + sums["decoder"]["value"]
        assert parts == pytest.approx(sums["total"]["value"], rel=1e-9)
        assert (tmp_path / "out" / row.name / "diffusion-2.pt").exists()
        assert (tmp_path / "out" / row.name / "samples.png").exists()
    assert read_png(tmp_path / "out" / "table2.png").shape[-1] == 3
    # The same command again finds every row trained and says the same.
    assert main([*arguments, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    again.pop("files")
    assert again == numbers


def test_a_row_that_diverges_is_a_result(source: Path, tmp_path: Path) -> None:
    """The others go on; the last good step is named, and nothing is measured of what diverged."""

    def train(config: Config, out: Path, *, device: torch.device | None) -> Any:
        if config.training.loss == "bound" and config.diffusion.prediction == "epsilon":
            saved = None if config.diffusion.variance == "learned" else out / "diffusion-3.pt"
            raise DivergedError("the loss is nan", 5, saved)
        return run.train(config, out, device=device, progress=False)

    made = make(source, tmp_path / "out", train=train, images=4, samples=2)
    rows = {row["name"]: row for row in made.numbers["rows"]}
    assert [row["stable"] for row in made.numbers["rows"]] == [True, True, True, False, False, True]
    assert (rows["epsilon-bound-fixed"]["steps"], rows["epsilon-bound-fixed"]["last_good_step"]) == (5, 3)
    assert rows["epsilon-bound-learned"]["last_good_step"] is None
    assert rows["epsilon-bound-fixed"]["likelihood"] is None
    assert "no: diverged at 5, last good 3" in made.text
    assert "no: diverged at 5, no good step" in made.text

    def all_diverge(config: Config, out: Path, *, device: torch.device | None) -> Any:
        raise DivergedError("the loss is inf", 1, None)

    made = make(source, tmp_path / "none", train=all_diverge)
    assert [path.name for path in made.files] == ["table2.txt", "table2.json"]


def test_a_run_that_diverges_says_where_and_what_is_good(tmp_path: Path) -> None:
    config = tiny(training__steps=3)
    first = run.train(config, tmp_path, progress=False)
    content = torch.load(first.checkpoint, weights_only=True)
    content["network"]["conv_out.bias"].fill_(float("nan"))
    torch.save(content, first.checkpoint)
    manifest.enter(first.checkpoint, None)  # as if it had been written so
    with pytest.raises(DivergedError) as caught:
        run.train(tiny(training__steps=6), tmp_path, progress=False)
    assert caught.value.step == 4
    assert caught.value.saved == first.checkpoint
