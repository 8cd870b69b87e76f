"""What docs/paper.md and docs/likelihood.md say, run: their commands and their Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ddpm.cli import main
from ddpm.commands.paper import ENTRIES
from ddpm.run import train
from tests.test_lesson import lesson  # noqa: F401  (the fixture: MNIST-like files at hand)
from tests.tiny import tiny

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("paper", "likelihood")}


def _blocks(page: str, language: str) -> list[str]:
    return [code for kind, code in re.findall(r"```(\w*)\n(.*?)```", PAGES[page], re.S) if kind == language]


def _commands(page: str) -> list[list[str]]:
    return [shlex.split(line) for block in _blocks(page, "") for line in block.splitlines()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("runs") / "run"
    return str(train(tiny(training__steps=1, diffusion__timesteps=50), out, device="cpu", progress=False).checkpoint)


def test_paper_commands(checkpoint: str, lesson: Path) -> None:  # noqa: F811
    made = set()
    for ddpm, paper, name, source, *options in _commands("paper"):
        assert (ddpm, paper) == ("ddpm", "paper")
        source = source.replace("diffusion-5000.pt", checkpoint)
        few = [word for key in ("images", "samples") if key in ENTRIES[name].options for word in (f"--{key}", "2")]
        assert main(["paper", name, source, *options, *few, "--out", name]) == 0
        assert (lesson / name / f"{name}.json").is_file()
        made.add(name)
    assert made == set(ENTRIES) - {"table2"}  # which trains, and is tested on its own
    assert all(f"| `{name}`" in PAGES["paper"] or f", `{name}` |" in PAGES["paper"] for name in ENTRIES)


def test_likelihood_commands(checkpoint: str, tmp_path: Path) -> None:
    commands = _commands("likelihood")
    assert len(commands) == 3
    for ddpm, *words in commands:
        assert ddpm == "ddpm"
        words = [{"diffusion-5000.pt": checkpoint, "500": "3"}.get(word, word) for word in words]
        images = [] if "--images" in words else ["--images", "2"]
        assert main([*words, *images, "--out", str(tmp_path)]) == 0


def test_python(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = _blocks("likelihood", "python")
    exec(code, {})
    exact, estimate = capsys.readouterr().out.splitlines()
    assert estimate.endswith("True")
    assert len(exact.split("+-")) == 4


def test_pictures_are_there_and_small() -> None:
    for name in re.findall(r"\(assets/(.*?)\)", PAGES["paper"]):
        assert 1000 < (DOCS / "assets" / name).stat().st_size < 200_000, name
