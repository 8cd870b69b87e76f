"""Twenty of the kills of `kills.py`, and leftovers of a killed writer."""

from __future__ import annotations

from pathlib import Path

from ddpm.run import train
from tests.reliability.kills import kill_and_compare
from tests.reliability.runs import Trainers, rich


def test_random_kills(trainers: Trainers, root: Path, tmp_path: Path) -> None:
    outcome = kill_and_compare(trainers, root, tmp_path, count=20, seed=1)
    assert outcome.step > 3
    print(outcome)


def test_leftovers_are_ignored_and_cleaned(root: Path, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    left = [tmp_path / ".diffusion-3.pt.abc.tmp", tmp_path / "samples" / ".step-3.png.x.tmp"]
    for path in left:
        path.write_bytes(b"half")
    mine = tmp_path / "notes.tmp"
    mine.touch()
    train(rich(root, training__steps=1), tmp_path, device="cpu", progress=False)
    assert not any(path.exists() for path in left)
    assert mine.exists()
