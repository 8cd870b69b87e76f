"""A run that is stopped anywhere and started again ends bit for bit where an uninterrupted one ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.reliability.compare import content, rows, unlike
from tests.reliability.runs import EPOCH, STEPS, Trainers, once, rich, said

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL


@pytest.fixture(scope="module")
def whole(trainers: Trainers, tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Path]:
    """The uninterrupted run in each precision."""
    runs = {}
    for precision in ("float32", "bfloat16"):
        runs[precision] = out = tmp_path_factory.mktemp(precision) / "whole"
        assert trainers.train(out, rich(root, training__precision=precision)) == 0, said(out)
    return runs


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_run_has_every_kind_of_state(whole: dict[str, Path], precision: str) -> None:
    saved = content(whole[precision] / f"diffusion-{STEPS}.pt")
    assert saved["precision"] == precision
    early = content(whole[precision] / "diffusion-3.pt")["loss_history"]
    assert bool((early["counts"] == 10).all())  # importance sampling has begun
    assert not any(bool((early["losses"] == later).all()) for later in saved["loss_history"]["losses"])
    assert any("class" in name for name in saved["network"])
    assert saved["config"]["network"]["dropout"] > 0
    assert saved["config"]["training"]["accumulation"] == 2
    assert 0 < EPOCH < STEPS
    assert {"loss", "validation_loss"} <= {key for row in rows(whole[precision]) for key in row}
    assert len(list((whole[precision] / "samples").iterdir())) == 3


@pytest.mark.parametrize(
    ("precision", "moment", "number", "signum"),
    [
        ("float32", "step", 3, TERM),  # in mid-epoch
        ("float32", "step", 2 * EPOCH, INT),  # at an epoch's edge
        ("float32", "accumulation", 10, KILL),  # between the two parts of step 5
        ("float32", "accumulation", 10, TERM),
        ("float32", "preview", 3, KILL),
        ("float32", "preview", 3, TERM),
        ("float32", "save", 700, KILL),
        ("float32", "save", 700, TERM),
        ("float32", "rename", 5, KILL),
        ("float32", "entry", 2, KILL),
        ("bfloat16", "accumulation", 10, KILL),
        ("bfloat16", "step", 5, TERM),
    ],
)
def test_interrupted_once(
    trainers: Trainers,
    whole: dict[str, Path],
    root: Path,
    tmp_path: Path,
    precision: str,
    moment: str,
    number: int,
    signum: int,
) -> None:
    config = rich(root, training__precision=precision)
    out = tmp_path / "parted"
    code = trainers.train(out, config, moment=moment, number=number, signum=signum)
    assert code == (-KILL if signum == KILL else 128 + signum), said(out)
    assert not (out / f"diffusion-{STEPS}.pt").exists()
    if signum != KILL:
        assert "The same command continues it" in said(out)
    assert trainers.train(out, config) == 0, said(out)
    assert unlike(whole[precision], out) == []
    assert not list(out.rglob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_interrupted_twice_in_one_run_by_new_interpreters(
    whole: dict[str, Path], root: Path, tmp_path: Path, precision: str
) -> None:
    config = rich(root, training__precision=precision)
    out = tmp_path / "parted"
    assert once(out, config, moment="step", number=2, signum=TERM) == 143
    assert once(out, config, moment="preview", number=3, signum=KILL) == -KILL
    assert once(out, config) == 0
    assert unlike(whole[precision], out) == []


def test_another_seed_is_told_apart(trainers: Trainers, whole: dict[str, Path], root: Path, tmp_path: Path) -> None:
    """The comparison can fail."""
    out = tmp_path / "other"
    assert trainers.train(out, rich(root, training__seed=1)) == 0
    found = unlike(whole["float32"], out)
    for part in ("ema", "network", "optimizer", "loss_history", "metrics.jsonl", "samples/"):
        assert any(part in item for item in found), part
