"""The lesson's three commands, from the repository root, on real MNIST files and a tiny network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm.config import load_config
from ddpm.lesson import sample_main, train_main

ROOT = Path(__file__).parents[1]
LESSON = "configs/image/mnist/ddpm_32x32_epsilon_discrete.yaml"
TINY = """\
data: {source: mnist, image_size: 32, channels: 1, resize: pad}
diffusion: {timesteps: 10}
network: {channels: 8, multipliers: [1, 1], blocks: 1, attention: [], norm_groups: 4, time: scale_shift,
          resample: pooled, outer_bias: false, heads: 2}
training: {steps: 4, batch_size: 4, save_every: 2, preview_samples: 2, preview_steps: 2}
"""


@pytest.fixture
def lesson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as the repository, with a tiny network under the lesson's name and MNIST at hand."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 8)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = lambda *n: bytes([0, 0, 8, len(n)]) + b"".join(k.to_bytes(4, "big") for k in n)  # noqa: E731
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header(count, 28, 28) + images.tobytes())
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(header(count) + bytes(i % 10 for i in range(count)))
    (tmp_path / LESSON).parent.mkdir(parents=True)
    (tmp_path / LESSON).write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_DATA_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("script", ["training/image/mnist/train.py", "training/videoimage/mnist/train.py"])
def test_the_commands_as_written(lesson: Path, script: str) -> None:
    """Both spellings of the training command, and the sampling command on its checkpoint."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    result = run(str(ROOT / script), "--config_path", LESSON)
    assert result.returncode == 0, result.stderr
    checkpoint = f"output/image/mnist/{Path(LESSON).name}/diffusion-4.pt"
    assert Path(checkpoint).is_file()
    assert Path(checkpoint).with_name("diffusion-2.pt").is_file()
    result = run(
        str(ROOT / "sampling/image/mnist/sample.py"),
        *("--config_path", LESSON, "--num_samples", "8", "--checkpoint", checkpoint),
    )
    assert result.returncode == 0, result.stderr
    out = Path("output/image/mnist/sample") / Path(LESSON).name
    assert len(list(out.glob("0*.png"))) == 8
    assert np.load(out / "samples.npz")["arr_0"].shape == (8, 28, 28, 1)


def test_options_override_the_configuration(lesson: Path) -> None:
    options = ["--num_training_steps", "3", "--batch_size", "2", "--save_and_sample_every_n", "1"]
    assert train_main(["--config_path", LESSON, *options, "--mixed_precision", "no"]) == 0
    run = Path("output/image/mnist") / Path(LESSON).name
    config = load_config(run / "config.yaml")
    assert (config.training.steps, config.training.batch_size, config.training.precision) == (3, 2, "float32")
    assert {p.name for p in run.glob("*.pt")} == {"diffusion-1.pt", "diffusion-2.pt", "diffusion-3.pt"}
    again = ["--resume_from", str(run / "diffusion-2.pt")]
    assert train_main(["--config_path", LESSON, *options, "--mixed_precision", "no", *again]) == 0
    # The number of steps is no part of what a sample depends on: the lesson's own file still fits.
    sampling = ["--config_path", LESSON, "--checkpoint", str(run / "diffusion-3.pt"), "--num_samples", "2"]
    assert sample_main([*sampling, "--sampling_steps", "2", "--seed", "4"]) == 0


def test_a_configuration_of_another_model_is_refused_with_a_diff(
    lesson: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_main(["--config_path", LESSON]) == 0
    Path("other.yaml").write_text(TINY.replace("channels: 8", "channels: 16"))
    checkpoint = f"output/image/mnist/{Path(LESSON).name}/diffusion-4.pt"
    assert sample_main(["--config_path", "other.yaml", "--checkpoint", checkpoint, "--num_samples", "1"]) == 2
    assert "network.channels: 8 -> 16" in capsys.readouterr().err


def test_the_lessons_numbers() -> None:
    config = load_config(ROOT / LESSON)
    assert (config.training.steps, config.training.batch_size, config.training.save_every) == (10_000, 128, 1000)
    assert config.data.size == (32, 32)
    assert config.diffusion.timesteps == 1000
