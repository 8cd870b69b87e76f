"""Decoded once, kept in the cache as one array, mapped into memory ever after."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ddpm.config import DataSection
from ddpm.data import decode
from ddpm.data.cache import cache_folder, making
from ddpm.data.records import ScanReport, Source
from ddpm.data.scan import Facts, check_broken, scan
from ddpm.progress import say


@dataclass(frozen=True)
class Pack:
    """All pictures of one part of a source, decoded."""

    images: np.ndarray
    """(N, C, H, W) uint8, read-only."""
    facts: Facts


def pack(source: Source, config: DataSection, *, progress: bool) -> Pack:
    """The source's pack: from the cache, made there first if need be; in memory for a source without files.

    The key in the cache is the files' manifest, the transform and the decoder's version.
    Raises DataError if too many pictures are broken or the disk refuses.
    """
    if source.manifest is None:
        memory = io.BytesIO()
        facts = scan(source.read(), config, memory.write, progress=False)
        return Pack(np.frombuffer(memory.getvalue(), np.uint8).reshape(facts.shape), facts)
    place = cache_folder() / "packed" / _key(source, config)
    packed = _open(place)
    if packed is None:
        with making(place, progress=progress):
            packed = _open(place)  # another process may have made it meanwhile
            if packed is None:
                _make(source, config, place, progress=progress)
                packed = _open(place)
                assert packed is not None
                say(str(packed.facts.report), show=progress)
    report = packed.facts.report  # the pack does not depend on the limit, which may have been lowered since
    check_broken(report.skipped, report.found, config.max_broken)
    return packed


def _key(source: Source, config: DataSection) -> str:
    """Part and transform to read, decoder and manifest as a hash."""
    import PIL

    digest = hashlib.sha256()
    for entry in ((decode.VERSION, PIL.__version__), *(source.manifest or ())):
        digest.update(repr(entry).encode())
    name, (height, width) = source.name.replace(" ", "-"), config.size
    return f"{name}-{height}x{width}x{config.channels}-{config.resize}-{digest.hexdigest()[:16]}"


def _make(source: Source, config: DataSection, place: Path, *, progress: bool) -> None:
    """Write a folder beside `place`, then rename it: a pack is whole or absent."""
    temporary = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    try:
        with (temporary / "images.bin").open("wb") as file:
            facts = scan(source.read(), config, file.write, progress=progress)
            file.flush()
            os.fsync(file.fileno())
        if facts.labels is not None:
            np.save(temporary / "labels.npy", facts.labels)
        plain = asdict(facts) | {"labels": facts.labels is not None}
        (temporary / "facts.json").write_text(json.dumps(plain, indent=2), encoding="ascii")
        shutil.rmtree(place, ignore_errors=True)  # torn by a crash of the machine
        os.replace(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open(place: Path) -> Pack | None:
    """The pack, or None when it is absent or not whole."""
    from ddpm.crop import Crop

    try:
        plain = json.loads((place / "facts.json").read_text(encoding="ascii"))
        shape = tuple(plain["shape"])
        if (place / "images.bin").stat().st_size != math.prod(shape):
            return None
        images = np.memmap(place / "images.bin", np.uint8, "r", shape=shape)
        report = plain["report"] | {"skipped": tuple((name, why) for name, why in plain["report"]["skipped"])}
        facts = Facts(
            shape,
            np.load(place / "labels.npy", allow_pickle=False) if plain["labels"] else None,
            tuple(plain["class_names"]),
            Crop(*plain["crop"]) if plain["crop"] else None,
            plain["sha256"],
            ScanReport(**report),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Pack(images, facts)
