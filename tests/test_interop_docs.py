"""What docs/interop.md, docs/app.md and the notebook say, held against the program."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from ddpm import checkpoint
from ddpm.cli import _parser, main
from ddpm.interop.bare import bare_checkpoint
from ddpm.training_loop import build_network
from tests.test_lesson import lesson  # noqa: F401  (the fixture: MNIST-like files at hand)
from tests.tiny import tiny

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("interop", "app")}
COMMANDS = [
    shlex.split(line)[1:]
    for text in PAGES.values()
    for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.S)
    if not language
    for line in block.splitlines()
    if line.startswith("ddpm ")
]


def test_every_command_has_the_options_that_are_written_down() -> None:
    assert len(COMMANDS) >= 12
    for arguments in COMMANDS:
        _parser().parse_args(arguments)


def test_commands_that_need_no_network_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = build_network(tiny()).state_dict()
    checkpoint.save(Path("diffusion-5000.pt"), bare_checkpoint(weights, tiny(), step=5000))
    quick = [a for a in COMMANDS if a[:2] == ["export", "diffusion-5000.pt"] and a[3] in ("diffusers", "safetensors")]
    quick += [a for a in COMMANDS if a[:2] in (["import", "mine"], ["import", "mine.safetensors"])]
    assert len(quick) == 4
    for arguments in quick:
        assert main(arguments) == 0, arguments


def test_pictures_are_there() -> None:
    for text in PAGES.values():
        for name in re.findall(r"\]\((assets/[^)]+)\)", text):
            assert (ROOT / "docs" / name).is_file(), name


def test_extras_are_declared() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"ddpm\[([\w-]+)\]", "".join(PAGES.values())))
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named |= set(re.findall(r"pip install 'ddpm\[([\w-]+)\]'", source))
    assert {"hub", "app", "onnx"} <= named
    assert named <= set(declared)
    assert {"hub", "onnx", "app", "wandb", "mlflow", "datasets"} <= set(declared)


def notebook() -> Any:
    return json.loads((ROOT / "notebooks/mnist_colab.ipynb").read_text())


def test_the_notebook_has_no_outputs_of_its_own() -> None:
    book = notebook()
    assert (book["nbformat"], book["metadata"]["accelerator"]) == (4, "GPU")
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
def test_the_notebook_runs(lesson: Path) -> None:  # noqa: F811
    """Its cells one after the other, on a few images, with a small network."""
    small = (
        '"network.channels=8", "network.norm_groups=4", "diffusion.timesteps=8", "training.preview_samples=2", '
        '"training.preview_steps=2", "training.precision=float32", "data.held_out=0.2"'
    )
    names: dict[str, Any] = {}
    for cell in notebook()["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] != "code" or "%pip" in code:
            continue
        code = code.replace("STEPS = 5000", "STEPS = 2").replace('{STEPS}"]', '{STEPS}", ' + small + "]")
        exec(code.replace("steps=20", "steps=4"), names)
    assert names["images"].shape == names["fewer"].shape == (16, 28, 28, 1)
    assert len(names["rows"]) == 8
