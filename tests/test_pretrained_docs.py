"""What docs/pretrained.md says, run on a stand-in: its commands and its Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from ddpm import shipped
from ddpm.cli import main
from ddpm.config import load_config
from ddpm.generate import file_sha256
from ddpm.run import train
from ddpm.shipped import Shipped
from tests.test_lesson import lesson  # noqa: F401  (the fixture: MNIST-like files at hand)
from tests.test_readme import SHORT

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (DOCS / "pretrained.md").read_text(), re.S)


def test_commands_and_python(lesson: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    short = [*(setting for setting in SHORT if "timesteps" not in setting), "training.preview_measured=4"]
    config = load_config(
        "image/mnist/ddpm_cpu_classes",
        [*short, "diffusion.timesteps=20", "data.held_out=0.2"],
    )
    done = train(config, "run", device="cpu", progress=False)
    commands = [
        shlex.split(line, comments=True) for language, code in BLOCKS if not language for line in code.splitlines()
    ]
    *uses, pack = commands
    Path("docs").symlink_to(DOCS)
    assert main([str(done.checkpoint) if word.endswith(".pt") else word for word in pack[1:]]) == 0
    made = Path("mnist.safetensors").resolve()
    monkeypatch.setattr(shipped, "FOLDER", made.parent)
    monkeypatch.setitem(shipped.MODELS, "mnist", Shipped(made.name, file_sha256(made), "digits"))
    assert len(uses) == 6
    for name, *words in uses:
        assert name == "ddpm"
        few = {"64": "3", "2048": "11"}
        assert main([few.get(word, word) for word in words]) == 0
    names: dict[str, object] = {}
    exec(next(code for language, code in BLOCKS if language == "python"), names)
    assert np.shape(names["digits"]) == (16, 28, 28, 1)  # type: ignore[arg-type]
