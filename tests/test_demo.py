"""`make demo`, on a tiny network: it trains, draws, animates and judges."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ddpm import demo
from tests.tiny import tiny


def test_the_demo_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ddpm.config.load_config", lambda name: tiny(data__held_out=0.0))
    monkeypatch.setattr(demo, "SAMPLES", 20)
    for _ in range(2):  # the second time everything is there already
        demo.demo(tmp_path)
        printed = capsys.readouterr().out
        for words in ("surely a digit", "held-out scans", "pure noise", "near-copies", "of the 10 digits appear"):
            assert words in printed
        for line in ("samples", "animation", "checkpoint"):
            path = next(x.split(maxsplit=1)[1] for x in printed.splitlines() if x.startswith(line + " "))
            assert Path(path).is_file()
    with Image.open(tmp_path / "drawn" / "reverse-process.gif") as gif:
        assert gif.n_frames == 5
