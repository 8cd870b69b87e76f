"""An evaluation as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ddpm.evaluate.evaluation import FEWEST, Evaluation, Measured
from ddpm.evaluate.neighbours import RARE
from ddpm.evaluate.provenance import Provenance

_WIDTH = 22
SHOWN = 20
"""Classes, at most, whose shares fit a line."""


class Grid(NamedTuple):
    """The numbers of samples beside those of real images."""

    heads: list[str]
    """Of the columns: samples, unseen images if there are any, half of the training images."""
    rows: list[tuple[str, list[str]]]
    """Name of the measure, and its value in each column."""


def grid_of(found: Evaluation, *, force: bool) -> Grid:
    """The table, for a terminal or a page."""
    floors = [found.floors.unseen, found.floors.halves]
    columns = [found.samples, *(floor for floor in floors if floor is not None)]
    heads = ["samples", *(["unseen images"] if found.floors.unseen else []), "train, half to half"]

    def fid(one: Measured) -> str:
        if one.few and not force:
            return "-"
        return f"{one.comparison.fid:.3f}" + (" (*)" if one.few else "")

    rows: list[tuple[str, Callable[[Measured], str]]] = [
        ("images", lambda one: f"{one.count:,}"),
        ("against", lambda one: f"{one.reference_count:,}"),
        ("FID", fid),
        ("KID", lambda one: f"{one.comparison.kid.value:.4g} +- {one.comparison.kid.error:.2g}"),
        ("Inception Score", lambda one: f"{one.comparison.inception_score:.3f}"),
        ("precision", lambda one: f"{one.comparison.overlap.precision:.3f}"),
        ("recall", lambda one: f"{one.comparison.overlap.recall:.3f}"),
        ("density", lambda one: f"{one.comparison.overlap.density:.3f}"),
        ("coverage", lambda one: f"{one.comparison.overlap.coverage:.3f}"),
        ("mean confidence", lambda one: f"{one.comparison.classes.confidence:.4f}"),
        ("class entropy, bits", lambda one: f"{one.comparison.classes.entropy:.3f}"),
    ]
    return Grid(heads, [(name, [value(one) for one in columns]) for name, value in rows])


def remarks(found: Evaluation, origin: Provenance, *, force: bool) -> list[str]:
    """What has to be said beside the table."""
    lines = []
    if any(one.few for one in (found.samples, found.floors.halves, found.floors.unseen or found.samples)):
        few = f"an FID of fewer than {FEWEST:,} images is biased upwards"
        lines.append(f"(*) {few}: no absolute number" if force else f"- {few}: left out (--force gives it, marked)")
    extractor = f"{origin.extractor} ({origin.extractor_sha256[:12]}), {origin.transform}"
    if origin.extractor_mark:
        lines.append(f"{origin.extractor_mark.upper()}: its numbers could not be checked against published ones.")
    reference = f"{origin.data} {origin.reference_split}, {origin.reference_size:,} images"
    lines.append(f"Features of the extractor {extractor}; reference: {reference} ({origin.reference_sha256[:12]}).")
    return lines


def copies_words(found: Evaluation) -> str | None:
    """The near-copies; None where nothing could be said of them."""
    if found.copies is None:
        return None
    return f"{found.copies.share:.1%} of the samples; {RARE:.0%} of the unseen images are as near"


def summary(found: Evaluation, origin: Provenance, *, force: bool) -> str:
    """The numbers of samples beside those of real images, and what they were measured by."""
    table = grid_of(found, force=force)
    lines = [f"{'':20}" + "".join(f"{head:>{_WIDTH}}" for head in table.heads)]
    lines += [f"{name:20}" + "".join(f"{value:>{_WIDTH}}" for value in values) for name, values in table.rows]
    own, real = found.samples.comparison.classes, found.reference_classes
    if len(own.histogram) <= SHOWN:
        lines.append(f"classes, %     {_shares(own.histogram)}")
        lines.append(f"  training     {_shares(real.histogram)}")
    for channel, one in enumerate(found.drift):
        lines.append(f"drift          channel {channel}: mean {one.mean:+.2f}, std {one.std:+.2f} levels of 0..255")
    if copies := copies_words(found):
        lines.append(f"near-copies    {copies}")
    return "\n".join([*lines, *remarks(found, origin, force=force)])


def _shares(histogram: Sequence[int]) -> str:
    total = sum(histogram)
    return "  ".join(f"{name}: {100 * count / total:.1f}" for name, count in enumerate(histogram))
