"""Damaged and foreign checkpoints: named, passed over with a warning, never a silent fresh start."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm import checkpoint, kept, manifest
from ddpm.cli import main
from ddpm.config import to_yaml
from ddpm.errors import CheckpointError, DamagedError, DDPMError
from ddpm.previews import Preview
from ddpm.run import train
from tests.reliability.compare import content, different, unlike
from tests.reliability.runs import Trainers, rich, said


@pytest.fixture(scope="module")
def whole(trainers: Trainers, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corruption") / "whole"
    assert trainers.train(out, rich(root)) == 0, said(out)
    return out


def flipped(place: float) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        damaged = bytearray(content)
        damaged[int(place * len(content))] ^= 16
        return bytes(damaged)

    return flip


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda _: b"",
    "a bit flipped early": flipped(0.3),
    "a bit flipped late": flipped(0.7),
    "text": lambda _: b"<!DOCTYPE html>" * 99,
}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_and_without_a_manifest(whole: Path, tmp_path: Path, damage: str, listed: bool) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    path = folder / "diffusion-6.pt"
    assert checkpoint.load(path).step == 6
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    if not listed:
        (folder / manifest.NAME).unlink()
        if damage.startswith("a bit"):
            return  # see below
    with pytest.raises(DamagedError, match=r"diffusion-6\.pt: (is damaged|cannot be read)"):
        checkpoint.load(path)


def test_a_flipped_bit_is_noticed_or_means_nothing(whole: Path, tmp_path: Path) -> None:
    """Without a manifest the file's own checksums tell; they do not cover the padding between its parts."""
    path, noticed = Path(shutil.copy(whole / "diffusion-6.pt", tmp_path)), 0
    sound = path.read_bytes()
    for place in np.random.default_rng(0).random(50):
        path.write_bytes(flipped(place)(sound))
        try:
            checkpoint.load(path)
        except CheckpointError:
            noticed += 1
        else:
            assert different(whole / "diffusion-6.pt", path) == []
    assert noticed > 15


@pytest.mark.parametrize("damage", ["truncated", "a bit flipped late", "another program's"])
def test_the_run_goes_on_from_the_one_before(
    trainers: Trainers, whole: Path, root: Path, tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "diffusion-8.pt").unlink()
    manifest.strike(folder / "diffusion-8.pt")
    path = folder / "diffusion-6.pt"
    if damage in DAMAGES:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    else:
        torch.save({"model_state_dict": {}}, path)
    assert trainers.train(folder, rich(root)) == 0, said(folder)
    warnings = said(folder)
    assert "warning" in warnings
    assert f"{path}: is damaged" in warnings
    assert f"going on from diffusion-3.pt instead; the damaged file is now {path}{kept.ASIDE}" in warnings
    assert unlike(whole, folder) == []


def test_where_none_is_sound_nothing_starts_anew(whole: Path, root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    for path in checkpoint.all_in(folder):
        path.write_bytes(path.read_bytes()[:-99])
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"none of this run's checkpoints can be read .*diffusion-8\.pt.*--fresh"
        ):
            train(rich(root), folder, device="cpu", progress=False)
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before
    for path in checkpoint.all_in(folder):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"none of this run's checkpoints can be read .*diffusion-3\.pt"):
        train(rich(root), folder, device="cpu", progress=False)


def test_a_newer_versions_checkpoint_is_not_passed_over(whole: Path, root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    torch.save(content(folder / "diffusion-8.pt") | {"version": 99}, folder / "diffusion-9.pt")
    with pytest.raises(CheckpointError, match="format version 99"):
        train(rich(root, training__steps=12), folder, device="cpu", progress=False)
    assert (folder / "diffusion-9.pt").exists()


def test_a_damaged_manifest_is_no_obstacle(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    for damaged in ("", "{", "[]", '{"format": "ddpm-manifest", "checkpoints": {"diffusion-8.pt": {"sha256": 3}}}'):
        (folder / manifest.NAME).write_text(damaged)
        assert checkpoint.load(folder / "diffusion-8.pt").step == 8


def test_commands_name_the_damage(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    path = folder / "diffusion-8.pt"
    path.write_bytes(flipped(0.5)(path.read_bytes()))
    monkeypatch.chdir(tmp_path)
    for command in (["info", str(path)], ["sample", str(path), "--out", "s"]):
        assert main(command) == 1
        printed = capsys.readouterr().err
        assert "diffusion-8.pt: is damaged: its SHA-256 is" in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "s").exists()


def test_the_best_is_kept_beside_the_last(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([5.0, 2.0, 4.0, float("nan"), 3.0, 2.5, 2.0, 9.0])
    monkeypatch.setattr(Preview, "score", property(lambda _: next(scores)))
    train(rich(root, training__save_every=1, training__keep_last=2), tmp_path, device="cpu", progress=False)
    assert [path.name for path in checkpoint.all_in(tmp_path)] == ["diffusion-7.pt", "diffusion-8.pt"]
    assert manifest.best(tmp_path) == "diffusion-7.pt"  # of equals the later
    assert manifest.read(tmp_path).keys() == {"diffusion-7.pt", "diffusion-8.pt"}
    scores = iter([5.0, 2.0, 4.0, float("nan"), 3.0, 2.5, 2.1, 9.0])
    train(rich(root, training__save_every=1, training__keep_last=2), tmp_path / "b", device="cpu", progress=False)
    assert [checkpoint.step_of(path) for path in checkpoint.all_in(tmp_path / "b")] == [2, 7, 8]


def test_nothing_is_deleted_before_its_successor_is_safe(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a file is deleted, the newest checkpoint loads and is entered."""
    deleted = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".pt":
            newest = checkpoint.all_in(path.parent)[-1]
            assert checkpoint.load(newest).step > checkpoint.step_of(path)
            assert manifest.verify(newest)
            deleted.append(path.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    config = rich(root, training__save_every=1, training__keep_last=1, data__held_out=0.0)
    train(config, tmp_path, device="cpu", progress=False)
    assert deleted == [f"diffusion-{step}.pt" for step in range(1, 8)]


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(
    trainers: Trainers, root: Path, tmp_path: Path
) -> None:
    child = trainers.start(tmp_path, rich(root), moment="step", number=4, signum=signal.SIGSTOP)
    while not (tmp_path / "diffusion-3.pt").exists() or "T" not in _status(child):
        os.sched_yield()
    with pytest.raises(DDPMError, match="another process is training here"):
        train(rich(root), tmp_path, device="cpu", progress=False)
    os.kill(child, signal.SIGKILL)
    assert trainers.finish() == -signal.SIGKILL
    assert trainers.train(tmp_path, rich(root)) == 0


def _status(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0]


def test_a_second_signal_leaves_at_once(trainers: Trainers, root: Path, tmp_path: Path) -> None:
    """While a step is under way that would never end."""
    child = trainers.start(tmp_path, rich(root), moment="endless", number=4)
    while not (tmp_path / "endless").exists():
        os.sched_yield()
    os.kill(child, signal.SIGINT)
    os.kill(child, signal.SIGTERM)
    os.kill(child, signal.SIGINT)
    assert trainers.finish() == 130
    assert [path.name for path in checkpoint.all_in(tmp_path)] == ["diffusion-3.pt"]
    assert trainers.train(tmp_path, rich(root)) == 0


def test_settings_may_be_changed_by_name(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text(to_yaml(rich(root, training__steps=2)))
    train_command = ["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(train_command) == 0
    changed = [*train_command, "--set", "training.steps=3", "--set", "training.learning_rate=0.5"]
    assert main(changed) == 2
    printed = capsys.readouterr().err
    assert "training.learning_rate: 0.001 -> 0.5" in printed
    assert "--allow-change KEY" in printed
    assert main([*changed, "--allow-change", "training.learning"]) == 2
    assert "Did you mean training.learning_rate?" in capsys.readouterr().err
    assert main([*changed, "--allow-change", "training.batch_size"]) == 2
    assert main([*changed, "--allow-change", "training.learning_rate"]) == 0
    assert checkpoint.load(tmp_path / "run" / "diffusion-3.pt").config.training.learning_rate == 0.5
