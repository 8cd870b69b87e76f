"""The folder where downloaded and packed data live, and one process at a time making something in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm.errors import DataError
from ddpm.files import cache_folder as cache_folder
from ddpm.progress import say


@contextmanager
def making(target: Path, *, progress: bool) -> Iterator[None]:
    """Hold the right to make `target` (its folder exists then); others wait, and look then whether it is there.

    Raises DataError when the disk refuses, here or in the block.
    """
    from filelock import FileLock, Timeout

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        locks = cache_folder() / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{target.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that makes {target}", show=progress)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise DataError(
            f"{target.parent}: the data cache cannot be used ({error.strerror or error}). "
            "Set the environment variable DDPM_CACHE to another folder"
        ) from error
