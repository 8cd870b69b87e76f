"""`ddpm evaluate --report`: one HTML page, which needs no other file and no network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm.evaluate.evaluation import Evaluation
from ddpm.evaluate.nll import CONDITIONAL, SCALING, Likelihood
from ddpm.evaluate.plot import Curve, plot
from ddpm.evaluate.provenance import Provenance
from ddpm.evaluate.summary import SHOWN, copies_words, grid_of, remarks
from ddpm.images import grid, to_picture

PICTURES = 64
"""Samples in the page's grid, at most."""

MEANINGS = {
    "FID": "distance as Gaussians in feature space; lower is better",
    "KID": "distance by a cubic kernel, unbiased, +- its standard error; lower is better",
    "Inception Score": "sure of each image, and all classes; higher is better",
    "precision": "samples within the data",
    "recall": "data within the samples",
    "density": "the same as precision, robust; may pass 1",
    "coverage": "data with a sample beside them",
    "mean confidence": "of the extractor's classifier in the likeliest class",
    "class entropy, bits": "how evenly the classes are read",
}

STYLE = """
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; color: #202020; background: #fff;
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { margin: .4rem 0; } .quiet { color: #6e6e6e; } .warn { color: #a03a10; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child,
td.said { text-align: left; } thead th { border-bottom: 2px solid #202020; }
td:nth-child(2) { font-weight: 600; } .measures td:not(.said) { white-space: nowrap; }
td.said { color: #6e6e6e; font-size: .85rem; font-weight: 400; }
.facts td:nth-child(2) { font-weight: 400; text-align: left; overflow-wrap: anywhere; }
.facts td:first-child { color: #6e6e6e; white-space: nowrap; vertical-align: top; }
img { max-width: 100%; image-rendering: pixelated; border: 1px solid #e4e4e4; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
svg polyline { fill: none; stroke-width: 1.6; } svg .grid { stroke: #e4e4e4; }
svg text { font: 10px system-ui, sans-serif; fill: #6e6e6e; } svg .head { font-size: 12px; fill: #202020; }
svg .mid { text-anchor: middle; } svg .end { text-anchor: end; }
.bar { display: inline-block; height: .7rem; background: #1f5fa8; vertical-align: middle; }
.bar.real { background: #bbb; }
"""


class Samples(NamedTuple):
    """Samples that were measured."""

    images: np.ndarray
    """uint8 (N, H, W, C)."""
    found: Evaluation
    origin: Provenance
    force: bool
    """Whether an FID of few images is shown."""


class Bound(NamedTuple):
    """A likelihood that was measured."""

    found: Likelihood
    facts: Mapping[str, Any]


def page(
    *, title: str, model: str, samples: Samples | None, bound: Bound | None, run: Sequence[Mapping[str, Any]]
) -> str:
    """The page as HTML.

    Args:
        model: what was measured, in words.
        run: rows of the run's metrics.jsonl, if they are at hand.
    """
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="quiet">{escape(model)}</p>']
    if samples:
        parts += _samples(samples)
    if bound:
        parts += _bound(bound)
    if curves := _run(run):
        parts += ["<h2>Training</h2>", f'<div class="curves">{"".join(curves)}</div>']
        if any("preview/distance" in row for row in run):
            parts.append('<p class="quiet">Preview figures are of few samples in few steps: for comparison alone.</p>')
    if samples:
        parts += ["<h2>Where the numbers come from</h2>", _facts(asdict(samples.origin))]
    if bound:
        parts += ["<h2>Where the likelihood comes from</h2>", _facts(bound.facts)]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def rows_of_run(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run folder's metrics.jsonl; none if it is not there. A torn line is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _samples(part: Samples) -> list[str]:
    found, shown = part.found, part.images[:PICTURES]
    table = grid_of(found, force=part.force)
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *table.heads, ""))
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in (name, *values))
        + f'<td class="said">{escape(MEANINGS.get(name, ""))}</td></tr>'
        for name, values in table.rows
    )
    drift = "; ".join(f"channel {c}: mean {d.mean:+.2f}, std {d.std:+.2f}" for c, d in enumerate(found.drift))
    lines = [f"Colour drift in levels of 0..255: {drift}."]
    if copies := copies_words(found):
        lines.append(f"Near-copies of training images: {copies}.")
    lines += remarks(found, part.origin, force=part.force)
    return [
        "<h2>Samples</h2>",
        f'<p><img alt="samples" src="{_png(grid(shown))}"></p>',
        f'<p class="quiet">The first {len(shown)} of {len(part.images):,}, not selected.</p>',
        "<h2>Measures</h2>",
        f'<table class="measures"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>',
        *(f'<p class="quiet">{escape(line)}</p>' for line in lines),
        *_classes(found),
    ]


def _classes(found: Evaluation) -> list[str]:
    own, real = found.samples.comparison.classes.histogram, found.reference_classes.histogram
    if len(own) > SHOWN:
        return []
    shares = [(a / sum(own), b / sum(real)) for a, b in zip(own, real, strict=True)]
    widest = max(max(pair) for pair in shares)

    def bar(share: float, kind: str) -> str:
        return f'<span class="{kind}" style="width:{10 * share / widest:.2f}rem"></span> {share:.1%}'

    rows = "".join(
        f'<tr><td>{k}</td><td style="text-align:left">{bar(a, "bar")}</td>'
        f'<td style="text-align:left">{bar(b, "bar real")}</td></tr>'
        for k, (a, b) in enumerate(shares)
    )
    head = '<tr><th>class</th><th style="text-align:left">samples</th><th style="text-align:left">training images</th>'
    return ["<h2>Classes, as the extractor reads them</h2>", f"<table>{head}</tr>{rows}</table>"]


def _bound(part: Bound) -> list[str]:
    found = part.found
    sums = {"L_T": found.prior, "L_1 ... L_(T-1)": found.transitions, "L_0": found.decoder, "total": found.total}
    padded = found.padding != 1
    head = "<th></th><th>bits per dimension</th>" + ("<th>per dimension of the picture</th>" if padded else "")
    rows = "".join(
        f"<tr><td>{name}</td>"
        + "".join(f"<td>{mean.times(factor)}</td>" for factor in (1.0, found.padding)[: 1 + padded])
        + "</tr>"
        for name, mean in sums.items()
    )
    table = found.rows()
    width = [row["t_last"] - row["t"] + 1 for row in table]
    t, terms = [row["t"] for row in table], [row["bits_per_dimension"] / w for row, w in zip(table, width, strict=True)]
    curves = [
        plot("Likelihood by timestep", "t", "bits per dimension", [Curve("", t, terms)], log_x=True),
        plot("Distortion by timestep", "t", "RMSE (0..255)", [Curve("", t, [r["distortion_rmse"] for r in table])]),
    ]
    said = ["The total is an upper bound on -log2 p(x); +- is the standard error over the images."]
    if found.is_estimate:
        said.append(f"Estimated from {len(found.parts):,} of {found.parts[-1].stop - 1:,} timesteps: {SCALING}.")
    if found.told:
        said.append(f"Classes: {CONDITIONAL[found.told]}.")
    return [
        "<h2>Likelihood</h2>",
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>",
        *(f'<p class="quiet">{escape(line)}</p>' for line in said),
        f'<div class="curves">{"".join(curves)}</div>',
    ]


def _run(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def curve(key: str, name: str) -> Curve:
        found = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
        return Curve(name, [step for step, _ in found], [value for _, value in found])

    score = "preview/kid" if any("preview/kid" in row for row in rows) else "preview/distance"
    plots = [
        plot("Loss", "step", "loss", [curve("loss", "training"), curve("validation_loss", "held-out images, EMA")]),
        plot(f"Preview: {score.removeprefix('preview/')}", "step", score, [curve(score, "")], log_y=False),
        plot("Gradient norm", "step", "norm", [curve("grad_norm", "")]),
    ]
    return [each for each in plots if each]


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in _flat(facts))
    return f'<table class="facts">{rows}</table>'


def _flat(facts: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif value is not None:
            yield above + name, str(value)


def _png(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    to_picture(array).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
