"""Quality against network calls, for every sampler: `ddpm benchmark samplers`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ddpm.charts import Line, Panel, chart, require_matplotlib
from ddpm.choices import DEFAULT_SPACING, SamplerName, Spacing
from ddpm.config import SamplingSection
from ddpm.data import ImageSet, Split
from ddpm.errors import UsageError
from ddpm.evaluate.distances import compare
from ddpm.evaluate.drawing import IN_SHARES, draw_samples
from ddpm.evaluate.evaluation import FEWEST, LEAST
from ddpm.evaluate.extractor import Extractor, Features
from ddpm.evaluate.nll import evaluated_split, load_split, subset
from ddpm.files import claim, write_json, write_text
from ddpm.generate import Model, network_calls, sampling_settings
from ddpm.images import save_png, unpacked
from ddpm.progress import progress_bar

CALLS = (5, 8, 10, 15, 20, 50, 100, 1000)
REFERENCE = 10_000
"""Training images, at most, that samples are compared with."""


@dataclass(frozen=True)
class Cell:
    """One sampler at one budget."""

    sampler: SamplerName
    spacing: Spacing
    budget: int
    """Network calls an image that were allowed."""
    calls: int
    """Network calls an image that the most steps within the budget spend."""
    steps: int
    fid: float
    kid: float
    kid_error: float
    confidence: float
    """Mean probability of the likeliest digit."""


@dataclass(frozen=True)
class Table:
    """All cells, and what they are to be measured by."""

    cells: tuple[Cell, ...]
    facts: dict[str, Any]
    floor: float
    """FID of `unseen` images against the same reference."""
    unseen: int
    """Test or held-out images: as many as there are samples, or all."""

    def best(self, budget: int) -> Cell | None:
        """The smallest FID at a budget."""
        return min((c for c in self.cells if c.budget == budget), key=lambda c: c.fid, default=None)


def run(
    model: Model,
    extractor: Extractor,
    out: Path,
    *,
    images: int = 512,
    budgets: Sequence[int] = CALLS,
    samplers: Sequence[SamplerName] = get_args(SamplerName),
    spacings: Sequence[Spacing] = (DEFAULT_SPACING,),
    guidance: float | None = None,
    seed: int = 0,
    data_root: str | None = None,
    progress: bool = True,
) -> Table:
    """Sample `images` with each sampler, spacing and budget, and measure them; the same call again goes on.

    All cells start from the same noise, with the same `guidance` (None: that of the checkpoint). Each is written to
    `out/cells` when it is made, and `results.json`, `table.md` and `curves.png` at the end.

    Raises UsageError if `out` holds a benchmark of something else, for fewer than `LEAST` images, or for guidance of a
    model without classes.
    """
    require_matplotlib()
    if images < LEAST:
        raise UsageError(f"--images: found {images}; distances need at least {LEAST}")
    common = {"seed": seed, "guidance": guidance}
    settings = sampling_settings(model, **common)  # refuses guidance without classes
    facts = {
        "checkpoint_sha256": model.sha256,
        "step": model.step,
        "weights": model.weights,
        "precision": model.precision,
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "extractor_mark": extractor.mark or None,
        "transform": extractor.transform,
        "images": images,
        "seed": seed,
        "ddpm": version("ddpm"),
    }
    sides: tuple[Split, Split] = ("train", evaluated_split(model))
    trained_on, others = (load_split(model, split, root=data_root, progress=False) for split in sides)
    if min(len(trained_on), len(others)) < LEAST:
        raise UsageError(
            f"{sides[0]}, {sides[1]}: {len(trained_on):,} and {len(others):,} images; distances need at least {LEAST} "
            "of each"
        )
    facts |= {"reference_sha256": trained_on.fingerprint, "unseen_sha256": others.fingerprint}
    if model.config.network.classes:
        facts |= {"classes": IN_SHARES, "guidance": settings.guidance or 1.0}
    claim(out / "benchmark.json", facts, holds="a benchmark of something else")
    reference = _features(model, extractor, trained_on, REFERENCE)
    unseen = _features(model, extractor, others, images)
    floor = compare(unseen, reference)
    planned = list(_plan(model, budgets, samplers, spacings, common))
    cells = []
    with progress_bar("measuring", sum(s.calls for s in planned) * images, "call", show=progress) as bar:
        for plan in planned:
            bar.set_postfix_str(f"{plan.settings.sampler}, {plan.calls} calls")
            path = out / "cells" / f"{plan.settings.sampler}-{plan.spacing}-{plan.budget}.json"
            cells.append(_cell(model, extractor, reference, trained_on.labels, path, plan, images))
            bar.update(plan.calls * images)
    facts |= {
        "reference": f"{len(reference.vectors):,} training images",
        "reference_images": len(reference.vectors),
        "fid_of_too_few_images": min(images, len(reference.vectors)) < FEWEST,
        "data": model.config.data.source,
    }
    table = Table(tuple(cells), facts | {"floor_confidence": floor.classes.confidence}, floor.fid, len(unseen.vectors))
    write_json(
        out / "results.json",
        {**table.facts, "floor_fid": table.floor, "floor_kid": floor.kid.value, "cells": [asdict(c) for c in cells]},
    )
    write_text(out / "table.md", markdown(table))
    save_png(out / "curves.png", curves(table))
    return table


@dataclass(frozen=True)
class _Plan:
    settings: SamplingSection
    spacing: Spacing
    budget: int
    calls: int


def _plan(
    model: Model,
    budgets: Sequence[int],
    samplers: Sequence[SamplerName],
    spacings: Sequence[Spacing],
    common: dict[str, Any],
) -> Iterator[_Plan]:
    """For each sampler and budget the most steps that it affords; what a sampler cannot do is left out."""
    for sampler in samplers:
        for spacing in spacings:
            for budget in budgets:
                for steps in range(min(budget, model.diffusion.schedule.T), 0, -1):
                    try:
                        chosen = sampling_settings(model, sampler=sampler, steps=steps, spacing=spacing, **common)
                    except UsageError:
                        continue
                    if (calls := network_calls(model, chosen)) <= budget:
                        yield _Plan(chosen, spacing, budget, calls)
                        break


def _cell(
    model: Model,
    extractor: Extractor,
    reference: Features,
    labels: np.ndarray | None,
    path: Path,
    plan: _Plan,
    images: int,
) -> Cell:
    if path.exists():
        return Cell(**json.loads(path.read_text()))
    drawn = draw_samples(model, images, plan.settings, labels, progress=False)
    found = compare(extractor(drawn), reference)
    cell = Cell(
        sampler=plan.settings.sampler,
        spacing=plan.spacing,
        budget=plan.budget,
        calls=plan.calls,
        steps=plan.settings.steps or model.diffusion.schedule.T,
        fid=found.fid,
        kid=found.kid.value,
        kid_error=found.kid.error,
        confidence=found.classes.confidence,
    )
    write_json(path, asdict(cell))
    return cell


def _features(model: Model, extractor: Extractor, images: ImageSet, count: int) -> Features:
    return extractor(unpacked(images.take(subset(len(images), count)), model.data.crop))


def markdown(table: Table) -> str:
    """FID of each sampler at each budget; the best of a column is bold."""
    budgets = sorted({cell.budget for cell in table.cells})
    rows = list(dict.fromkeys((cell.sampler, cell.spacing) for cell in table.cells))
    several = len({spacing for _, spacing in rows}) > 1
    lines = ["| network calls | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for sampler, spacing in rows:
        found = {c.budget: c for c in table.cells if (c.sampler, c.spacing) == (sampler, spacing)}
        name = f"`{sampler}`" + (f", {spacing}" if several else "")
        lines.append(f"| {name} | " + " | ".join(_shown(table, found.get(budget)) for budget in budgets) + " |")
    f = table.facts
    guided = f", guidance {f['guidance']:g}" if "guidance" in f else ""
    lines += [
        "",
        f"FID in the features of the {f['extractor']} extractor, {f['images']} samples against {f['reference']} of "
        f"{f['data']}; {table.unseen:,} unseen images have {table.floor:.2f}. {f['weights']} weights of step "
        f"{f['step']:,}, seed {f['seed']}{guided}. A sampler takes the most steps within the calls.",
    ]
    if f["fid_of_too_few_images"]:
        lines += [
            "",
            f"Fewer than {FEWEST:,} images: these FIDs are biased upwards. Compare them within this table alone.",
        ]
    return "\n".join(lines) + "\n"


def _shown(table: Table, cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"**{cell.fid:.2f}**" if cell is table.best(cell.budget) else f"{cell.fid:.2f}"


def curves(table: Table) -> np.ndarray:
    """The table as a picture."""
    several = len({cell.spacing for cell in table.cells}) > 1
    lines = []
    for sampler, spacing in dict.fromkeys((cell.sampler, cell.spacing) for cell in table.cells):
        own = [c for c in table.cells if (c.sampler, c.spacing) == (sampler, spacing)]
        name = f"{sampler}, {spacing}" if several else sampler
        lines.append(Line([c.calls for c in own], [c.fid for c in own], name=name))
    f = table.facts
    panel = Panel("", "network calls an image", "FID, digit features", lines, True, ("unseen images", table.floor))
    note = f"{f['images']} samples a point, {f['reference']} of {f['data']}, step {f['step']:,}, seed {f['seed']}"
    return chart([panel], title="Quality against network calls", note=note)
