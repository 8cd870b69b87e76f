"""The commands of docs/evaluation.md, run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ddpm import checkpoint, model_file, shipped
from ddpm.cli import main
from ddpm.config import load_config
from ddpm.generate import file_sha256
from ddpm.run import train
from ddpm.shipped import Shipped
from tests.test_lesson import lesson  # noqa: F401  (the fixture: MNIST-like files at hand)
from tests.test_readme import SHORT

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def test_commands(lesson: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    short = [*(setting for setting in SHORT if "timesteps" not in setting), "training.preview_measured=0"]
    config = load_config("image/mnist/ddpm_cpu", [*short, "diffusion.timesteps=50", "data.held_out=0"])
    done = train(config, "run", device="cpu", progress=False)
    packed = Path("weights/mnist.safetensors").resolve()
    model_file.write(packed, model_file.from_checkpoint(checkpoint.load(done.checkpoint), storage="float16"))
    monkeypatch.setattr(shipped, "FOLDER", packed.parent)
    monkeypatch.setitem(shipped.MODELS, "mnist", Shipped(packed.name, file_sha256(packed), "digits"))
    lines = re.findall(r"```\n(.*?)```", PAGE, re.S)[0].splitlines()
    assert len(lines) == 6
    assert main(["sample", str(done.checkpoint), "--num-samples", "11", "--steps", "2", "--out", "sample/mnist"]) == 0
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        assert name == "ddpm"
        words = [{"diffusion-5000.pt": str(done.checkpoint), "10000": "11"}.get(word, word) for word in words]
        short = [] if "--steps" in words or "--samples-from" in words else ["--steps", "2"]
        images = ["--images", "1"] if "--nll" in words else []
        assert main([*words, *short, *images, "--device", "cpu"]) == 0
    assert Path("page.html").is_file()
