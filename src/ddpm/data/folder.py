"""Your own pictures: any tree of image files, in a folder or a .zip file; a sub-folder is a class."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.data.decode import open_picture
from ddpm.data.find import stat_entry
from ddpm.data.records import Contents, Item, Source
from ddpm.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset(
    f".{name}"
    for name in ("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "ppm", "pgm", "pbm", "jp2", "avif")
)
_MAX_MEMBER = 2**29
"""Bytes that a member of a .zip file may unpack to."""


def folder_source(root: str | None) -> Source:
    """The pictures below a folder or inside a .zip file.

    Raises DataError when there is no such folder or it has no pictures.
    """
    named = root or os.environ.get("DDPM_DATA_ROOT")
    if not named:
        raise DataError("data.root: is missing; name the folder of your pictures (or set DDPM_DATA_ROOT)")
    top = Path(named).expanduser().absolute()
    if top.is_dir():
        names = sorted(_walk(top))
        # A link to nowhere has an entry too: it is reported as broken, and noticed when it is mended.
        manifest = [(str(top / name), *_size_and_time(top / name)) for name in names if _is_picture(name)]
        if not manifest:
            raise _no_pictures(top, names)
        return Source("folder", manifest, lambda: _contents(top, names, lambda name: _open_file(top / name)))
    if not top.is_file() or not zipfile.is_zipfile(top):
        what = "is neither a folder nor a whole .zip file" if top.exists() else "no such folder"
        raise DataError(f"data.root: {top}: {what}; name the folder of your pictures, or a .zip file of it")
    return Source("folder", [stat_entry(top)], partial(_read_zip, top))


def _contents(top: Path, names: Sequence[str], opener: Callable[[str], Image]) -> Contents:
    """Pictures and their classes from names relative to `top`, with / between their parts."""
    chosen = [name for name in names if _is_picture(name)]
    if not chosen:
        raise _no_pictures(top, names)
    labels, class_names = _classes(chosen)
    items = [Item(name, partial(opener, name), label) for name, label in zip(chosen, labels, strict=True)]
    return Contents(items, class_names, len(names) - len(chosen), labels.count(None) if class_names else 0)


def _classes(names: Sequence[str]) -> tuple[list[int | None], tuple[str, ...]]:
    """The label of each picture and the names of the labels.

    The class is the first folder on which pictures differ (so that a .zip file may hold the folder itself), or
    the folder that holds all of them. A picture beside the class folders has none.
    """
    folders = [name.split("/")[:-1] for name in names]
    depth = len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists, so by whole names)
    if all(len(path) == depth for path in folders):
        depth -= 1
    found = [path[depth] if 0 <= depth < len(path) else None for path in folders]
    class_names = tuple(sorted({name for name in found if name is not None}))
    number = {name: i for i, name in enumerate(class_names)}
    return [None if name is None else number[name] for name in found], class_names


def _no_pictures(top: Path, names: Sequence[str]) -> DataError:
    return DataError(
        f"data.root: {top}: has no pictures ({len(names):,} other files seen). "
        f"Read are files that end in {', '.join(sorted(EXTENSIONS))}, in sub-folders too; hidden ones are not"
    )


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _is_hidden(name: str) -> bool:
    return (name.startswith(".") and name != "..") or name == "__MACOSX"


def _walk(top: Path) -> Iterable[str]:
    """All files below `top` that are not hidden; links are followed, but no folder is entered twice."""

    def refuse(error: OSError) -> None:
        raise DataError(f"data.root: {error.filename}: this folder cannot be read: {error.strerror}") from error

    entered = set()
    for folder, subfolders, files in os.walk(top, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        # Real folders before links, so that a picture has the name of where it lies.
        subfolders[:] = sorted(
            (name for name in subfolders if not _is_hidden(name)),
            key=lambda name: (os.path.islink(os.path.join(folder, name)), name),
        )
        relative = Path(folder).relative_to(top)
        yield from ((relative / file).as_posix() for file in files if not _is_hidden(file))


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _open_file(path: Path) -> Image:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise ValueError("is no regular file")
    return open_picture(path)


def _read_zip(path: Path) -> Contents:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"data.root: {path}: cannot be read: {error}") from error
    members = {
        info.filename: info
        for info in archive.infolist()
        if not info.is_dir() and not any(_is_hidden(part) for part in info.filename.split("/"))
    }
    return _contents(path, sorted(members), lambda name: _open_member(archive, members[name]))


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Image:
    if member.file_size > _MAX_MEMBER:
        raise ValueError(f"unpacks to {member.file_size:,} bytes, too many for a picture")
    return open_picture(io.BytesIO(archive.read(member)))  # in place: nothing is written to the disk
