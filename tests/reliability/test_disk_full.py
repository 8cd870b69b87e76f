"""A full disk: an error that says what is safe, the old checkpoint untouched, and the same command goes on."""

from __future__ import annotations

import errno
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from ddpm import checkpoint, files
from ddpm.data import load
from ddpm.errors import DataError, DDPMError
from ddpm.run import train
from tests.data.files import save, section
from tests.reliability.compare import unlike
from tests.reliability.runs import rich

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_from(number: int, original: Any) -> Any:
    calls = 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise FULL
        return original(*arguments, **options)

    return failing


def fail_fsync_of(name: str) -> Any:
    """os.fsync that fails for temporary files of this name."""

    def failing(descriptor: int) -> None:
        if f"/.{name}." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise FULL
        os.fsync(descriptor)

    return failing


class _Filling:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, file: Any, room: int):
        self._file, self._room = file, room

    def write(self, content: Any) -> int:
        self._room -= len(content)
        if self._room < 0:
            raise FULL
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class FullFile:
    def write(self, _: str) -> int:
        raise FULL

    def fileno(self) -> int:
        raise FULL

    def flush(self) -> None: ...

    def close(self) -> None: ...


PLACES = {
    "save": "diffusion-6.pt",
    "save, flushed": "diffusion-6.pt",
    "manifest": "manifest.json",
    "grid": "step-6.png",
    "log": "metrics.jsonl",
    "TensorBoard": "",
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("place", PLACES)
def test_while_training(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"training__decay_steps": 8, "training__log_every": 3}
    config, early = rich(root, **settings), rich(root, training__steps=3, **settings)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(config, whole, device="cpu", progress=False)
    train(early, parted, device="cpu", progress=False)
    before = (parted / "diffusion-3.pt").read_bytes()
    capfd.readouterr()
    with monkeypatch.context() as patch:
        match place:
            case "save":
                patch.setattr(files, "os", _With(fdopen=lambda *a: _Filling(os.fdopen(*a), 50_000)))
            case "log":
                opened = Path.open
                patch.setattr(
                    Path, "open", lambda p, mode="r", **o: FullFile() if mode == "a" else opened(p, mode, **o)
                )
            case "TensorBoard":
                patch.setattr(RecordWriter, "write", fail_from(3, RecordWriter.write))
            case _:
                patch.setattr(files, "os", _With(fsync=fail_fsync_of(PLACES[place])))
        with pytest.raises(DDPMError) as caught:
            train(config, parted, device="cpu", progress=False)
    message = str(caught.value)
    assert f"{PLACES[place]}: could not be written (No space left on device)" in message or place == "TensorBoard"
    assert "No space left on device" in message
    assert f"The last good checkpoint is {parted / 'diffusion-3.pt'}" in message or place == "manifest"
    assert "the same command goes on" in message
    assert "Traceback" not in capfd.readouterr().err
    assert (parted / "diffusion-3.pt").read_bytes() == before
    assert checkpoint.load(parted / "diffusion-3.pt").step == 3
    assert not list(parted.rglob(".*.tmp"))
    train(config, parted, device="cpu", progress=False)
    assert unlike(whole, parted) == []


class _With:
    """The module `os` with another function in it."""

    def __init__(self, **functions: Any):
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        return self._functions.get(name) or getattr(os, name)


def test_in_the_data_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "x.png")
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    config = section("folder", root=tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr(import_module("ddpm.data.pack"), "os", _With(fsync=fail_from(1, os.fsync)))
        with pytest.raises(DataError, match=r"data cache cannot be used \(No space left on device\).*DDPM_CACHE"):
            load(config, progress=False)
    assert not [path for path in (tmp_path / "cache" / "packed").iterdir()]
    assert len(load(config, progress=False)) == 1


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the limit is the kernel's")
def test_when_the_kernel_refuses_a_large_file(trainers: Any, root: Path, tmp_path: Path) -> None:
    """A real refusal: no file of this process may grow beyond 100 kB, less than a checkpoint has."""
    from tests.reliability.runs import said

    assert trainers.train(tmp_path, rich(root, training__steps=3, training__decay_steps=8)) == 0
    config = rich(root, training__decay_steps=8)
    assert trainers.train(tmp_path, config, moment="limited", number=100_000) == 1
    assert "diffusion-6.pt: could not be written (File too large)" in said(tmp_path)
    assert "The last good checkpoint is" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    assert trainers.train(tmp_path, config) == 0
