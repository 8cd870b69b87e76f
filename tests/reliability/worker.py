"""Trains in a process of its own and is hurt at a chosen moment: what the tests of crashes and resumes start.

`python -m tests.reliability.worker` reads jobs from stdin, one JSON line each, and forks for each a child; what the
child would import and initialise first, it has from its parent; `--once JOB` does a single job in this very process.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Collection, Iterator
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
    """When to be hurt: see `MOMENTS`; empty: not at all.

    limited: no file may have more than `number` bytes; endless: step `number` does not end.
    """
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
    if job.moment == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.number, job.number))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    elif job.moment == "endless":
        _at_step(_hang(job.number, Path(job.out) / "endless"))
    elif job.moment:
        MOMENTS[job.moment](_counter(job.number, job.signum))
    if job.nan:
        from ddpm import training_loop

        when = {(rollbacks, step) for rollbacks, step in job.nan}
        training_loop._accumulate_gradients = with_nan(training_loop._accumulate_gradients, when)
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


def _hang(number: int, sign: Path) -> Callable[[], None]:
    calls = 0

    def hang() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            sign.touch()
            while True:
                pass

    return hang


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
    from ddpm import previews

    original = previews.draw

    def patched(*arguments: Any) -> Iterator[Any]:
        for state in original(*arguments):
            hurt()
            yield state

    previews.draw = patched  # type: ignore[assignment]


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


def with_nan(original: Callable[..., Any], when: Collection[tuple[int, int]], *, gradient: bool = False) -> Any:
    """`training_loop._accumulate_gradients` whose loss (or one number of the gradient) is NaN at times.

    Args:
        when: (rollbacks so far, step) of the steps.
    """

    def patched(config: Any, state: Any, *arguments: Any) -> Any:
        loss, each = original(config, state, *arguments)
        if (state.faults.rollbacks, state.step + 1) in when:
            if gradient:
                next(state.network.parameters()).grad.view(-1)[0] = float("nan")
            else:
                loss, each = loss * float("nan"), each * float("nan")
        return loss, each

    return patched


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
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--once"]:
        sys.exit(train(Job(*json.loads(sys.argv[2]))))
    _warm_up()
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
