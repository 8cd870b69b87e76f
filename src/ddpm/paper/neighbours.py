"""Figures 12 and 15: the nearest training images of each sample, and the share of samples that are near-copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.evaluate.neighbours import RARE, Nearest, near_copies, nearest
from ddpm.evaluate.nll import subset
from ddpm.images import to_arrays, unpacked
from ddpm.paper.chain import chain
from ddpm.paper.made import Made
from ddpm.paper.scores import ABSENT, scorer
from ddpm.paper.sheet import Cell, sheet
from ddpm.paper.subject import finish, open_subject
from ddpm.progress import progress_bar

SHOWN, NEIGHBOURS = 8, 7
UNSEEN = 2000
"""Unseen real images (at most) that say what distance is near."""
BATCH = 64


def make(
    source: Path,
    out: Path,
    *,
    samples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    data_root: str | None = None,
    device: torch.device | str | None = None,
) -> Made:
    """`ddpm paper neighbours CHECKPOINT`.

    Args:
        samples: images to sample (default 256, 64 where it is to be quick); the first few are shown.
        steps: sampling steps; None: all timesteps.
    """
    subject = open_subject(source, seed=seed, data_root=data_root, device=device)
    train, crop = subject.images("train"), subject.model.data.crop
    count = samples or (64 if quick else 256)
    walk = chain(subject, steps=steps, quick=quick, classes=subject.classes(count))
    drawn = []
    with progress_bar("sampling", -(-count // BATCH) * len(walk.steps), "step", show=True) as bar:
        for start in range(0, count, BATCH):
            for moment in walk.run(range(start, min(start + BATCH, count))):
                bar.update(moment.t > 0)
                last = moment.x
            drawn.append(to_arrays(last, crop))
    made, known = np.concatenate(drawn), unpacked(train.images, crop)
    in_pixels = nearest(made, known, NEIGHBOURS)
    numbers = subject.facts(**walk.facts(), samples=count, training_images=len(train), data_sha256=train.fingerprint)
    numbers["pixels"] = _numbers(in_pixels)
    split = subject.split()
    lines = [f"{count:,} samples against {len(train):,} training images, root-mean-square distance of pixels (0..255)"]
    lines.append(f"nearest training image of a sample: median {np.median(in_pixels.distances[:, 0]):.1f}")
    if split == "train":
        lines.append("near-copies: unknown, for there are no unseen images to compare with (set data.held_out)")
        numbers["near_copies"] = None
    else:
        images = subject.images(split)
        unseen = unpacked(images.images, crop)[subset(len(images), UNSEEN)]
        real = nearest(unseen, known).distances[:, 0]
        copies = near_copies(in_pixels.distances[:, 0], real)
        lines.append(f"nearest training image of a {split.replace('_', '-')} image: median {np.median(real):.1f}")
        lines.append(
            f"near-copies: {copies.share:.1%} of the samples, {RARE:.0%} of the unseen images by definition "
            f"(nearer than {copies.threshold:.1f})"
        )
        numbers["near_copies"] = {
            "share": copies.share,
            "threshold": copies.threshold,
            "share_of_unseen": RARE,
            "unseen_images": len(real),
            "unseen_split": split,
            "unseen_median": float(np.median(real)),
        }
    rows = _rows(made, known, in_pixels)
    labels = [f"sample {i}" for i in range(len(rows))]
    title = f"Nearest training images, by pixels ({subject.model.config.data.source})"
    extractor = scorer(subject)
    if extractor:
        in_features = nearest(extractor.features(made), extractor.features(known), NEIGHBOURS)
        numbers["features"] = {"extractor": extractor.extractor, **_numbers(in_features)}
        by_features = _rows(made, known, in_features)
        rows = [row for pair in zip(rows, by_features, strict=True) for row in pair]
        labels = [f"sample {i}\nby {kind}" for i in range(len(by_features)) for kind in ("pixels", "features")]
        title = title.replace("by pixels", f"by pixels and by {extractor.extractor}'s features")
    else:
        numbers["features"] = None
        lines.append(f"by features: {ABSENT}")
    page = sheet(
        rows,
        title=title,
        rows=labels,
        columns=["sample", *(f"nearest {n + 1}" for n in range(NEIGHBOURS))],
        note="\n".join([*lines[:4], f"{subject.words}; {walk.words}"]),
    )
    return finish(out, "neighbours", page, numbers, "\n".join(lines))


def _rows(made: np.ndarray, known: np.ndarray, found: Nearest) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for i in range(min(SHOWN, len(made))):
        near: list[Cell] = [
            (known[place], f"{distance:.1f}")
            for place, distance in zip(found.indices[i], found.distances[i], strict=True)
        ]
        rows.append([(made[i], ""), *near])
    return rows


def _numbers(found: Nearest) -> dict[str, Any]:
    return {
        "median_distance": float(np.median(found.distances[:, 0])),
        "distances": found.distances.round(4).tolist(),
        "training_images": found.indices.tolist(),
    }
