"""Progress bars: with the time left, and quiet where nobody watches."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


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

    # A log file wants a line now and then, not one for every tenth of a second.
    interval = 0.1 if sys.stderr.isatty() else 15.0
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        disable=not (show and speaks()),
        mininterval=interval,
        smoothing=0.05,
    )


def say(line: str, *, show: bool = True) -> None:
    """Print a line on stderr, above any running bar."""
    if show and speaks():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
