"""What docs/samplers.md says, run: its commands, its Python, its lists of times."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ddpm.choices import EFFECTIVE, Spacing
from ddpm.cli import main
from ddpm.run import train
from ddpm.samplers import network_calls
from ddpm.schedule import make_schedule, sampling_steps
from tests.tiny import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = train(tiny(diffusion__timesteps=60, training__steps=1), tmp_path / "run", progress=False)
    commands = [line for language, block in BLOCKS if not language for line in block.splitlines()]
    assert len(commands) == 5
    for i, line in enumerate(commands[:-1]):
        name, *words = shlex.split(line)
        assert name == "ddpm"
        words = [str(done.checkpoint) if word.endswith(".pt") else word for word in words]
        assert main([*words, "--num-samples", "1", "--out", str(i)]) == 0
        assert (tmp_path / str(i) / "00000.png").is_file()
    told = tiny(network__classes=10, data__held_out=0.1, diffusion__timesteps=60, training__steps=1)
    source = str(train(told, tmp_path / "told", progress=False).checkpoint)
    name, *words = [source if word.endswith(".safetensors") else word for word in shlex.split(commands[-1])]
    assert main([*words, "--images", "12", "--calls", "2,3", "--samplers", "ddim", "--out", "table"]) == 0
    assert "| `ddim` | " in Path("table/table.md").read_text()


def test_python() -> None:
    names: dict[str, object] = {}
    exec(next(code for language, code in BLOCKS if language == "python"), names)
    assert names["last"].t == 0  # type: ignore[attr-defined]


def test_times() -> None:
    """The table of spacings, to the digit."""
    for name in Spacing.__args__:  # type: ignore[attr-defined]
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
        said = [float(t) for t in row.split("|")[2].split(", then")[0].split(",")]
        steps = sampling_steps(make_schedule("linear", 1000), 5, name)
        assert [round(t, 1) for t, _ in steps] == said


def test_every_sampler_is_described_with_its_calls() -> None:
    linear = make_schedule("linear", 1000)
    for name in EFFECTIVE:
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
        calls = row.split("|")[4].split("(")[0].strip().replace("2 K", "2 * K")
        assert eval(calls, {"K": 20}) == network_calls(name, linear, sampling_steps(linear, 20))
        assert all(f"`{option}`" in row for option in EFFECTIVE[name])
