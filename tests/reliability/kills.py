"""Kills a run at random moments, again and again: `python -m tests.reliability.kills --count 200`.

After every SIGKILL the newest checkpoint must be sound and entered or enterable, none older than before; and the run
that is let to its end at last must be the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ddpm import checkpoint, kept
from tests.reliability.compare import unlike
from tests.reliability.runs import Trainers, pictures, rich, said

ENDLESS = 100_000


class Outcome(NamedTuple):
    """What the kills did."""

    kills: int
    before: int
    """Kills before the run's first checkpoint."""
    leftovers: int
    """Kills that left a temporary file: in the middle of a write."""
    unentered: int
    """Kills between a checkpoint's file and its entry in the manifest."""
    step: int
    """The step that the run had reached after the last one."""

    def __str__(self) -> str:
        return (
            f"{self.kills} kills: {self.before} before the first checkpoint, {self.leftovers} within a write, "
            f"{self.unentered} between a checkpoint and its entry; after each the newest checkpoint was sound. "
            f"The run reached step {self.step:,} and ended as the uninterrupted one"
        )


def kill_and_compare(trainers: Trainers, root: Path, folder: Path, *, count: int, seed: int) -> Outcome:
    """Kill a run `count` times, then let it end and compare it. Raises AssertionError if anything was lost."""
    chance, out = random.Random(seed), folder / "killed"
    settings = {
        "training__save_every": 1,
        "training__preview_every": 2,
        "training__keep_last": 3,
        "training__decay_steps": ENDLESS,
        "training__log_every": 1,
    }
    config = rich(root, training__steps=ENDLESS, **settings)
    newest, before, leftovers, unentered = 0, 0, 0, 0
    span = 0.5  # seconds in which a run starts and makes a few steps, as learnt on the way
    for _ in range(count):
        child = trainers.start(out, config)
        time.sleep(chance.random() * span)  # what is tested: any moment
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        assert trainers.finish() == -signal.SIGKILL, said(out)
        leftovers += any(out.rglob(".*.tmp"))
        there = checkpoint.all_in(out)
        before += not there
        if there:
            unentered += not checkpoint.manifest.verify(there[-1])
            found = kept.latest(out)
            assert found is not None
            assert found[0] == there[-1], "the newest was set aside"
            assert found[1].step >= newest, "a checkpoint was lost"
            assert checkpoint.manifest.best(out) is None or (out / str(checkpoint.manifest.best(out))).exists()
            span *= 1.2 if found[1].step == newest else 0.95
            newest = found[1].step
        else:
            span *= 1.2
    assert not list(out.glob(f"*{kept.ASIDE}*"))
    last, whole = rich(root, training__steps=newest + 3, **settings), folder / "whole"
    assert trainers.train(out, last) == 0, said(out)
    assert trainers.train(whole, last) == 0, said(whole)
    assert unlike(whole, out) == []
    assert not list(out.rglob(".*.tmp"))
    return Outcome(count, before, leftovers, unentered, newest)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a run at random moments; nothing may be lost.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with TemporaryDirectory() as folder, Trainers() as trainers:
        root = pictures(Path(folder) / "pictures")
        print(kill_and_compare(trainers, root, Path(folder), count=options.count, seed=options.seed))


if __name__ == "__main__":
    main()
