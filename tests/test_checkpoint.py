"""A checkpoint is whole or absent, holds plain types only, and cannot run code."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm import checkpoint
from ddpm.checkpoint import Checkpoint, DataFacts
from ddpm.errors import CheckpointError, DDPMError
from ddpm.images import Crop
from tests.tiny import tiny


@pytest.fixture
def saved() -> Checkpoint:
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    return Checkpoint(
        kernels="plain",
        compiled=False,
        step=7,
        config=tiny(),
        data=DataFacts(100, "f" * 64, ("x", "y"), Crop(2, 2, 28, 28)),
        precision="float32",
        network=weights,
        ema={k: v + 1 for k, v in weights.items()},
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
        scaler={},
        loss_window=(1.5, 2),
    )


def test_round_trip(saved: Checkpoint, tmp_path: Path) -> None:
    path = checkpoint.path_at(tmp_path / "new", 7)
    checkpoint.save(path, saved)
    back = checkpoint.load(path)
    for field in ("step", "config", "data", "precision", "loss_window", "scaler"):
        assert getattr(back, field) == getattr(saved, field), field
    for field in ("network", "ema"):
        assert all(torch.equal(v, getattr(back, field)[k]) for k, v in getattr(saved, field).items())
        assert getattr(back, field)["b"].dtype == torch.bfloat16
    assert back.optimizer["param_groups"] == saved.optimizer["param_groups"]
    assert [p.name for p in path.parent.iterdir()] == ["diffusion-7.pt"]


def test_it_holds_plain_types_only(saved: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", saved)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["format"] == "ddpm-checkpoint"
    assert content["config"]["training"]["steps"] == 6


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import builtins; builtins.pwned = True",)


def test_a_malicious_file_is_refused_and_does_not_run(tmp_path: Path) -> None:
    import builtins

    for name, write in (("torch.pt", torch.save), ("pickle.pt", lambda x, p: p.write_bytes(pickle.dumps(x)))):
        path = tmp_path / name
        write({"format": checkpoint.FORMAT, "x": _Payload()}, path)
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load(path)
    assert not hasattr(builtins, "pwned")


def test_damage_is_named(saved: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, saved)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"hello world" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.pt: cannot be read"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_state_dict": {}}, "not a checkpoint of ddpm"),
        ([1, 2], "not a checkpoint of ddpm"),
        ({"format": "ddpm-checkpoint", "version": 99}, "format version 99"),
        ({"format": "ddpm-checkpoint", "version": 1, "step": 3, "config": {}}, "lacks or misstates 'data'"),
        ({"format": "ddpm-checkpoint", "version": 2, "step": -1}, "lacks or misstates 'step'"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "a.pt")


def test_absent_files_say_what_there_is(saved: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Train one"):
        checkpoint.load(tmp_path / "diffusion-3.pt")
    checkpoint.save(checkpoint.path_at(tmp_path, 7), saved)
    with pytest.raises(CheckpointError, match=r"There are: diffusion-7\.pt"):
        checkpoint.load(tmp_path / "diffusion-3.pt")
    with pytest.raises(CheckpointError, match=r"is a folder.*diffusion-7\.pt"):
        checkpoint.load(tmp_path)


def test_checkpoints_are_ordered_by_step(saved: Checkpoint, tmp_path: Path) -> None:
    for step in (1000, 20, 3):
        checkpoint.save(checkpoint.path_at(tmp_path, step), replace(saved, step=step))
    (tmp_path / "diffusion-x.pt").write_text("")
    assert [p.name for p in checkpoint.all_in(tmp_path)] == [f"diffusion-{s}.pt" for s in (3, 20, 1000)]


def test_a_failed_save_leaves_the_old_file(saved: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, saved)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ddpm.checkpoint.torch.save", full)
    with pytest.raises(DDPMError, match=r"No space left on device.*untouched"):
        checkpoint.save(path, saved)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
