"""CONTRIBUTING.md's worked examples, applied to a copy of the package and run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm.run import train
from docs.tools.blocks import blocks_of
from tests.docs.shell import ROOT, Shell
from tests.tiny import tiny

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##)", PAGE, re.M | re.S))


def _apply(diff: str, root: Path) -> None:
    """A diff without line numbers: runs of lines, the first of their like in the file that the header names."""
    for name, body in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", diff, re.M | re.S):
        path = root / name
        text = path.read_text()
        for old, new in _changes(body):
            assert old in text, f"{name}: {old!r} is not there"
            text = text.replace(old, new, 1)
        path.write_text(text)


def _changes(body: str) -> list[tuple[str, str]]:
    """What each run of changed lines replaces, and by what; an addition goes behind the line before it."""
    changes: list[tuple[str, str]] = []
    kept, old, new = "", "", ""
    for line in [*body.splitlines(), " end"]:
        mark, content = line[:1] or " ", line[1:] + "\n"
        if mark == " " or (mark == "-" and new):
            if old:
                changes.append((old.rstrip("\n"), new.rstrip("\n")))
            elif new:
                changes.append((kept, kept + new) if kept else (content, new + content))
            kept, old, new = (content, "", "") if mark == " " else ("", content, "")
        else:
            old, new = (old + content, new) if mark == "-" else (old, new + content)
    return changes


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", root / "configs")
    train(tiny(training__steps=1), root / "run", progress=False).checkpoint.rename(root / "diffusion.pt")
    for example in EXAMPLES.values():
        for block in blocks_of(example):
            if block.language == "diff":
                _apply(block.code, root)
            elif block.language == "python":
                path = block.code.splitlines()[0].removeprefix("# ")
                assert not (root / path).exists()
                (root / path).write_text(block.code)
    return root


def _run(root: Path, lines: list[str]) -> list[str]:
    """What each command prints, run in one process of the copied package."""
    commands = [Shell(root, root / "diffusion.pt")._tiny(shlex.split(line)[1:]) for line in lines]
    code = "import json, sys; from ddpm.cli import main\n"
    code += f"for words in json.loads({json.dumps(commands)!r}): print('=' * 9, main(words))"
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    made = subprocess.run(
        [sys.executable, "-u", "-c", code],  # both streams in the order of what was printed
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout
    *printed, _ = re.split(r"^=========", made.stdout, flags=re.M)
    assert made.stdout.count("========= 0\n") == len(lines), made.stdout
    return printed


def test_there_are_four_examples_each_below_forty_lines() -> None:
    assert list(EXAMPLES) == ["A sampler", "A schedule", "A data source", "A metric"]
    for name, example in EXAMPLES.items():
        lines = [line for b in blocks_of(example) if b.language in ("python", "diff") for line in b.code.splitlines()]
        written = [line for line in lines if line.strip() and line[:1] not in "-"]
        assert len(written) < 45, name
        files = [len(b.code.splitlines()) for b in blocks_of(example)]
        assert max(files) < 40, name


def test_the_examples_run(copied: Path) -> None:
    lines = [next(b.code.strip() for b in blocks_of(text) if not b.language) for text in EXAMPLES.values()]
    sampler, schedule, source, metric = _run(copied, lines)
    assert "midpoint, 5 steps (10 network calls an image)" in sampler
    assert re.search(r"diffusion.schedule +geometric", schedule)
    assert "squares: 900 images, 100 held out, 16x16" in source
    assert re.search(r"mean distance( +\d+\.\d+)+", metric)
    (report,) = (copied.parent / "evaluate" / copied.name).glob("samples-*.json")
    assert json.loads(report.read_text())["samples"]["mean_distance"] > 0


def test_the_examples_compute_what_they_say(copied: Path) -> None:
    """The sampler is of second order, the schedule geometric."""
    code = """
import torch, ddpm
from ddpm.samplers.middle import midpoint
betas = ddpm.make_schedule("geometric", 1000).betas
assert torch.allclose(betas[1:] / betas[:-1], betas[1] / betas[0], rtol=1e-6)
d = ddpm.Diffusion(schedule=ddpm.make_schedule("linear", 4096))
def net(x, t):  # of normal data with variance 4
    a = d.schedule.at(float(t[0]), d.schedule.alpha_bar)
    return d.eps_of(4 * a**0.5 / (1 + 3 * a) * x, x, t)
x = torch.full((1, 1, 1, 1), 1.0, dtype=torch.float64)
def end(k):
    steps = [(t, t - 2048 // k) for t in range(3072, 1024, -2048 // k)]
    return float(list(midpoint(d, net, x, steps, clip=False))[-1].x)
exact = end(256)
errors = [abs(end(k) - exact) for k in (8, 16, 32)]
assert 3.3 < errors[0] / errors[1] < 4.7, errors
assert 3.3 < errors[1] / errors[2] < 4.7, errors
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(copied / "src")}, check=True)


def test_every_room_is_on_the_map() -> None:
    from tests.test_layers import FLOORS
    from tests.test_layers import ROOT as PACKAGE

    for floor, rooms in enumerate(FLOORS):
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {floor} |"))
        for name in re.findall(r"`(\w+)(?:\.py|/)?`", row):
            assert name in rooms, f"{name} is not on floor {floor}"
            assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()
