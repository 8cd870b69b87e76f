"""Shards of the format WebDataset: tar files in which the files of one sample follow each other and share a name.

Tar reading and the opening of URLs are those of the library `webdataset` (an extra).
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from gzip import GzipFile
from pathlib import Path
from typing import Any

from ddpm.config import DataSection
from ddpm.data.folder import EXTENSIONS
from ddpm.data.records import Sample
from ddpm.data.scan import reason
from ddpm.data.stream import ImageStream, whole_label
from ddpm.errors import DataError

_ENDINGS = (".tar", ".tar.gz", ".tgz")
_ALLOW_PIPES = "DDPM_ALLOW_PIPES"
_GZIP, _OTHERS = b"\x1f\x8b", (b"BZ", b"\xfd7")
"""How compressed tar files begin: by gzip, whose end is looked at, and by bzip2 or xz, which tarfile reads."""
_CURL = {6: "no such host", 7: "no connection", 18: "it ended early", 22: "the server has no such file, or refuses it"}
"""What curl's commonest exit codes mean."""


def webdataset_stream(config: DataSection, classes: int | None) -> ImageStream:
    """The shards that `data.root` names.

    Args:
        classes: how many the network is told; None: labels are not read.

    Raises DataError: no such file or folder, or the package is missing.
    """
    _package()
    root = config.root or os.environ.get("DDPM_DATA_ROOT")
    if not root:
        raise DataError(
            "data.root: is missing; name a folder of shards (.tar), or shards, such as 'photos/{0000..0099}.tar'"
        )
    shards = _shards(root)
    for shard in shards:
        _check(shard)
    names = tuple(map(str, range(classes or 0)))
    return ImageStream(shards, lambda i: _read(shards[i], config, classes), config, names)


def _shards(root: str) -> tuple[str, ...]:
    """A folder's tar files by name, or what a pattern names, in its order."""
    from webdataset.shardlists import expand_urls

    folder = Path(root).expanduser()
    if folder.is_dir():
        found = sorted(path for path in folder.iterdir() if path.name.endswith(_ENDINGS) and path.is_file())
        if not found:
            raise DataError(f"data.root: {folder}: has no shards; read are files that end in {', '.join(_ENDINGS)}")
        return tuple(map(str, found))
    urls = [url if _is_url(url) else os.path.expanduser(url) for url in expand_urls(root)]
    if twice := next((url for url in urls if urls.count(url) > 1), None):
        raise DataError(f"data.root: {twice}: is named twice; its pictures would be seen twice an epoch")
    return tuple(urls)


def _is_url(name: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", name) is not None  # one letter is a drive


def _check(shard: str) -> None:
    if shard.startswith("pipe:") and os.environ.get(_ALLOW_PIPES) != "1":
        raise DataError(
            f"data.root: {shard}: runs a command on this machine, which a configuration may not do by itself. "
            f"If it is yours, allow it with the environment variable {_ALLOW_PIPES}=1"
        )
    if _is_url(shard):
        return
    if not os.path.isfile(shard):
        raise DataError(f"data.root: {shard}: no such file, folder or URL; name a folder of shards, or shards")
    if not os.path.getsize(shard):
        raise DataError(f"data.root: {shard}: is an empty file, no shard")


def _read(shard: str, config: DataSection, classes: int | None) -> Iterator[Sample]:
    for files in _samples(shard):
        key = str(files["__key__"])
        content = _picture(files, config.image_column, f"{shard}: {key}")
        label = None if classes is None else _label(files, config.label_column or "cls", classes, f"{shard}: {key}")
        problem = "" if content else f"it has no picture (its files end in {', '.join(_endings(files)) or 'nothing'})"
        yield Sample(key, content or b"", label, problem)


def _samples(shard: str) -> Iterator[Mapping[str, Any]]:
    """Each sample of a shard: its key and its files' contents by their endings."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    stream: Any = None
    try:
        stream = _open(shard)
        with closing(stream):  # which also tells how a download ended
            try:
                start = bytes(getattr(stream, "stream", stream).peek(2)[:2])
                content = _Ending(GzipFile(fileobj=stream) if start == _GZIP else stream)
                yield from group_by_keys(tar_file_expander([{"url": shard, "stream": content}]))
                if start not in _OTHERS:
                    content.check()
            except GeneratorExit:  # nobody reads on: a program that waits for its server is not waited for
                if hasattr(stream, "proc"):
                    stream.ignore_errors = True
                    stream.proc.kill()
                raise
    except Exception as error:  # libraries and programs for each kind of URL raise their own
        raise DataError(f"{shard}: cannot be read as a shard (a tar file): {_why(error, stream)}") from error


class _Ending:
    """A stream that must end as tar files do: one cut off between two members is else taken for a shorter one."""

    def __init__(self, stream: Any):
        self._stream, self._last = stream, b""

    def read(self, size: int) -> bytes:
        content: bytes = self._stream.read(size)
        self._last = (self._last + content)[-1024:]
        return content

    def check(self) -> None:
        """Raises ValueError."""
        while self.read(2**16):
            pass
        if self._last != bytes(1024):
            raise ValueError("it is cut off: the mark at the end of a tar file is missing")


def _open(shard: str) -> Any:
    from webdataset.gopen import gopen

    if not _is_url(shard):
        return Path(shard).open("rb")
    with _no_signals():
        return gopen(shard)


@contextmanager
def _no_signals() -> Iterator[None]:
    """A program started inside does not hear Ctrl-C, which is for the training process: that first ends its step."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _why(error: Exception, stream: Any) -> str:
    """What went wrong: how the program that fetches a URL ended, or what the library said first."""
    ended: int | None = stream.proc.poll() if hasattr(stream, "proc") else None
    if ended:
        return f"the program that fetches it ended with exit code {ended} ({_CURL.get(ended, 'see above')})"
    if isinstance(error, OSError):
        return reason(error)
    return str(error.args[0]).partition(" @ ")[0] if error.args else type(error).__name__


def _endings(files: Mapping[str, Any]) -> list[str]:
    return [name for name in files if not name.startswith("__")]


def _picture(files: Mapping[str, Any], wanted: str | None, where: str) -> bytes | None:
    if wanted is not None:
        content: bytes | None = files.get(wanted.removeprefix(".").lower())
        return content
    found = [name for name in _endings(files) if f".{name.rpartition('.')[2]}" in EXTENSIONS]
    if len(found) > 1:
        raise DataError(
            f"data.image_column: is missing; {where} has {len(found)} pictures, whose files end in {', '.join(found)}. "
            "Name one"
        )
    return files[found[0]] if found else None


def _label(files: Mapping[str, Any], ending: str, classes: int, where: str) -> int:
    content = files.get(ending.removeprefix(".").lower())
    if content is None:
        raise DataError(
            f"{where}: has no label: none of its files ends in .{ending} (they end in {', '.join(_endings(files))}). "
            "Name the ending with data.label_column, or remove network.classes"
        )
    return whole_label(bytes(content).decode("utf-8", "replace").strip(), classes, where)


def _package() -> None:
    try:
        import webdataset  # noqa: F401
    except ImportError:
        raise DataError(
            "data.source: webdataset needs the package webdataset: pip install 'ddpm[webdataset]'"
        ) from None
