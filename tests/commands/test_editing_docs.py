"""What docs/editing.md says, run: its commands and its Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.cli import main
from ddpm.images import save_png
from ddpm.run import train
from tests.tiny import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "editing.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(diffusion__timesteps=50, sampling__steps=None, training__steps=1)
    done = train(config, tmp_path / "run", progress=False)
    for name in ("three", "eight", "mask"):
        save_png(tmp_path / f"{name}.png", np.eye(8, dtype=np.uint8)[..., None] * 255)
    commands = [line for language, block in BLOCKS if not language for line in block.splitlines()]
    assert {line.split()[1] for line in commands} == {"edit", "inpaint", "interpolate"}
    for i, line in enumerate(commands):
        name, *words = shlex.split(line)
        assert name == "ddpm"
        words = [str(done.checkpoint) if word.endswith(".pt") else word for word in words]
        short = [] if "--steps" in words else ["--steps", "12"]
        assert main([*words, *short, "--num-samples", "1", "--out", str(i)]) == 0
        assert (tmp_path / str(i) / "grid.png").is_file()


def test_python() -> None:
    names: dict[str, torch.Tensor] = {}
    exec(next(code for language, code in BLOCKS if language == "python"), names)  # type: ignore[arg-type]
    assert [names[name].t for name in ("edited", "filled", "mixed")] == [0, 0, 0]  # type: ignore[attr-defined]
    filled, x0, known = names["filled"].x, names["x0"], names["known"]  # type: ignore[attr-defined]
    assert torch.equal(filled[..., :4, :], x0[..., :4, :])
    assert not bool(known[..., 4:, :].any())
