"""Files that are either whole or absent: temporary file, flush, rename."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ddpm.errors import DDPMError, UsageError, WriteError


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` only if the block ends without an error.

    The bytes are on disk (fsync) before the rename, and the rename before the return.
    Raises WriteError when the disk refuses, after removing the temporary file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise WriteError(
            f"{path}: could not be written ({error.strerror or error}); what stood there before is untouched"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the disk's refusal of what the block writes to `path` into a WriteError that says so."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path}: could not be written ({error.strerror or error})") from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed. Only for a folder that no other process writes to."""
    for path in folder.glob(".*.tmp"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def claim(note: Path, identity: dict[str, Any], *, holds: str) -> None:
    """Write a folder's note of what is in it, or check that it holds the same.

    Args:
        note: the file.
        holds: what the folder has where the note says something else, as the message says it.

    Raises UsageError with what differs.
    """
    found = noted(note)
    if found is None:
        write_json(note, identity)
    elif found != identity:
        changed = [f"{k}: {found.get(k)} -> {v}" for k, v in identity.items() if found.get(k) != v]
        raise UsageError(
            f"{note.parent}: holds {holds} ({'; '.join(changed)}). Choose another folder with --out, or remove that one"
        )


def noted(note: Path) -> dict[str, Any] | None:
    """What a folder's note says; None if there is none. Raises DDPMError if it is damaged."""
    try:
        return dict(json.loads(note.read_text())) if note.exists() else None
    except (ValueError, TypeError) as error:
        raise DDPMError(f"{note}: is damaged; remove the folder or choose another with --out") from error


def numbered(folder: Path) -> Iterator[Path]:
    """`folder`, `folder-2`, `folder-3`, ... : where to look for a place that is free."""
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def cache_folder() -> Path:
    """Where downloaded, packed and compiled things live: DDPM_CACHE, else the user's cache folder."""
    named = os.environ.get("DDPM_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("ddpm"))


def _umask() -> int:
    # There is no way to read the umask without setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _fsync_folder(folder: Path) -> None:
    # Makes the rename itself durable; Windows has no handle for a folder.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
