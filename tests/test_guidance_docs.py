"""What docs/guidance.md says, run: its commands and its Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from ddpm.cli import main
from ddpm.config import load_config
from ddpm.run import train
from tests.tiny import tiny

PAGE = (Path(__file__).parents[1] / "docs" / "guidance.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)


def test_commands_and_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(network__classes=10, diffusion__timesteps=60, training__steps=1)
    train(config, tmp_path / "run", progress=False).checkpoint.rename(tmp_path / "diffusion-12000.pt")
    first, *commands = [line for language, block in BLOCKS if not language for line in block.splitlines()]
    assert load_config(first.split()[2]).training.steps == 12000  # the checkpoint that the page names
    assert len(commands) == 5
    for i, line in enumerate(commands):
        name, *words = shlex.split(line)
        assert name == "ddpm"
        assert main([*words, "--out", str(i)]) == 0
        assert (tmp_path / str(i) / "grid.png").is_file()
    names: dict[str, object] = {}
    exec(next(code for language, code in BLOCKS if language == "python"), names)
    assert np.shape(names["threes"]) == (16, 8, 8, 1)  # type: ignore[arg-type]
    assert np.shape(names["mixed"]) == (4, 8, 8, 1)  # type: ignore[arg-type]
