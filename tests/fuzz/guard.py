"""What every case must end in, how many cases there are, and what came of them."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hypothesis import HealthCheck, settings

from ddpm.errors import DDPMError

TOTAL = int(os.environ.get("DDPM_FUZZ", 0))
"""Cases of all targets together, drawn anew each time; 0: a few hundred, always the same ones."""
FEW = 360
SECONDS = 20
"""Processor time after which a case counts as a hang."""

outcomes: Counter[tuple[str, str]] = Counter()
"""How many cases of a target ended in "success" or in "a readable error"."""


def cases(share: float) -> settings:
    """The settings of a target that gets this share of all cases."""
    return settings(
        max_examples=max(10, round((TOTAL or FEW) * share)),
        derandomize=not TOTAL,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


class Hang(BaseException):
    """A case took too long."""


@contextmanager
def one_case(target: str) -> Iterator[None]:
    """The block must end in success or in one readable error, in time; another exception fails the test."""

    def stop(_: int, frame: FrameType | None) -> None:
        raise Hang(f"{SECONDS} s of processor time in {frame}")

    with _counted(target), _interrupted(SECONDS, stop):
        yield


@contextmanager
def _counted(target: str) -> Iterator[None]:
    try:
        yield
    except DDPMError as error:
        if error.exit_code not in (1, 2):
            raise
        assert_readable(str(error))
        outcomes[target, "a readable error"] += 1
    else:
        outcomes[target, "success"] += 1


@contextmanager
def _interrupted(seconds: float, stop: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `stop` after so much processor time; Windows has no such clock, and there a hang is left to the reader."""
    if sys.platform == "win32":
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def assert_readable(message: str) -> None:
    """Words, no traceback, no flood."""
    assert len(message.strip()) > 10, repr(message)
    assert len(message) < 20_000, message[:2000]
    assert "Traceback (most recent call last)" not in message, message
    assert " object at 0x" not in message, message
