"""Decode once into one packed array on disk, then map it into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.config import DataSection
from ddpm.data import decode
from ddpm.data.records import Item, ScanReport, Source
from ddpm.errors import DataError
from ddpm.images import Crop

_WINDOW = 512
"""Pictures decoded ahead: bounds the memory."""


@dataclass(frozen=True)
class Pack:
    """All pictures of one part of a source, decoded."""

    images: np.ndarray
    """(N, C, H, W) uint8, mapped read-only."""
    labels: np.ndarray | None
    crop: Crop | None
    sha256: str
    """Of the images' and labels' bytes."""
    report: ScanReport


def pack(source: Source, config: DataSection, folder: Path, *, progress: bool) -> tuple[Pack, bool]:
    """The source's pack from the cache, made first if it is not there.

    The key is the files' manifest, the transform and the decoder's version. Returns the pack and whether it
    was made now. Raises DataError if too many pictures are broken or the disk refuses.
    """
    from filelock import FileLock

    place = folder / _key(source, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            made = not (place / "facts.json").is_file()
            if made:
                _write(source, config, place, progress=progress)
            return _read(place), made
    except OSError as error:
        raise DataError(
            f"{place}: the data cache cannot be used ({error}). Set DDPM_CACHE to another folder"
        ) from error


def _key(source: Source, config: DataSection) -> str:
    import PIL

    identity = {
        "manifest": source.manifest,
        "size": config.size,
        "channels": config.channels,
        "resize": config.resize,
        "max_broken": config.max_broken,
        "decoder": [decode.VERSION, PIL.__version__],
    }
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return f"{config.source}-{config.size[0]}x{config.size[1]}x{config.channels}-{digest[:16]}"


def _write(source: Source, config: DataSection, place: Path, *, progress: bool) -> None:
    """Write images.bin, labels.npy and facts.json into a folder beside `place`, then rename it."""
    from tqdm import tqdm

    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    report = ScanReport(found=len(source.items), ignored=source.ignored)
    digest, labels, crops = hashlib.sha256(), [], set()
    try:
        with (
            (temporary / "images.bin").open("wb") as file,
            tqdm(total=len(source.items), unit="image", desc=f"reading {config.source}", disable=not progress) as bar,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what matters is in the report
            for item, result in _decoded(source.items, config):
                bar.update()
                if isinstance(result, Exception):
                    report.skipped.append((item.name, f"{result}" or type(result).__name__))
                    _check_broken(report, config)
                    continue
                report.sizes[result.size] = report.sizes.get(result.size, 0) + 1
                report.modes[result.mode] = report.modes.get(result.mode, 0) + 1
                report.animated += result.animated
                crops.add(result.crop)
                labels.append(item.label)
                content = result.frame.tobytes()
                digest.update(content)
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not labels:
            raise DataError(f"data: no picture of {config.source} could be read\n{report}")
        known = None if any(label is None for label in labels) else np.array(labels, np.int64)
        if known is not None:
            digest.update(known.tobytes())
            np.save(temporary / "labels.npy", known)
        crop = crops.pop() if len(crops) == 1 else None
        facts = {
            "count": len(labels),
            "shape": [config.channels, *config.size],
            "labelled": known is not None,
            "crop": crop and [*crop],
            "sha256": digest.hexdigest(),
            "report": asdict(report),
        }
        (temporary / "facts.json").write_text(json.dumps(facts, indent=2))
        shutil.rmtree(place, ignore_errors=True)  # a torn one, without facts
        os.replace(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_broken(report: ScanReport, config: DataSection) -> None:
    """Stop as soon as more is broken than the configuration allows."""
    if len(report.skipped) > config.max_broken * report.found:
        shown = "\n".join(f"  {name!r}: {reason}" for name, reason in report.skipped[:10])
        raise DataError(
            f"data: {len(report.skipped):,} of {report.found:,} pictures are broken, more than data.max_broken: "
            f"{config.max_broken} allows:\n{shown}\nRemove or replace them, or raise data.max_broken"
        )


@dataclass(frozen=True)
class _Decoded:
    frame: np.ndarray
    crop: Crop
    size: str
    mode: str
    animated: bool


def _decoded(items: list[Item], config: DataSection) -> Iterator[tuple[Item, _Decoded | Exception]]:
    """Decode on all cores, in order, at most a window ahead."""

    def one(item: Item) -> _Decoded | Exception:
        try:
            with item.open() as picture:
                size, mode = f"{picture.width} x {picture.height}", picture.mode
                animated = bool(getattr(picture, "is_animated", False))
                frame, crop = decode.decode(picture, size=config.size, channels=config.channels, resize=config.resize)
            return _Decoded(frame, crop, size, mode, animated)
        except Exception as error:  # a broken file can raise anything; it is named in the report
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), _WINDOW):
            window = items[start : start + _WINDOW]
            yield from zip(window, pool.map(one, window), strict=True)


def _read(place: Path) -> Pack:
    facts: dict[str, Any] = json.loads((place / "facts.json").read_text())
    shape = (facts["count"], *facts["shape"])
    images = np.memmap(place / "images.bin", np.uint8, "r", shape=shape)
    labels = np.load(place / "labels.npy", allow_pickle=False) if facts["labelled"] else None
    crop = Crop(*facts["crop"]) if facts["crop"] else None
    padded = crop is not None and (crop.height, crop.width) != shape[-2:]
    report = ScanReport(**facts["report"] | {"skipped": [(name, why) for name, why in facts["report"]["skipped"]]})
    return Pack(images, labels, crop if padded else None, facts["sha256"], report)
