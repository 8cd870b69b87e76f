"""Ctrl-C and SIGTERM as a request to stop at a good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """Set by the first signal; a second one leaves at once."""

    signum: int = 0


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask for a stop at the end of the step, instead of stopping in its middle."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(signum: int, _: FrameType | None) -> None:
        if stop.signum:
            raise KeyboardInterrupt
        stop.signum = signum

    previous: dict[int, Callable[..., Any] | int | None] = {
        number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
