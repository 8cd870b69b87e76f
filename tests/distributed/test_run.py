"""A run of several processes: written once, exact when it goes on, with any number of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ddpm import checkpoint
from ddpm.config import to_yaml
from ddpm.errors import DDPMError
from ddpm.run import Interrupted, train
from ddpm.training_loop import training_steps
from tests.distributed.processes import together
from tests.tiny import tiny

PLAIN: dict[str, object] = {"network__dropout": 0.0, "training__kernels": "plain", "training__save_every": 2}


def _train(folder: Path, changes: dict[str, object]) -> Path:
    return train(tiny(**PLAIN, **changes), folder, progress=False, device="cpu").checkpoint


def _weights(path: Path) -> torch.Tensor:
    saved = checkpoint.load(path)
    moments = [x.flatten() for one in saved.optimizer["state"].values() for x in one.values()]
    return torch.cat([*(x.flatten() for part in (saved.network, saved.ema) for x in part.values()), *moments])


def _distance(one: Path, other: Path) -> float:
    return float((_weights(one) - _weights(other)).abs().max())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    return _train(folder, {"training__steps": 6})


@pytest.mark.slow
@pytest.mark.parametrize("holding", ["ddp", "fsdp"])
def test_what_one_process_began_two_end_and_the_reverse(alone: Path, tmp_path: Path, holding: str) -> None:
    several = {"training__parallel": holding}
    for first, second in ((1, 2), (2, 1)):
        folder = tmp_path / f"{first}-{second}"
        for count, steps in ((first, 4), (second, 6)):
            changes = several | {"training__steps": steps}
            ended = together(count, _train, folder, changes) if count > 1 else [_train(folder, changes)]
            assert {path.name for path in ended} == {f"diffusion-{steps}.pt"}
        assert _distance(alone, ended[0]) < 1e-4
    assert _distance(alone, alone.with_name("diffusion-4.pt")) > 1e-3  # the control: two steps are far more


def test_everything_is_written_once(alone: Path, tmp_path: Path) -> None:
    together(2, _train, tmp_path, {"training__steps": 6})
    one, two = (
        [json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (alone.parent, tmp_path)
    )
    assert [sorted(row) for row in one] == [sorted(row) for row in two]
    for mine, other in zip(one, two, strict=True):
        for key in mine.keys() - {"time/images_per_s"}:
            assert mine[key] == pytest.approx(other[key], abs=1e-4), key
    names = [sorted(p.name for p in f.rglob("*") if "tfevents" not in p.name) for f in (alone.parent, tmp_path)]
    assert [n for n in names[0] if n in names[1]] == names[1]
    assert len(list(tmp_path.glob("*tfevents*"))) == 1


def _stopped_by_a_signal_to_the_second(folder: Path) -> int:
    """Its exit code."""
    from unittest import mock

    from ddpm.distributed import world

    def steps(*arguments: object) -> object:
        for step in training_steps(*arguments):  # type: ignore[arg-type]
            if step.step == 3 and world().rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    with mock.patch("ddpm.training_loop.training_steps", steps):
        try:
            _train(folder, {"training__steps": 6})
        except Interrupted as stopped:
            return stopped.exit_code
    return 0


def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path: Path) -> None:
    assert together(2, _stopped_by_a_signal_to_the_second, tmp_path / "stopped") == [143, 143]
    assert checkpoint.step_of(checkpoint.all_in(tmp_path / "stopped")[-1]) == 3
    ended = together(2, _train, tmp_path / "stopped", {"training__steps": 6})
    straight = together(2, _train, tmp_path / "straight", {"training__steps": 6})
    assert _distance(ended[0], straight[0]) == 0


def test_a_folder_in_use_is_refused_to_all(tmp_path: Path) -> None:
    from filelock import FileLock

    tmp_path.joinpath("run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(DDPMError, match="another process is training here"):
        together(2, _train, tmp_path / "run", {})


def _launch(config: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DDPM_DEVICE": "cpu"}
    words = ["-m", "ddpm", "train", str(config), "--out", str(out)]
    return subprocess.Popen([*launcher, *words], env=environment, stderr=subprocess.PIPE, text=True)


def _kill_one(out: Path, step: int) -> None:
    """SIGKILL to the second process once the run has reached a step."""
    deadline = time.monotonic() + 120
    while not (out / f"diffusion-{step}.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if str(out).encode() in words and b"RANK=1" in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds its victim in /proc")
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_killed_process_ends_the_job_or_restarts_it(tmp_path: Path, restarts: int) -> None:
    config = tmp_path / "tiny.yaml"
    settings = {"training__steps": 200, "training__save_every": 20, "training__log_every": 20}
    config.write_text(to_yaml(tiny(**PLAIN | settings)))
    out = tmp_path / "run"
    job = _launch(config, out, "--max-restarts", str(restarts))
    _kill_one(out, 40)
    began = time.monotonic()
    _, said = job.communicate(timeout=240)
    if restarts == 0:
        assert time.monotonic() - began < 60
        assert job.returncode != 0
        assert "processes  2, ddp" in said
        assert "rank      : 1" in said  # the launcher names it
        assert "another process of this job has stopped" in said
        again = _launch(config, out)
        again.communicate(timeout=240)
        assert again.returncode == 0
    else:
        assert job.returncode == 0
    assert "Traceback" not in said.split("ddpm:")[0]
    straight = _launch(config, tmp_path / "straight")
    straight.communicate(timeout=240)
    assert _distance(out / "diffusion-200.pt", tmp_path / "straight" / "diffusion-200.pt") == 0
