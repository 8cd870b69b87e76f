"""Every code block of the documentation is run: Python with its printed output, commands on tiny settings."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from ddpm.config import find_config, load_config, parse_config, plain
from ddpm.images import save_png
from ddpm.run import train
from docs.tools.blocks import blocks_of, run_python
from tests.docs.shell import ROOT, TINY, Shell
from tests.test_lesson import lesson  # noqa: F401  (the fixture: MNIST-like files at hand)

PAGES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "docs").rglob("*.md"))}
OWN = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "tests").rglob("test_*.py")
    if "docs" in path.stem or path.stem == "test_readme"
}
"""Tests that run pages of their own."""
SLOW = {"docs/howto/evaluate.md", "docs/evaluation.md", "docs/performance.md"}
"""Minutes of measuring on real data."""


def _has_a_test(page: str) -> bool:
    stem = Path(page).stem
    return any(re.search(rf'"{stem}(\.md)?"', text) for text in OWN.values())


GENERAL = [page for page in PAGES if blocks_of(PAGES[page].read_text()) and not _has_a_test(page)]


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config("image/digits/ddpm_8x8", [*TINY, "sampling.steps=5"])
    return train(config, tmp_path_factory.mktemp("runs") / "run", device="cpu", progress=False).checkpoint


@pytest.fixture
def shell(spare: Path, lesson: Path) -> Shell:  # noqa: F811
    """The lesson's folder, with a few pictures in two classes beside."""
    generator = np.random.default_rng(0)
    for i in range(20):
        picture = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        save_png(lesson / "pictures" / ("a", "b")[i % 2] / f"{i}.png", picture)
    return Shell(lesson, spare)


@pytest.mark.filterwarnings("ignore::UserWarning")  # for people: those of tiny settings
@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in GENERAL])
def test_page(page: str, shell: Shell) -> None:
    names: dict[str, object] = {"__name__": "lesson"}
    for block in blocks_of(PAGES[page].read_text()):
        where = f"{page}:{block.line}"
        match block.language:
            case "python":
                ((_, printed),) = run_python([block], names, page)
                assert printed == (block.said or ""), f"{where}: says otherwise"
            case "" | "sh":
                printed, lines = "", block.code.replace("\\\n", " ").splitlines()
                for line in lines:
                    code, out = shell.run(line)
                    refused = block.said is not None and block.said.startswith("ddpm: ")
                    assert code == (2 if refused else 0), f"{where}: {line}\n{out}"
                    printed += out
                _same_words(shell, block.said, printed, where)
            case "yaml":
                _fits(block.code, where)
            case _:
                raise AssertionError(f"{where}: the tests do not know {block.language!r}")


def _same_words(shell: Shell, said: str | None, printed: str, where: str) -> None:
    """A refusal is quoted to the letter; of what trained models print, the words and not the numbers."""
    if said is None:
        return
    said, printed = shell.plain(said), shell.plain(printed)
    if not said.startswith("ddpm: "):
        said, printed = (re.sub(r"[\d.,]+", "N", text) for text in (said, printed))
    for line in said.splitlines():
        assert line in printed, f"{where}: {line!r} is not in\n{printed}"


def _fits(code: str, where: str) -> None:
    """A piece of YAML is a piece of some configuration."""
    from ruamel.yaml import YAML

    piece = YAML(typ="safe", pure=True).load(code)
    base = plain(load_config("image/digits/ddpm_8x8"))
    for section, settings in piece.items():
        base.setdefault(section, {}).update(settings)
    if "image_size" in piece.get("data", {}):
        base["network"]["multipliers"] = [1, 2]
        base["network"]["attention"] = []
    if "network" in piece:
        base["data"]["image_size"] = 32
    base["training"]["epochs"] = None
    if base["training"]["loss"] != "simple":
        base["training"]["weighting"] = "none"
    parse_config(base, source=where)


def test_the_lessons_configuration_is_quoted_as_it_is() -> None:
    from ruamel.yaml import YAML

    config = plain(load_config("image/mnist/ddpm_32x32_epsilon_discrete"))
    file = YAML(typ="safe", pure=True).load(find_config("image/mnist/ddpm_32x32_epsilon_discrete").read_text())
    quoted: dict[str, dict[str, object]] = {}
    for block in blocks_of(PAGES["docs/lesson/06-training.md"].read_text()):
        if block.language == "yaml":
            quoted |= YAML(typ="safe", pure=True).load(block.code)
    assert set(quoted) == {"data", "diffusion", "network", "training"}
    for section, settings in quoted.items():
        assert set(settings) == set(file[section]), section
        assert settings == {key: config[section][key] for key in settings}


def test_a_wrong_output_is_noticed() -> None:
    page = "```python\nprint(1)\n```\n\n```text\n2\n```\n"
    ((block, printed),) = run_python(blocks_of(page), {})
    assert (block.said, printed) == ("2\n", "1\n")
    assert blocks_of("```python\nx\n```\nwords\n```text\n2\n```\n")[0].said is None


def test_pictures_are_there_sharp_and_small() -> None:
    for page, path in PAGES.items():
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text()):
            picture = (path.parent / name).read_bytes()
            width, height = struct.unpack(">II", picture[16:24])
            assert 500 <= width <= 1800, f"{page}: {name} is {width} pixels wide"
            assert height <= 2000, f"{page}: {name} is {height} pixels high"
            assert 1000 < len(picture) < 400_000, f"{page}: {name} has {len(picture):,} bytes"


def test_every_figure_is_shown_and_every_number_file_has_its_figure() -> None:
    from docs.figures.__main__ import FIGURES

    shown = set(re.findall(r"assets/lesson/([\w-]+)\.png", "".join(path.read_text() for path in PAGES.values())))
    assets = ROOT / "docs" / "assets" / "lesson"
    assert shown == set(FIGURES)
    assert {path.stem for path in assets.iterdir()} == set(FIGURES)
    assert all((assets / f"{name}.json").is_file() for name in FIGURES)


_MATHS = re.compile(r"\$\$(.+?)\$\$|(?<![\w$\\])\$([^$\n]+?)\$(?![\w$])", re.S)


def test_formulas_survive_markdown() -> None:
    """Backslashes before punctuation are eaten by Markdown, and bars end table cells: other spellings exist."""
    count = 0
    for page, path in PAGES.items():
        text = re.sub(r"```.*?```|`[^`\n]+`", "", path.read_text(), flags=re.S)
        for match in _MATHS.finditer(text):
            formula = match[1] or match[2]
            count += 1
            assert not re.search(r"\\[^a-zA-Z]", formula), f"{page}: {formula}"
            assert formula.count("{") == formula.count("}"), f"{page}: {formula}"
            assert not set("|*") & set(formula), f"{page}: {formula}"
            left, right = (len(re.findall(rf"\\{side}(?![a-z])", formula)) for side in ("left", "right"))
            assert left == right, f"{page}: {formula}"
    assert count > 100
