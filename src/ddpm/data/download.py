"""Downloads from public mirrors: checked, cached once, whole or absent."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from ddpm.data.cache import making
from ddpm.errors import DataError
from ddpm.progress import say


def fetch(
    urls: Sequence[str],
    target: Path,
    *,
    file_md5: str | None = None,
    file_sha256: str | None = None,
    content_md5: str | None = None,
    by_hand: str = "Put the file into a folder and name it with data.root or DDPM_DATA_ROOT",
    progress: bool,
) -> Path:
    """Download `target` from the first of `urls` that gives the right content, unless it is there already.

    Args:
        file_md5: MD5 of the file.
        file_sha256: SHA-256 of the file, where that is known instead.
        content_md5: MD5 of what the gzipped file holds (mirrors may compress differently).
        by_hand: what to do without a network, for the message.

    Raises:
        DataError: no mirror had it; names each with its reason.
    """
    if target.is_file():
        return target
    import pooch

    download = pooch.HTTPDownloader(progressbar=progress, timeout=30)
    reasons = []
    with making(target, progress=progress):
        if target.is_file():  # another process made it meanwhile
            return target
        part = target.with_name(f"{target.name}.part")
        for url in urls:
            say(f"downloading {url}", show=progress)
            try:
                download(url, str(part), None)
                expected, kind = content_md5 or file_md5 or file_sha256, "SHA-256" if file_sha256 else "MD5"
                found = _digest(part, kind, content=content_md5 is not None)
                if found != expected:
                    raise ValueError(f"wrong content ({kind} {found}, expected {expected})")
                os.replace(part, target)
                return target
            except (OSError, ValueError, EOFError, zlib.error) as error:  # those of requests are OSErrors
                reasons.append(f"  {url}: {_reason(error)}")
            finally:
                part.unlink(missing_ok=True)
    raise DataError("\n".join([f"{target.name}: cannot be downloaded:", *reasons, by_hand]))


def _reason(error: Exception) -> str:
    if type(error).__module__.startswith("requests") and getattr(error, "response", None) is None:
        return f"cannot be reached ({type(error).__name__})"  # in its own words it fills a paragraph
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _digest(path: Path, kind: str, *, content: bool) -> str:
    with gzip.open(path) if content else path.open("rb") as file:
        if kind == "SHA-256":
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
