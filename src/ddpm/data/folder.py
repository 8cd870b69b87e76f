"""Your own pictures: any tree of image files, in a folder or a .zip file; a sub-folder is a class."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ddpm.data.find import stat_entry
from ddpm.data.records import Item, Source
from ddpm.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset(
    f".{name}"
    for name in ("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "ppm", "pgm", "pbm", "jp2", "avif")
)
_MAX_MEMBER = 512 * 2**20
"""Bytes that a member of a .zip file may unpack to."""


def folder_source(root: str | None) -> Source:
    """The pictures below a folder (links to folders are not followed) or inside a .zip file.

    Raises DataError when there is no such folder or it has no pictures.
    """
    named = root or os.environ.get("DDPM_DATA_ROOT")
    if not named:
        raise DataError("data.root: is missing; name the folder of your pictures (or set DDPM_DATA_ROOT)")
    top = Path(named).expanduser()
    if top.is_dir():
        names, openers, manifest = _in_folder(top)
    elif zipfile.is_zipfile(top):
        names, openers, manifest = _in_zip(top)
    else:
        raise DataError(
            f"data.root: {top}: {'is neither a folder nor a .zip file' if top.exists() else 'no such folder'}"
        )
    chosen = [name for name in names if PurePosixPath(name).suffix.lower() in EXTENSIONS]
    if not chosen:
        raise DataError(
            f"data.root: {top}: has no pictures ({len(names):,} other files). Read are: {', '.join(sorted(EXTENSIONS))}"
        )
    # Labels only where each picture has a class: one beside the class folders would have none.
    classes = sorted({PurePosixPath(name).parts[0] for name in chosen})
    labelled = all(len(PurePosixPath(name).parts) > 1 for name in chosen)
    number = {name: i for i, name in enumerate(classes)}
    items = [Item(name, openers[name], number[PurePosixPath(name).parts[0]] if labelled else None) for name in chosen]
    return Source(items, manifest, tuple(classes) if labelled else (), len(names) - len(chosen))


Listing = tuple[list[str], dict[str, Callable[[], "Image"]], list[tuple[str, int, int]]]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _in_folder(top: Path) -> Listing:
    """Names (relative, with /), how to open each, and the manifest; sorted."""
    names: list[str] = []
    manifest: list[tuple[str, int, int]] = []
    for folder, subfolders, files in os.walk(top, followlinks=False):
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        for file in sorted(files):
            path = Path(folder) / file
            if _hidden(file):
                continue
            names.append(path.relative_to(top).as_posix())
            try:
                manifest.append(stat_entry(path))
            except (OSError, RuntimeError):  # a dangling link or a loop: broken when it is opened
                manifest.append((str(path), -1, -1))
    names.sort()
    return names, {name: _opener(top / name) for name in names}, sorted(manifest)


def _opener(path: Path) -> Callable[[], Image]:
    def open_file() -> Image:
        from PIL import Image

        return Image.open(path)

    return open_file


def _in_zip(path: Path) -> Listing:
    archive = zipfile.ZipFile(path)
    names = sorted(
        info.filename
        for info in archive.infolist()
        if not info.is_dir() and not any(_hidden(part) for part in PurePosixPath(info.filename).parts)
    )
    return names, {name: _member_opener(archive, name) for name in names}, [stat_entry(path)]


def _member_opener(archive: zipfile.ZipFile, name: str) -> Callable[[], Image]:
    def open_member() -> Image:
        from PIL import Image

        if archive.getinfo(name).file_size > _MAX_MEMBER:
            raise ValueError("unpacks to more than 512 MiB")
        # Read in place: no member is ever written to the disk.
        return Image.open(io.BytesIO(archive.read(name)))

    return open_member
