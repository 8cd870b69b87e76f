"""Streams in a run: killed and continued, every picture of an epoch is still seen exactly once, all bits are equal."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock
from zlib import crc32

import numpy as np
import pytest
import torch

from ddpm import checkpoint, training_loop
from ddpm.config import Config
from ddpm.data import Batch
from ddpm.data.order import permutation
from ddpm.distributed import World, world
from ddpm.errors import CheckpointError, DataError, DDPMError
from ddpm.run import train
from ddpm.training_loop import draw_inputs, restore_state, training_steps
from tests.data.files import level_png, level_shards, quiet, section, shard
from tests.distributed.processes import together
from tests.reliability.compare import content, unlike
from tests.reliability.runs import once
from tests.tiny import tiny

SIZES = (5, 9, 3, 11, 7, 2, 8)
STEPS, SAVE, KILL = 15, 4, 7
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    pytest.importorskip("webdataset", reason="an extra: pip install 'ddpm[webdataset]'")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return level_shards(tmp_path_factory.mktemp("stream") / "shards", SIZES)


def streamed(root: Path | str, **changes: object) -> Config:
    settings: dict[str, object] = {
        "data__source": "webdataset",
        "data__root": str(root),
        "data__held_out": 0.0,
        "data__workers": 2,
        "data__horizontal_flip": True,
        "network__classes": 3,
        "training__kernels": "plain",
        "training__steps": STEPS,
        "training__save_every": SAVE,
        "training__preview_every": 1000,
        "training__preview_measured": 0,
        "training__log_every": 1,
    }
    return tiny(**settings | changes)


def _train(root: Path, out: Path, kill: int, changes: dict[str, object]) -> None:
    """A run that notes which pictures each step sees; the second process is killed after a step, if `kill` is not 0."""
    rank = world().rank
    out.mkdir(exist_ok=True)

    def noted(config: Config, batch: Batch, step: int, *rest: Any) -> Any:
        with (out / f"seen-{rank}.jsonl").open("a") as file:
            file.write(json.dumps([step + 1, [crc32(image.tobytes()) for image in batch.images]]) + "\n")
        return draw_inputs(config, batch, step, *rest)

    def steps(*arguments: Any) -> Any:
        for step in training_steps(*arguments):
            if step.step == kill and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield step

    with mock.patch.multiple(training_loop, draw_inputs=noted, training_steps=steps):
        train(streamed(root, **{"data__workers": 1} | changes), out, progress=False, device="cpu")


def seen(out: Path, rank: int, images: np.ndarray) -> list[int]:
    """Which of `images` a process saw, in order; a step that was made again counts as it was made last."""
    number = {crc32(image.tobytes()): i for i, image in enumerate(images)}
    steps = dict(json.loads(line) for line in (out / f"seen-{rank}.jsonl").read_text().splitlines())
    assert sorted(steps) == list(range(1, len(steps) + 1))
    return [number[mark] for _, marks in sorted(steps.items()) for mark in marks]


def epochs_of(levels: list[int], rank: int, processes: int) -> dict[int, Counter[int]]:
    """What a process saw of each epoch. A shard is read whole: its pictures follow each other, in any order."""
    ends = [sum(SIZES[: number + 1]) for number in range(len(SIZES))]
    found: dict[int, Counter[int]] = {}
    for turn in range(rank, 10**6, processes):
        if not levels:
            break
        shard = next(number for number, end in enumerate(ends) if levels[0] < end)
        part, levels = levels[: SIZES[shard]], levels[SIZES[shard] :]
        assert set(part) <= set(range(ends[shard] - SIZES[shard], ends[shard]))
        found.setdefault(turn // len(SIZES), Counter()).update(part)
    return found


@pytest.fixture(scope="module")
def straight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that nothing happens to."""
    out = tmp_path_factory.mktemp("straight") / "run"
    together(2, _train, root, out, 0, {})
    return out


def killed_and_continued(root: Path, out: Path, images: np.ndarray, changes: dict[str, object]) -> None:
    """Two processes, one of them killed between two checkpoints; then the same command."""
    with pytest.raises(DDPMError, match="another process of this job has stopped answering"):
        together(2, _train, root, out, KILL, changes)
    assert checkpoint.step_of(checkpoint.all_in(out)[-1]) == KILL // SAVE * SAVE
    together(2, _train, root, out, 0, changes)
    parts = [epochs_of(seen(out, rank, images), rank, 2) for rank in range(2)]
    # The last epoch that a process has begun may not be whole, nor need the other have come so far.
    whole = min(max(part) for part in parts)
    assert whole >= 2
    for epoch in range(whole):
        assert parts[0][epoch] + parts[1][epoch] == Counter(range(sum(SIZES)))


def test_two_processes_one_of_them_killed(root: Path, straight: Path, tmp_path: Path) -> None:
    levels = np.arange(sum(SIZES), dtype=np.uint8).repeat(64).reshape(-1, 1, 8, 8)
    killed_and_continued(root, tmp_path / "run", levels, {})
    for rank in range(2):
        assert seen(tmp_path / "run", rank, levels) == seen(straight, rank, levels)
    assert unlike(straight, tmp_path / "run") == []


@pytest.mark.slow
def test_the_same_with_real_jpegs(tmp_path: Path, shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "cifar10_jpeg_10k.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith((".jpg", ".jpeg"))][: 20 * sum(SIZES) : 20]
        files = iter([archive.read(name) for name in names])
    folder, colour = tmp_path / "folder", {"image_size": 16, "channels": 3}
    folder.mkdir()
    for number, size in enumerate(SIZES):
        jpegs = list(islice(files, size))
        shard(tmp_path / "shards" / f"{number}.tar", [{"jpg": jpeg} for jpeg in jpegs])
        for i, jpeg in enumerate(jpegs):
            (folder / f"{number}-{i:02}.jpg").write_bytes(jpeg)
    images = quiet(section("folder", root=folder, **colour)).images
    changes: dict[str, object] = {f"data__{key}": value for key, value in colour.items()}
    changes |= {"network__classes": None, "network__attention": (8,)}
    changes |= {"training__preview_measured": 8, "training__preview_every": 2 * SAVE}
    killed_and_continued(tmp_path / "shards", tmp_path / "run", images, changes)
    assert '"preview/distance"' in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nothing happens to."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(alone_config(root), out, progress=False, device="cpu")
    return out


@pytest.mark.slow
def test_one_process_killed(root: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert once(out, alone_config(root), moment="step", number=KILL) == -signal.SIGKILL
    assert checkpoint.step_of(checkpoint.all_in(out)[-1]) == KILL // SAVE * SAVE
    train(alone_config(root), out, progress=False, device="cpu")
    assert unlike(alone, out) == []
    rows = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    assert any("preview/distance" in row for row in rows)
    assert [row["epoch"] for row in rows if "epoch" in row][-1] > 2


def alone_config(root: Path) -> Config:
    return streamed(root, training__preview_measured=8, training__preview_every=SAVE)


def from_checkpoint(run: Path, step: int, out: Path, **changes: object) -> Path:
    """A folder that holds a run's checkpoint of a step alone, with items changed."""
    out.mkdir()
    torch.save(content(run / f"diffusion-{step}.pt") | changes, out / f"diffusion-{step}.pt")
    return out


def goes_on(root: Path, out: Path, *allow: str) -> str:
    """What the continuation by one process says; empty: it went through."""
    config = streamed(root, training__steps=STEPS + 1, data__workers=1)
    try:
        train(config, out, progress=False, device="cpu", allow=allow)
    except DDPMError as error:
        return str(error)
    return ""


def test_another_number_of_processes_is_refused_or_begins_anew(root: Path, straight: Path, tmp_path: Path) -> None:
    ended = from_checkpoint(straight, STEPS, tmp_path / "run")
    said = goes_on(root, ended)
    assert "was saved by 2 processes, each at its own place in the stream of images, which 1 cannot go on from" in said
    assert "--allow-change data.images" in said
    assert goes_on(root, ended, "data.images") == ""
    assert content(ended / f"diffusion-{STEPS + 1}.pt")["stream"] == [[0, 8]]


def test_other_shards_are_refused_and_moved_ones_are_not(root: Path, alone: Path, tmp_path: Path) -> None:
    ended = from_checkpoint(alone, STEPS, tmp_path / "run")
    more = level_shards(tmp_path / "more", (*SIZES, 4))
    assert "was trained on other images (a stream of images, SHA-256" in goes_on(more, ended)
    (moved := tmp_path / "elsewhere" / "moved").parent.mkdir()
    moved.symlink_to(root)
    assert goes_on(moved, ended) == ""
    (at,) = content(ended / f"diffusion-{STEPS}.pt")["stream"]
    (after,) = content(ended / f"diffusion-{STEPS + 1}.pt")["stream"]
    assert after > at > [len(SIZES), 0]
    assert goes_on(more, from_checkpoint(alone, STEPS, tmp_path / "anew"), "data.images") == ""


def test_fewer_shards_than_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm.run.world", lambda: World(0, 2))
    with pytest.raises(DataError, match="has 1 shards for 2 processes"):
        train(streamed(level_shards(tmp_path / "one", (9,))), tmp_path / "run", progress=False, device="cpu")


def test_a_shard_that_breaks_says_what_is_saved(tmp_path: Path) -> None:
    folder = level_shards(tmp_path / "shards", (20, 20))
    (folder / "002.tar").write_bytes((folder / "001.tar").read_bytes()[:3000])
    seed = next(seed for seed in range(9) if permutation(3, seed, 0)[0] != 2)
    config = streamed(folder, training__save_every=1, training__seed=seed)
    with pytest.raises(DataError, match=r"(?s)002\.tar: cannot be read as a shard.*checkpoint is .*diffusion-[24]\.pt"):
        train(config, tmp_path / "run", progress=False, device="cpu")


def _restore(path: Path) -> None:
    saved = checkpoint.load(path)
    restore_state(saved, saved.config, device=CPU)


def test_the_place_is_state(
    root: Path, alone: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out, misstated or put back to the start it is refused, or makes another run."""
    saved = content(straight / f"diffusion-{STEPS}.pt")
    assert len(saved["stream"]) == 2
    path = tmp_path / "changed.pt"
    monkeypatch.setattr("ddpm.distributed.world", lambda: World(0, 2))
    for wrong in (None, [], [[0, 0], [2, 0]], [[1, 0], [0, 0]], [[0, 0]], [[0, -1], [1, 0]], [[0], [1, 0]], "0"):
        changed = {key: value for key, value in saved.items() if key != "stream"}
        torch.save(changed if wrong is None else changed | {"stream": wrong}, path)
        with pytest.raises(CheckpointError):
            _restore(path)
    monkeypatch.undo()
    out = from_checkpoint(alone, 2 * SAVE, tmp_path / "run", stream=[[0, 0]])
    train(alone_config(root), out, progress=False, device="cpu")
    assert content(out / f"diffusion-{STEPS}.pt")["stream"] != content(alone / f"diffusion-{STEPS}.pt")["stream"]
    assert any(item.startswith(f"diffusion-{STEPS}.pt: network") for item in unlike(alone, out))


def test_labels_that_are_none_stop_the_start(tmp_path: Path) -> None:
    folder = shard(tmp_path / "shards" / "0.tar", [{"png": level_png(1), "cls": b"3"}]).parent
    with pytest.raises(DataError, match="found the label 3, expected a whole number from 0 to 2"):
        train(streamed(folder), tmp_path / "run", progress=False, device="cpu")
