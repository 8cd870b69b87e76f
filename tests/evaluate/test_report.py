"""The page of `ddpm evaluate --report`: whole in itself, and saying what the command says."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.cli import main
from ddpm.evaluate.report import page, rows_of_run
from ddpm.images import grid
from ddpm.run import train
from tests.tiny import tiny


class _Page(HTMLParser):
    """What a page would load, and whether its tags fit."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "data", "srcset")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in ("path", "polyline")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check(text: str) -> list[str]:
    found = _Page()
    found.feed(text)
    assert found.open == []
    assert all(source.startswith("data:image/png;base64,") for source in found.loads)
    assert not re.search(r"https?://|@import|url\(", text)
    return found.loads


def test_the_command_writes_one_whole_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(network__classes=10, training__steps=6)
    done = train(config, tmp_path / "run", device="cpu", progress=False)
    with (done.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # torn
    report = tmp_path / "new" / "page.html"
    command = ["evaluate", str(done.checkpoint), "--samples", "20", "--steps", "2", "--nll", "--images", "2"]
    command += ["--report", str(report), "--out", str(tmp_path / "e"), "--json", "--device", "cpu"]
    capsys.readouterr()
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == str(report)
    text = report.read_text()
    (source,) = _check(text)
    samples = said["samples"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    assert picture.shape == grid(np.zeros((20, 8, 8, 1), np.uint8)).shape[:2]
    for value in (
        f"{samples['samples']['recall']:.3f}",
        f"{samples['floors']['unseen_against_train']['precision']:.3f}",
        f"{said['nll']['bits_per_dimension']['total']['value']:.4f}",
        samples["provenance"]["samples_sha256"],
        samples["provenance"]["drawn"]["checkpoint_sha256"],
        samples["provenance"]["extractor_sha256"],
        "told each image&#x27;s class",
        "run, step 6",
        "Near-copies",
    ):
        assert value in text, value
    titles = re.findall(r'class="head">(.*?)<', text)
    expected = ["Likelihood by timestep", "Distortion by timestep", "Loss", "Preview: distance", "Gradient norm"]
    assert titles == expected
    assert text.count("<polyline") == 6  # the loss has two: training, validation


def test_a_page_of_one_measure_far_from_its_run(tmp_path: Path) -> None:
    done = train(tiny(training__steps=2), tmp_path / "run", device="cpu", progress=False)
    moved = tmp_path / "elsewhere" / done.checkpoint.name
    moved.parent.mkdir()
    done.checkpoint.rename(moved)
    report = tmp_path / "page.html"
    command = ["evaluate", str(moved), "--nll", "--images", "2", "--report", str(report), "--device", "cpu"]
    assert main(command) == 0
    text = report.read_text()
    assert _check(text) == []
    assert "Training</h2>" not in text
    assert "Samples</h2>" not in text


def test_names_are_no_markup() -> None:
    text = page(title="<b>&", model="<script>x</script>", samples=None, bound=None, run=[])
    _check(text)
    assert "&lt;b&gt;&amp;" in text


def test_rows_of_a_run(tmp_path: Path) -> None:
    assert rows_of_run(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n[]\n{"loss": 1}\n{"step": 2, "lo')
    assert rows_of_run(tmp_path) == [{"step": 1, "loss": 2}]
