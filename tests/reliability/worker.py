"""Trains in a process of its own and is hurt at a chosen moment: what the tests of crashes and resumes start.

`python -m tests.reliability.worker` reads jobs from stdin, one JSON line each, and forks for each a child; what the
child would import and initialise first, it has from its parent; `--once JOB` does a single job in this very process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch


class Job(NamedTuple):
    """One call of `ddpm.train`."""

    out: str
    config: dict[str, Any]
    cache: str
    """DDPM_CACHE."""
    moment: str = ""
    """When to be hurt: see `MOMENTS`; empty: not at all."""
    number: int = 1
    """How many such moments come first, this one included."""
    signum: int = signal.SIGKILL
    nan: tuple[tuple[int, int], ...] = ()
    """(rollbacks so far, step) of the steps whose loss is made NaN."""


def train(job: Job) -> int:
    """Do a job; returns the exit code."""
    from ddpm.config import parse_config
    from ddpm.errors import DDPMError
    from ddpm.run import train as train_run

    os.environ["DDPM_CACHE"] = job.cache
    torch.set_num_threads(1)
    if job.moment:
        MOMENTS[job.moment](_counter(job.number, job.signum))
    if job.nan:
        make_nan({(rollbacks, step) for rollbacks, step in job.nan})
    try:
        train_run(parse_config(job.config, source="job"), job.out, device="cpu", progress=False)
    except DDPMError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _counter(number: int, signum: int) -> Callable[[], None]:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signum)

    return count


def _before(module: Any, name: str, hurt: Callable[[], None]) -> None:
    original = getattr(module, name)

    def patched(*arguments: Any, **options: Any) -> Any:
        hurt()
        return original(*arguments, **options)

    setattr(module, name, patched)


def _at_step(hurt: Callable[[], None]) -> None:
    """After an optimiser step, before anything is written."""
    from ddpm import training_loop

    original = training_loop.training_steps

    def patched(*arguments: Any) -> Iterator[Any]:
        for step in original(*arguments):
            hurt()
            yield step

    training_loop.training_steps = patched


def _in_accumulation(hurt: Callable[[], None]) -> None:
    """Before the forward pass of a part of a batch."""
    from ddpm import training_loop

    _before(training_loop, "_told", hurt)


def _in_preview(hurt: Callable[[], None]) -> None:
    """After a step of the preview's sampler."""
    from ddpm import run

    original = run.draw

    def patched(*arguments: Any) -> Iterator[Any]:
        for state in original(*arguments):
            hurt()
            yield state

    run.draw = patched


def _in_save(hurt: Callable[[], None]) -> None:
    """Before a write of a part of a checkpoint's file."""
    from ddpm import checkpoint

    _before(checkpoint._Noting, "write", hurt)


def _before_rename(hurt: Callable[[], None]) -> None:
    """Before any file gets its name: grid, log, manifest and checkpoint."""
    from ddpm import files

    class Replacing:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def replace(self, *arguments: Any) -> None:
            hurt()
            os.replace(*arguments)

    files.os = Replacing()  # type: ignore[assignment]


def _before_entry(hurt: Callable[[], None]) -> None:
    """Between a checkpoint's file and its entry in the manifest."""
    from ddpm import manifest

    _before(manifest, "enter", hurt)


MOMENTS: dict[str, Callable[[Callable[[], None]], None]] = {
    "step": _at_step,
    "accumulation": _in_accumulation,
    "preview": _in_preview,
    "save": _in_save,
    "rename": _before_rename,
    "entry": _before_entry,
}


def make_nan(when: set[tuple[int, int]], *, gradient: bool = False) -> None:
    """Let the loss (or the gradient alone) be NaN after so many rollbacks at such steps."""
    from ddpm import training_loop

    original = training_loop._accumulate_gradients

    def patched(config: Any, state: Any, *arguments: Any) -> Any:
        loss, each = original(config, state, *arguments)
        if (state.faults.rollbacks, state.step + 1) in when:
            if gradient:
                next(state.network.parameters()).grad.flatten()[0] = float("nan")
            else:
                loss, each = loss * float("nan"), each * float("nan")
        return loss, each

    training_loop._accumulate_gradients = patched


def _child(job: Job) -> None:
    code = 70
    try:
        log = os.open(Path(job.out + ".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = train(job)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _warm_up() -> None:
    """Import and initialise, by another run, what each child would have to."""
    from ddpm.config import plain
    from tests.reliability.runs import pictures, rich

    with TemporaryDirectory() as folder:
        root = pictures(Path(folder) / "pictures")
        job = Job(f"{folder}/run", plain(rich(root, training__steps=1, training__seed=9)), f"{folder}/cache")
        assert train(job) == 0


def main() -> None:
    import torch.utils.tensorboard

    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--once"]:
        sys.exit(train(Job(*json.loads(sys.argv[2]))))

    print("ready", flush=True)
    for line in sys.stdin:
        job = Job(*json.loads(line))
        child = os.fork()
        if not child:
            _child(job)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
