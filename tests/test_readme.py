"""What the README says, run: its Python blocks and its commands, on shorter settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from ddpm.cli import main
from ddpm.config import load_config, shipped_configs
from ddpm.images import read_png
from tests.test_lesson import lesson  # noqa: F401  (the fixture: MNIST-like files at hand)

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
SHORT = [
    "training.steps=2",
    "network.channels=8",
    "network.norm_groups=4",
    "diffusion.timesteps=4",
    "training.preview_samples=2",
    "training.preview_steps=2",
    "training.precision=float32",
]


def test_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [code for language, code in BLOCKS if language == "python"]
    assert len(blocks) == 2
    short = ", ".join(repr(setting) for setting in (*SHORT, "sampling.steps=2"))
    names: dict[str, object] = {}
    exec(blocks[0].replace('"training.steps=200"', short), names)
    assert np.asarray(names["images"]).shape == (16, 8, 8, 1)
    assert (tmp_path / "output" / "mine" / "diffusion-2.pt").is_file()
    names = {}
    exec(blocks[1], names)
    # An oracle that knows the noise of one image leads to that image.
    assert names["last"].t == 0  # type: ignore[attr-defined]


def test_train_and_sample_commands(lesson: Path) -> None:  # noqa: F811
    block = next(code for _, code in BLOCKS if "ddpm train image/mnist/ddpm_cpu" in code)
    train, sample = (shlex.split(line, comments=True) for line in block.strip().splitlines())
    assert train[0] == sample[0] == "ddpm"
    overrides = [word for setting in (*SHORT, "data.held_out=0.2") for word in ("--set", setting)]
    assert main([*train[1:], *overrides]) == 0
    assert main([word.replace("diffusion-5000", "diffusion-2") for word in sample[1:]]) == 0
    folder = lesson / "output" / "image" / "mnist" / "sample" / "ddpm_cpu.yaml"
    assert read_png(folder / "00063.png").shape == (28, 28, 1)
    assert (folder / "reverse-process.gif").is_file()
    assert load_config("image/mnist/ddpm_cpu").training.steps == 5000  # the checkpoint that the README names


def test_every_shipped_configuration_is_listed_with_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    for path in shipped_configs().rglob("*.yaml"):
        name = path.relative_to(shipped_configs()).with_suffix("").as_posix()
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        assert main(["config", name]) == 0
        parameters = re.search(r"^parameters +([\d,]+)", capsys.readouterr().out, re.M)
        assert parameters is not None
        assert f"| {parameters[1]} |" in row


def test_commands_of_the_table_exist() -> None:
    for command in re.findall(r"^\| `ddpm (\w+)", README, re.M):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
