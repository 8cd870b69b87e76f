"""Downloads from public mirrors: checked, cached once, whole or absent."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from ddpm.errors import DataError


def cache_folder() -> Path:
    """Where packed and downloaded data live: DDPM_CACHE, else the user's cache folder."""
    import platformdirs

    named = os.environ.get("DDPM_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("ddpm"))


def fetch(
    urls: Sequence[str], target: Path, *, file_md5: str | None = None, content_md5: str | None = None, progress: bool
) -> Path:
    """Download `target` from the first of `urls` that gives the right content, unless it is there already.

    Args:
        file_md5: MD5 of the file.
        content_md5: MD5 of what the gzipped file holds (mirrors may compress differently).

    Raises:
        DataError: no mirror had it; names each with its reason, and the way by hand.
    """
    if target.is_file():
        return target
    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    reasons = []
    for url in urls:
        try:
            pooch.retrieve(
                url,
                known_hash=None,
                fname=part.name,
                path=part.parent,
                downloader=pooch.HTTPDownloader(progressbar=progress, timeout=30),
            )
            found = _md5(part.read_bytes(), unzip=content_md5 is not None)
            if found != (content_md5 or file_md5):
                raise ValueError(f"wrong content (MD5 {found}, expected {content_md5 or file_md5})")
            os.replace(part, target)
            return target
        except (OSError, ValueError, EOFError, zlib.error) as error:  # requests' errors are OSErrors
            reasons.append(f"  {url}: {str(error).splitlines()[0][:160]}")
        finally:
            part.unlink(missing_ok=True)
    raise DataError(
        f"{target.name}: could not be downloaded:\n"
        + "\n".join(reasons)
        + "\nPut the file into a folder and name it with "
        "data.root or the environment variable DDPM_DATA_ROOT"
    )


def _md5(content: bytes, *, unzip: bool) -> str:
    return hashlib.md5(gzip.decompress(content) if unzip else content, usedforsecurity=False).hexdigest()
