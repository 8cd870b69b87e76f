"""The run that the tests of this room hurt, and the processes that train it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from ddpm.config import Config, plain
from tests.reliability.worker import Job
from tests.tiny import tiny

STEPS = 8
EPOCH = 2
"""Steps of an epoch: 32 images in batches of 16."""


def pictures(folder: Path) -> Path:
    """Forty pictures of two classes."""
    levels = np.random.default_rng(0).integers(0, 256, (2, 20, 8, 8), np.uint8)
    for name, kind in zip("ab", levels, strict=True):
        (folder / name).mkdir(parents=True)
        for i, picture in enumerate(kind):
            Image.fromarray(picture).save(folder / name / f"{i}.png")
    return folder


def rich(root: Path, **changes: object) -> Config:
    """Everything that is state, in a tiny run: classes, dropout, EMA, importance sampling, accumulation, a warm-up."""
    settings: dict[str, object] = {
        "data__source": "folder",
        "data__root": str(root),
        "data__held_out": 0.2,
        "diffusion__timesteps": 2,
        "diffusion__variance": "learned_range",
        "network__multipliers": (1,),
        "network__attention": (8,),
        "network__channels": 4,
        "network__norm_groups": 2,
        "network__classes": 2,
        "training__steps": STEPS,
        "training__batch_size": 16,
        "training__accumulation": 2,
        "training__loss": "hybrid",
        "training__timesteps": "importance",
        "training__decay": "cosine",
        "training__preview_samples": 2,
        "training__preview_steps": 2,
        "training__kernels": "plain",
        "sampling__steps": None,
    }
    return tiny(**settings | changes)


class Trainers:
    """Forks a new process for each run."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._line() == "ready"

    def start(self, out: Path, config: Config, **job: Any) -> int:
        """Begin to train in a new process; returns its id.

        Args:
            job: see `worker.Job`.
        """
        content = Job(str(out), plain(config), f"{config.data.root}.cache", **job)
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(content) + "\n")
        self._server.stdin.flush()
        return int(self._line())

    def finish(self) -> int:
        """Wait for the end of what was begun; returns its exit code, negative: the signal that ended it."""
        return int(self._line())

    def train(self, out: Path, config: Config, **job: Any) -> int:
        """Train in a new process; returns its exit code."""
        self.start(out, config, **job)
        return self.finish()

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def __enter__(self) -> Trainers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


def said(out: Path) -> str:
    """What the last run in `out` printed."""
    return Path(f"{out}.log").read_text()


def once(out: Path, config: Config, **job: Any) -> int:
    """Train in a new process of a new interpreter."""
    content = Job(str(out), plain(config), f"{config.data.root}.cache", **job)
    command = [sys.executable, "-m", "tests.reliability.worker", "--once", json.dumps(content)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True).returncode
