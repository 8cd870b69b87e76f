"""What docs/training.md says: its commands, the figures and settings that it names, and the script behind its table."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from ddpm.cli import main
from ddpm.config import flatten, load_config
from ddpm.images import read_png
from ddpm.run import train
from tests.test_readme import SHORT
from tests.tiny import tiny

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "training.md").read_text()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = shlex.split(next(line for line in PAGE.splitlines() if line.startswith("ddpm train")))
    assert main([*command[1:], *(word for setting in (*SHORT, "sampling.steps=2") for word in ("--set", setting))]) == 0
    rows = [json.loads(line) for line in next(tmp_path.rglob("metrics.jsonl")).read_text().splitlines()]
    logged = {key for row in rows for key in row} - {"step", "epoch", "learning_rate", "ema_decay"}
    described = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.M) for name in re.findall(r"`([\w/]+)`", row)}
    assert {key for key in logged if not key.startswith("time/")} <= described


def test_every_setting_that_is_named_exists() -> None:
    known = flatten(load_config("image/digits/ddpm_8x8"))
    for section in ("data", "diffusion", "training"):
        for name in re.findall(rf"`{section}\.(\w+)", PAGE):
            assert f"{section}.{name}" in known


def test_the_script_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train(tiny(training__log_every=1), tmp_path / "run", progress=False)
    rows = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    capsys.readouterr()
    script = DOCS / "figures" / "loss_curves.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(done.folder), "--out", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    line = capsys.readouterr().out.splitlines()[0]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    head = next(line for line in PAGE.splitlines() if line.startswith("| run |"))
    assert len(cells) == len(head.strip("|").split("|"))
    loss = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert cells[:2] == ["`digits`, run", "6 x 8"]
    assert cells[5:7] == [f"{loss[3]:.3g}", f"{loss[6]:.3g}"]
    assert cells[7] == f"{next(row['validation_loss'] for row in rows[::-1] if 'validation_loss' in row):.3g}"
    assert read_png(tmp_path / "training_run.png").shape[-1] == 3
