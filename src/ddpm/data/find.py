"""Where files of a known data set are looked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ddpm.errors import DataError


def search_folders(root: str | None, subfolders: Sequence[str]) -> list[Path]:
    """The folders to search: below `data.root` if it is given, else below DDPM_DATA_ROOT if that is set."""
    base = root or os.environ.get("DDPM_DATA_ROOT")
    if not base:
        return []
    top = Path(base).expanduser()
    return [top, *(top / sub for sub in subfolders)]


def find_file(names: Sequence[str], folders: Sequence[Path], *, source: str, root: str | None) -> Path | None:
    """The first of `names` in the first of `folders` that has one.

    None when there is none and a download may be tried. Raises DataError when the user named the folder.
    """
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    if root:
        searched = ", ".join(map(str, folders))
        raise DataError(
            f"data.root: {root}: has no {' or '.join(names)} ({source}). Searched: {searched}. "
            "Correct data.root, or leave it out to use the folder that DDPM_DATA_ROOT names, or a download"
        )
    return None


def stat_entry(path: Path) -> tuple[str, int, int]:
    """(path, bytes, modification time): a file's entry in a manifest."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns
