"""Whether two runs are one: checkpoints, metrics and pictures, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

PLACE = ("config", "training", "steps")
"""What may differ between checkpoints of one run: how long it was to be."""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every tensor and plain value of a checkpoint with the keys that lead to it; an empty container is a leaf."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list | tuple) and value:
        for key, part in enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path, value


def content(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds."""
    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def different(a: Path, b: Path) -> list[str]:
    """The items in which two checkpoint files differ."""
    one, two = (dict(leaves(content(path))) for path in (a, b))
    return [
        ".".join(map(str, path))
        for path in one.keys() | two.keys()
        if path != PLACE and not _same(one.get(path), two.get(path))
    ]


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        return x.dtype == y.dtype and x.shape == y.shape and x.numpy().tobytes() == y.numpy().tobytes()
    return type(x) is type(y) and bool(x == y)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without the wall clock's."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in lines]


def unlike(whole: Path, parted: Path) -> list[str]:
    """In what `parted` differs from the uninterrupted run `whole`; checkpoints that it has besides do not count."""
    found = []
    for path in sorted(whole.glob("diffusion-*.pt")):
        other = parted / path.name
        found += [f"{path.name}: {item}" for item in different(path, other)] if other.exists() else [f"no {path.name}"]
    if rows(whole) != rows(parted):
        found.append("metrics.jsonl")
    for path in sorted((whole / "samples").iterdir()):
        other = parted / "samples" / path.name
        if not other.exists() or other.read_bytes() != path.read_bytes():
            found.append(f"samples/{path.name}")
    if (whole / "config.yaml").read_bytes() != (parted / "config.yaml").read_bytes():
        found.append("config.yaml")
    return found
