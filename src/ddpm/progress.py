"""Progress bars: with the time left, and quiet where nobody watches."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm


INTERVAL = 15.0
"""Seconds between two lines in a log file."""


def speaks() -> bool:
    """Whether this process tells what happens: of several in one job (docs/scaling.md) the first alone."""
    return os.environ.get("RANK", "0") == "0"


def progress_bar(what: str, total: int, unit: str, *, show: bool, done: int = 0) -> tqdm[Any]:
    """A bar on stderr: "training: 10% | 100/1000 [00:20<03:00, 5 step/s]".

    Args:
        show: False makes it silent.
        done: units done before.
    """
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        disable=not (show and speaks()),
        mininterval=0.1 if watched else INTERVAL,
        smoothing=0.05,
        file=None if watched else Lines(sys.stderr),
        ncols=None if watched else 100,
    )


class Lines:
    """A stream for a bar that goes to a file: a line now and then, and the last, in the place of a line rewritten."""

    def __init__(self, stream: TextIO):
        self._stream, self._pending, self._last = stream, "", -math.inf

    def write(self, text: str) -> int:
        """Take what a bar writes; a line end alone is its end."""
        line = text.strip("\r\n ")
        self._pending = line or self._pending
        now = time.monotonic()
        if self._pending and (not line or now - self._last >= INTERVAL):
            self._stream.write(self._pending + "\n")
            self._pending, self._last = "", now
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def say(line: str, *, show: bool = True) -> None:
    """Print a line on stderr, above any running bar."""
    if show and speaks():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
