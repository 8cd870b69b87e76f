"""Quality against network calls: which sampler is worth what, for one model and one noise."""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.choices import SamplerName
from ddpm.config import SamplingSection
from ddpm.errors import UsageError
from ddpm.evaluate.comparison import FEWEST, Distances, Floors, distances, distances_of, floors, plain
from ddpm.evaluate.drawing import draw_samples, sha256_of
from ddpm.evaluate.extractors import Extractor
from ddpm.evaluate.provenance import provenance
from ddpm.evaluate.reference import Reference, key_of
from ddpm.files import write_json, write_text
from ddpm.generate import Model, network_calls, sampling_settings
from ddpm.progress import progress_bar

CALLS = (5, 8, 10, 15, 20, 50, 100, 1000)


@dataclass(frozen=True)
class Cell:
    """One sampler with one number of steps, measured."""

    sampler: str
    steps: int
    calls: int
    """Network calls an image."""
    distances: Distances
    few: bool
    """Whether there were too few images for the FID to say much."""
    seconds: float
    """Of sampling, on the machine that measured it."""
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A sampler that this model cannot be sampled with so."""

    sampler: str
    reason: str


def settings_of(
    model: Model, samplers: Sequence[SamplerName], calls: Sequence[int], **changes: Any
) -> tuple[list[SamplingSection], list[Skipped]]:
    """The settings of every cell: for each sampler the most steps that need no more than each number of calls.

    Args:
        changes: settings for all of them: seed, batch_size.
    """
    T = model.diffusion.schedule.T
    chosen: list[SamplingSection] = []
    skipped: list[Skipped] = []
    for sampler in samplers:
        plan = sampling_settings(model, sampler=sampler, steps=T, **changes)

        def needed(steps: int, plan: SamplingSection = plan) -> int:
            return network_calls(model, plan.model_copy(update={"steps": steps}))

        steps_of = sorted({bisect_right(range(1, T + 1), budget, key=needed) for budget in calls} - {0})
        for steps in steps_of:
            try:
                chosen.append(sampling_settings(model, sampler=sampler, steps=steps, **changes))
            except UsageError as error:
                skipped.append(Skipped(f"{sampler}, {steps} steps", str(error)))
        if not steps_of:
            skipped.append(Skipped(sampler, f"needs more than {max(calls)} network calls"))
    return chosen, skipped


def benchmark(
    model: Model,
    checkpoint: str,
    plans: Sequence[SamplingSection],
    count: int,
    reference: Reference,
    unseen: Reference | None,
    extractor: Extractor,
    folder: Path,
    *,
    force: bool = False,
    progress: bool = True,
) -> Iterator[Cell]:
    """Measure each plan; a cell is stored in `folder` as it is made, and read from there if it is there already."""
    total = sum(network_calls(model, plan) * count for plan in plans)
    with progress_bar("samplers", total, "call", show=progress) as bar:
        for plan in plans:
            calls = network_calls(model, plan)
            bar.set_postfix_str(f"{plan.sampler}, {calls} calls")
            path = folder / "cells" / f"{plan.sampler}-{plan.steps}-{_key(model, plan, count, reference, extractor)}.json"
            cell = None if force else _stored(path)
            if cell is not None:
                bar.update(calls * count)
                yield cell
                continue
            began = time.perf_counter()
            samples = draw_samples(model, count, plan, lambda n, calls=calls: bar.update(n * calls))
            seconds = time.perf_counter() - began
            reading = extractor.read(np.ascontiguousarray(samples.transpose(0, 3, 1, 2)))
            source = provenance(
                count, sha256_of(samples), reference, unseen, extractor, checkpoint=checkpoint, model=model, settings=plan
            )
            cell = Cell(
                sampler=plan.sampler,
                steps=plan.steps or model.diffusion.schedule.T,
                calls=calls,
                distances=distances(reading, reference.reading, force=True),
                few=min(count, len(reference)) < FEWEST,
                seconds=seconds,
                provenance=asdict(source),
            )
            write_json(path, plain(asdict(cell)))
            yield cell


def _key(model: Model, plan: SamplingSection, count: int, reference: Reference, extractor: Extractor) -> str:
    """Of all that decides a cell's numbers."""
    facts = {
        "checkpoint": model.sha256,
        "weights": model.weights,
        "precision": model.precision,
        "sampling": plan.model_dump(mode="json", exclude={"batch_size"}),
        "count": count,
        "reference": reference.key,
        "extractor": extractor.sha256,
    }
    return key_of(facts)[:12]


def _stored(path: Path) -> Cell | None:
    try:
        found = json.loads(path.read_text())
        return Cell(**found | {"distances": distances_of(found["distances"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or damaged and so measured again


def table(cells: Sequence[Cell], limits: Floors, skipped: Sequence[Skipped], *, force: bool = False) -> str:
    """The cells as a Markdown table, by calls and then by FID, and what stands beside it."""
    head = ["sampler", "network calls", "steps", "FID", "KID x 1000", "precision", "recall", "seconds"]
    rows = [head, ["---", *["---:"] * 7]]
    for cell in sorted(cells, key=lambda c: (c.calls, c.distances.fid or 0.0)):
        rows.append([cell.sampler, f"{cell.calls}", f"{cell.steps}", *_numbers(cell.distances, force), f"{cell.seconds:.0f}"])
    for name, floor in (("floor: unseen images", limits.unseen), ("floor: half against half", limits.halves)):
        if floor is not None:
            rows.append([name, "", "", *_numbers(floor, force), ""])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if any(cell.few for cell in cells):
        mark = "FIDs of so few images are biased upwards: compare them within this table alone (*)" if force else (
            f"no FID: fewer than {FEWEST:,} images (--force gives it, marked)"
        )
        lines.append(f"\n{mark}.")
    lines += [f"\nLeft out: {one.sampler}: {one.reason}." for one in skipped]
    return "\n".join(lines) + "\n"


def _numbers(found: Distances, force: bool) -> list[str]:
    few = min(found.count, found.reference_count) < FEWEST
    fid = "-" if found.fid is None or (few and not force) else f"{found.fid:.3f}" + ("*" if few else "")
    kid = f"{1000 * found.kid.value:.3f} +- {1000 * found.kid.error:.3f}"
    return [fid, kid, f"{found.support.precision:.3f}", f"{found.support.recall:.3f}"]


def write(
    folder: Path, cells: Sequence[Cell], limits: Floors, skipped: Sequence[Skipped], *, force: bool = False
) -> list[Path]:
    """Write samplers.md and samplers.json."""
    paths = [folder / "samplers.md", folder / "samplers.json"]
    write_text(paths[0], table(cells, limits, skipped, force=force))
    facts = {"cells": [asdict(c) for c in cells], "floors": asdict(limits), "skipped": [asdict(s) for s in skipped]}
    write_json(paths[1], plain(facts))
    return paths


def limits_for(reference: Reference, unseen: Reference | None, count: int) -> Floors:
    """The floors that stand beside the cells."""
    return floors(reference, unseen, count, force=True)
