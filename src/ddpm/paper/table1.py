"""Table 1: Inception Score, FID and likelihood of a model, with the paper's own rows beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ddpm.data import Split
from ddpm.errors import UsageError
from ddpm.evaluate.evaluation import FEWEST
from ddpm.evaluate.nll import CONDITIONAL, SCALING, Likelihood, measure_model, subset
from ddpm.files import write_json, write_text
from ddpm.images import to_arrays
from ddpm.likelihood import strata
from ddpm.paper.chain import chain
from ddpm.paper.made import Made
from ddpm.paper.scores import ABSENT, Scores, scorer
from ddpm.paper.subject import Subject, open_subject
from ddpm.progress import progress_bar, say

QUICK_IMAGES, QUICK_TIMESTEPS, QUICK_SAMPLES = 96, 40, 256
BATCH = 64

PAPER = (
    ("Diffusion (original)", "", "", "<= 5.40"),
    ("Ours (L, fixed isotropic Sigma)", "7.67 +- 0.13", "13.51", "<= 3.70 (3.69)"),
    ("Ours (L_simple)", "9.46 +- 0.11", "3.17", "<= 3.75 (3.72)"),
)
"""The paper's rows (CIFAR-10, unconditional): model, IS, FID, NLL test (train)."""


def make(
    source: Path,
    out: Path,
    *,
    images: int | None = None,
    timesteps: int | None = None,
    samples: int = 50_000,
    steps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    data_root: str | None = None,
    device: torch.device | str | None = None,
) -> Made:
    """`ddpm paper table1 CHECKPOINT`.

    Args:
        images: of each split, for the likelihood (default: all; few where it is to be quick).
        timesteps: to estimate the likelihood from (default: all, which is exact).
        samples: images to sample for the scores.
        steps: sampling steps; None: all timesteps.
    """
    subject = open_subject(source, seed=seed, data_root=data_root, device=device)
    if quick:
        images, samples = images or QUICK_IMAGES, min(samples, QUICK_SAMPLES)
        timesteps = timesteps or min(QUICK_TIMESTEPS, subject.T)
    unseen = subject.split()
    splits: tuple[Split, ...] = ("train",) if unseen == "train" else (unseen, "train")
    bounds = {split: _likelihood(subject, split, images, timesteps) for split in splits}
    scores, extractor = _scores(subject, samples, steps, quick)
    numbers = subject.facts(
        nll={split: bound.numbers() for split, bound in bounds.items()},
        extractor=extractor,
        inception_score=scores and scores.inception_score,
        fid=scores and scores.fid,
        samples=samples if scores else None,
        paper=[dict(zip(("model", "inception_score", "fid", "nll_test_train"), row, strict=True)) for row in PAPER],
    )
    few = ": an FID of fewer than 2,048 images is biased upwards" if samples < FEWEST else ""
    text = _text(subject, bounds, scores, extractor and f"{extractor}; {samples:,} samples{few}")
    files = (out / "table1.md", out / "table1.json")
    write_text(files[0], f"# Table 1\n\n```\n{text}\n```\n")
    write_json(files[1], numbers)
    return Made(files, numbers, text)


def _likelihood(subject: Subject, split: Split, images: int | None, timesteps: int | None) -> Likelihood:
    pictures = subject.images(split)
    try:
        parts = strata(subject.T, timesteps)
    except ValueError as error:
        raise UsageError(f"--timesteps: {error}") from None
    say(f"likelihood of {split.replace('_', '-')} images")
    return measure_model(subject.model, pictures, subset(len(pictures), images), parts=parts, seed=subject.seed)


def _scores(subject: Subject, samples: int, steps: int | None, quick: bool) -> tuple[Scores | None, str | None]:
    extractor = scorer(subject)
    if extractor is None:
        return None, None
    walk, drawn = chain(subject, steps=steps, quick=quick, classes=subject.classes(samples)), []
    with progress_bar("sampling", -(-samples // BATCH) * len(walk.steps), "step", show=True) as bar:
        for start in range(0, samples, BATCH):
            for moment in walk.run(range(start, min(start + BATCH, samples))):
                bar.update(moment.t > 0)
                last = moment.x
            drawn.append(to_arrays(last, subject.model.data.crop))
    return extractor.score(np.concatenate(drawn)), extractor.extractor


def _text(subject: Subject, bounds: dict[Split, Likelihood], scores: Scores | None, extractor: str | None) -> str:
    first = next(iter(bounds.values()))
    factor = first.padding
    test, train = next(iter(bounds)), bounds["train"].total.times(factor)
    mean = bounds[test].total.times(factor)
    sign = "about" if first.is_estimate else "<="
    likelihood = f"{sign} {mean.value:.2f} ({train.value:.2f})" if test != "train" else f"({sign} {train.value:.2f})"
    mine = (
        f"{subject.path.parent.name or subject.path.name}, step {subject.model.step:,}",
        f"{scores.inception_score:.2f}" if scores else "-",
        f"{scores.fid:.2f}" if scores else "-",
        likelihood,
    )
    rows = [("", "IS", "FID", "NLL test (train)"), mine, ("the paper, CIFAR-10:", "", "", ""), *PAPER]
    wide = max(len(row[0]) for row in rows) + 2
    lines = [f"{row[0]:{wide}}{row[1]:>14}{row[2]:>8}{row[3]:>20}" for row in rows]
    per = "dimension of the picture (all bits, the border's too)" if factor != 1 else "dimension"
    name = test.replace("_", "-")
    lines.append(f"NLL in bits per {per}, on {len(first.bound.bits):,} {name} images: {mean}; training images: {train}")
    if first.is_estimate:
        T, visited = subject.T, len(first.parts)
        lines.append(f"NLL is an ESTIMATE from {visited:,} of {T:,} timesteps: {SCALING}.")
    if first.told:
        lines.append(f"Classes: {CONDITIONAL[first.told]}.")
    lines.append(f"Scores by {extractor}." if extractor else f"{ABSENT[0].upper()}{ABSENT[1:]}.")
    lines.append(subject.words)
    return "\n".join(lines)
