"""What docs/howto/large-data.md ("large-data") says: its settings, commands and messages, on shards made here."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm import checkpoint
from ddpm.cli import main
from ddpm.config import load_config, parse_config, plain, shipped_configs
from ddpm.data import stream
from ddpm.errors import ConfigError
from tests.data.files import noise, shard
from tests.test_readme import SHORT

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "large-data.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)
SECTIONS = [code for language, code in BLOCKS if language == "yaml"]


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 50, 3)).save(buffer, "JPEG")
    return buffer.getvalue()


def _template() -> dict[str, Any]:
    from ruamel.yaml import YAML

    return dict(YAML(typ="safe", pure=True).load((shipped_configs() / "image/folder/template.yaml").read_text()))


def _with_data(section: str) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return _template() | YAML(typ="safe", pure=True).load(section)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`my_config.yaml` in the current folder, as the page says to make it, and four shards."""
    monkeypatch.chdir(tmp_path)
    template = (shipped_configs() / "image/folder/template.yaml").read_text()
    before, _, after = template.partition("data:\n")
    Path("my_config.yaml").write_text(before + SECTIONS[0] + "\n" + after[after.index("network:") :])
    for number in range(4):
        shard(tmp_path / "shards" / f"{number:03}.tar", [{"jpg": _jpeg()} for _ in range(9)])
    return tmp_path / "my_config.yaml"


def test_the_commands(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("webdataset", reason="an extra: pip install 'ddpm[webdataset]'")
    commands = [shlex.split(line) for language, code in BLOCKS if not language for line in code.splitlines()]
    short = [word for setting in (*SHORT, "sampling.steps=2", "training.batch_size=8") for word in ("--set", setting)]
    ran = 0
    for words in commands:
        if words[0] == "ddpm":
            assert main([*words[1:], *short]) == 0
            ran += 1
    assert ran == 5
    assert checkpoint.load(Path("output/streamed/diffusion-2.pt")).stream
    assert len([words for words in commands if words[0] == "torchrun"]) == 1


def test_the_sections_are_configurations_and_their_roots_are_shards() -> None:
    for section in SECTIONS:
        assert parse_config(_with_data(section), source="page").data.streamed
    assert len(SECTIONS) == 2


def test_what_it_says_a_stream_cannot_do() -> None:
    streamed = _with_data(SECTIONS[0])
    refused = {
        "training": {"steps": None, "epochs": 1.0},
        "data": {"held_out": 0.1},
    }
    for section, settings in (*refused.items(), ("data", {"resize": "pad"})):
        for key in settings:
            assert f"{section}.{key}" in PAGE or key == "steps"
        with pytest.raises(ConfigError):
            parse_config(streamed | {section: streamed[section] | settings}, source="page")


def test_its_numbers() -> None:
    assert f"blocks of {stream.BLOCK:,}" in PAGE
    assert f"(of {stream.FEW:,} at least)" in PAGE
    from ddpm.previews import REFERENCE

    assert f"the first {REFERENCE:,} pictures" in PAGE
    assert np.isclose(10e6 * 64 * 64 * 3 / 1e9, 123, atol=0.5)
    assert plain(load_config("image/folder/template"))["data"]["image_size"] == 32


def test_the_message_that_it_quotes() -> None:
    from ddpm.checkpoint import Checkpoint
    from ddpm.data import Position
    from ddpm.errors import CheckpointError
    from ddpm.training_loop import _position

    (said,) = (code.strip() for language, code in BLOCKS if language == "text")
    saved = Checkpoint.__new__(Checkpoint)
    object.__setattr__(saved, "stream", (Position(0, 1), Position(1, 2)))
    with pytest.raises(CheckpointError, match=re.escape(said)):
        _position(saved)
