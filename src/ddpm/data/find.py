"""Where the files of a known data set are looked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ddpm.errors import DataError


def search_folders(root: str | None, subfolders: Sequence[str]) -> list[Path]:
    """The folders to search: below `data.root` if it is given, else below DDPM_DATA_ROOT if that is set.

    The data set's own sub-folders come first: those of the MNIST family share their file names.
    """
    named = root or os.environ.get("DDPM_DATA_ROOT")
    if not named:
        return []
    top = Path(named).expanduser().absolute()
    return [*(top / sub for sub in subfolders), top]


def find_together(wanted: Sequence[Sequence[str]], folders: Sequence[Path]) -> list[Path] | None:
    """One file for each of `wanted` (its possible names), all from the first folder that has all."""
    for folder in folders:
        found = [next((folder / name for name in names if (folder / name).is_file()), None) for names in wanted]
        whole = [path for path in found if path]
        if len(whole) == len(wanted):
            return whole
    return None


def looked_for(wanted: Sequence[Sequence[str]], folders: Sequence[Path]) -> str:
    """What was looked for and where."""
    names = ", and ".join(" or ".join(spellings) for spellings in wanted)
    return f"Looked for: {names}. Searched: {', '.join(map(str, folders)) or 'no folder (none is named)'}."


def missing(root: str, wanted: Sequence[Sequence[str]], folders: Sequence[Path]) -> DataError:
    """The folder that the user named lacks the files: nothing is downloaded into or instead of it."""
    what = "lacks files" if folders[-1].is_dir() else "is not a folder"
    return DataError(
        f"data.root: {root}: {what}. {looked_for(wanted, folders)} "
        "Correct data.root, or leave it out to use the folder that DDPM_DATA_ROOT names, or a download"
    )


def by_hand(wanted: Sequence[Sequence[str]], folders: Sequence[Path]) -> str:
    """What to do when neither folder nor network has the files."""
    return (
        f"{looked_for(wanted, folders)}\nWithout a network, put the files into a folder and name it with data.root "
        "or with the environment variable DDPM_DATA_ROOT"
    )


def stat_entry(path: Path) -> tuple[str, int, int]:
    """(path, bytes, modification time): a file's entry in a manifest."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns
