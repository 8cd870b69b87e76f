"""The site: generated references are up to date, links lead somewhere, and it builds strictly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.tools import reference
from docs.tools.blocks import blocks_of
from tests.docs.shell import ROOT

BROWSER = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --virtual-time-budget=4000"
MARKDOWN = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--allow-file-access-from-files",
    "--virtual-time-budget=4000",
)


@pytest.mark.parametrize("name", ["config.md", "commands.md"])
def test_references_are_up_to_date(name: str) -> None:
    assert (reference.OUT / name).read_text() == reference.pages()[name], "run: make references"


def test_references_say_what_the_code_says() -> None:
    config, commands = reference.pages().values()
    assert "| `schedule` | `linear`, `quad`," in config
    assert "| `held_out` | number from 0 below 1 | `0.0` |" in config
    assert "| `attention` | list of whole number from 1 | `[16]` |" in config
    assert "| `source` | `digits`," in config
    assert "## ddpm extractor train" in commands
    assert "| `--weights ema\\|raw` |" in commands


def test_an_undocumented_key_is_noticed() -> None:
    """Every key and every option has words of its own."""
    for line in reference.pages()["config.md"].splitlines():
        assert not re.search(r"\| +\|$", line) or "key | values" in line, line
    bare = [line for line in reference.pages()["commands.md"].splitlines() if re.search(r"^\| `--.*\|  \|$", line)]
    assert not bare


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    """Relative links are files, anchors headings, and names of code in a .py link are defined there."""
    site = pytest.importorskip("docs.tools.site")
    text = path.read_text()
    for token in site.TOKEN.finditer(text):
        if not token["target"] or "://" in token["target"]:
            continue
        name, _, anchor = token["target"].partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{token[0]}: no such file"
        if anchor:
            assert anchor in _anchors(target), f"{token[0]}: no such heading"
        words = token["text"].strip("`")
        if target.suffix == ".py" and token["text"].startswith("`") and not words.endswith(".py"):
            site.line_of(target.relative_to(ROOT), words)


def _anchors(path: Path) -> set[str]:
    """The headings of a page, as a repository's host and the site name them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.M)
    }


def test_equations_stand_beside_their_functions() -> None:
    """Of the paper's 15 equations each is in the lesson; all but those of pure rewriting beside a link to code."""
    lesson = "".join(path.read_text() for path in sorted((ROOT / "docs" / "lesson").glob("*.md")))
    numbers = {int(n) for group in re.findall(r"Equations? ([\d, and]+)", lesson) for n in re.findall(r"\d+", group)}
    assert set(range(1, 16)) - numbers == {9}  # 8 with 10 put in
    linked = re.findall(r"Equations? ([\d and]+)[^\n]*?\]\(\.\./\.\./src/ddpm/\w+(?:/\w+)?\.py\)", lesson)
    found = {int(n) for group in linked for n in re.findall(r"\d+", group)}
    assert found >= {1, 2, 4, 5, 6, 7, 11, 13, 14, 15}


def test_every_file_of_the_source_is_linked_by_its_own_name() -> None:
    site = pytest.importorskip("docs.tools.site")
    lines = (ROOT / "src" / "ddpm" / "diffusion.py").read_text().splitlines()
    assert lines[site.line_of(Path("src/ddpm/diffusion.py"), "diffusion.Diffusion.q_sample") - 1].startswith(
        "    def q_sample"
    )
    with pytest.raises(Exception, match="is not in"):
        site.line_of(Path("src/ddpm/diffusion.py"), "Diffusion.q_simple")
    links = site._links("[a](b) `[c](d)`\n```\n[e](f)\n```\n[`g`](h)\n", lambda link: link["target"].upper())
    assert links == "B `[c](d)`\n```\n[e](f)\n```\nH\n"


def test_blocks_have_known_languages_and_are_not_indented() -> None:
    for path in MARKDOWN:
        assert not re.search(r"^ +```", path.read_text(), re.M), f"{path}: an indented block would not be run"
        found = {block.language for block in blocks_of(path.read_text())}
        assert found <= {"", "sh", "python", "text", "yaml", "diff"}, path


@pytest.mark.slow
def test_the_site_builds_strictly_and_its_formulas_are_set(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "lesson" / "02-forward.html").read_text()
    assert "source/src/ddpm/diffusion.py.html#__codelineno-0-" in page
    assert not re.search(r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)"', page), "a page fetches from elsewhere"
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    for path in sorted((tmp_path / "lesson").glob("*.html")) if browser else []:
        shown = subprocess.run(
            [str(browser), *BROWSER.split(), "--dump-dom", path.as_uri()],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        formulas = path.read_text().count('class="arithmatex"')
        assert shown.count('class="katex"') == formulas, path.name
        assert "katex-error" not in shown, path.name
