"""Table 2: what is predicted, what is minimised and what the variance is, each row trained and compared.

The paper trained its rows for 800,000 steps on CIFAR-10; here the budget is the caller's, and the same for all.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ddpm import data
from ddpm.config import Config, load_config, parse_config, plain
from ddpm.errors import DivergedError
from ddpm.evaluate.digits import judge
from ddpm.evaluate.drawing import draw_samples
from ddpm.evaluate.nll import Likelihood, evaluated_split, load_split, measure_model, subset
from ddpm.files import write_json, write_text
from ddpm.generate import Model, load, sampling_settings
from ddpm.images import grid, save_png
from ddpm.likelihood import strata
from ddpm.paper.made import Made
from ddpm.paper.scores import scorer_of
from ddpm.paper.sheet import Cell, sheet
from ddpm.paper.subject import finish
from ddpm.progress import say

PAPER = "arXiv 2006.11239, Table 2: CIFAR-10, 800,000 steps; - : unstable to train, with scores out of range"
PICTURES = 8
"""Samples of each row in the picture."""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    prediction: Literal["mu", "epsilon"]
    loss: Literal["bound", "simple"]
    learned: bool
    """Whether the variance is learned (the raw log-variance, a diagonal Sigma) or fixed."""
    inception_score: str
    """The paper's."""
    fid: str
    """The paper's, to the training set."""

    @property
    def name(self) -> str:
        return f"{self.prediction}-{self.loss}" + ("-learned" if self.learned else "-fixed" if self.bounded else "")

    @property
    def bounded(self) -> bool:
        return self.loss == "bound"

    @property
    def objective(self) -> str:
        """As the paper writes it."""
        error = {"mu": "||mu~ - mu||^2", "epsilon": "||eps - eps_theta||^2 (L_simple)"}[self.prediction]
        return ("L, learned diagonal Sigma" if self.learned else "L, fixed isotropic Sigma") if self.bounded else error


ROWS = (
    Row("mu", "bound", True, "7.28 +- 0.10", "23.69"),
    Row("mu", "bound", False, "8.06 +- 0.09", "13.22"),
    Row("mu", "simple", False, "-", "-"),
    Row("epsilon", "bound", True, "-", "-"),
    Row("epsilon", "bound", False, "7.67 +- 0.13", "13.51"),
    Row("epsilon", "simple", False, "9.46 +- 0.11", "3.17"),
)


class Trained(Protocol):
    """What `Train` returns: `ddpm.run.Finished`."""

    @property
    def checkpoint(self) -> Path: ...


class Train(Protocol):
    """`ddpm.run.train`, which lies on a floor above."""

    def __call__(self, config: Config, out: Path, *, device: torch.device | None) -> Trained: ...


@dataclass(frozen=True)
class Outcome:
    """What became of a row."""

    row: Row
    steps: int
    """Training steps done, the last one included."""
    diverged: bool
    last_good_step: int | None
    """Of the last checkpoint."""
    final_loss: float | None
    """Last logged value of the loss that was minimised."""
    roughness: float | None
    """Largest logged loss of the second half over its median: how far it jumped where it did not diverge."""
    likelihood: Likelihood | None
    samples: np.ndarray | None
    """uint8 (N, H, W, C)."""
    quality: dict[str, float]

    def numbers(self) -> dict[str, Any]:
        row = self.row
        return {
            "name": row.name,
            "prediction": row.prediction,
            "loss": row.loss,
            "variance": "learned" if row.learned else "fixed",
            "stable": not self.diverged,
            "steps": self.steps,
            "last_good_step": self.last_good_step,
            "final_loss": self.final_loss,
            "roughness": self.roughness,
            "likelihood": self.likelihood.numbers() if self.likelihood else None,
            "quality": self.quality,
            "paper": {"inception_score": row.inception_score, "fid": row.fid},
        }


def make(
    source: Path,
    out: Path,
    *,
    train: Train,
    overrides: Sequence[str] = (),
    steps: int | None = None,
    images: int | None = None,
    samples: int | None = None,
    seed: int | None = None,
    quick: bool = False,
    device: torch.device | None = None,
) -> Made:
    """`ddpm paper table2 CONFIG`: train each row into `out`/<row>; the same command again goes on.

    Args:
        train: trains a configuration into a folder (`ddpm.run.train`).
        steps: training steps of each row (default: the configuration's; 200 at most with `quick`).
        images: held-out images that the bound is measured on (default 256, or 64).
        samples: images drawn of each row, in all T steps (default 64, or 8).
        seed: of training, sampling and the bound's noise (default: the configuration's; of the bound, 0).
        quick: a look at all rows in minutes.
    """
    base = load_config(source, overrides)
    if steps is None and quick:
        steps = min(200, base.training.steps or 200)
    configs = [row_config(base, row, f"{source}, row {row.name}", steps=steps, seed=seed) for row in ROWS]
    images, samples = images or (64 if quick else 256), samples or (8 if quick else 64)
    visited = min(base.diffusion.timesteps, 25 if quick else 100)
    outcomes = []
    for number, (row, config) in enumerate(zip(ROWS, configs, strict=True), 1):
        say(f"\nrow {number} of {len(ROWS)}: {row.prediction}, {row.objective}")
        outcomes.append(_run(row, config, out / row.name, train, device, images, samples, visited, seed or 0))
    return _report(source, out, configs[0], outcomes, images, visited, samples, seed or 0)


def row_config(base: Config, row: Row, source: str, *, steps: int | None = None, seed: int | None = None) -> Config:
    """The configuration of a row: `base` but for what the table varies.

    A fixed variance is the base's own, or beta where that is learned. Every row samples with the ancestral sampler in
    all T steps, since a learned log-variance knows no longer ones. Without test images of its own, a source keeps
    a tenth of its training images aside.

    Raises ConfigError, beginning with `source`, where the base's other settings do not suit the row.
    """
    values = plain(base)
    d, t = values["diffusion"], values["training"]
    fixed = "fixed_large" if base.diffusion.learns_variance else base.diffusion.variance
    d |= {"prediction": row.prediction, "variance": "learned" if row.learned else fixed}
    t |= {"loss": row.loss, "vlb_weight": None, "weighting": "none", "min_snr_gamma": None}
    if steps is not None:
        t |= {"steps": steps, "epochs": None, "save_every": min(t["save_every"], max(1, steps // 4))}
        t["preview_every"] = t["preview_every"] or steps
    values["sampling"] = {key: values["sampling"][key] for key in ("batch_size", "seed")}
    if seed is not None:
        t["seed"] = values["sampling"]["seed"] = seed
    if base.data.source in ("digits", "folder") and not base.data.held_out:
        values["data"]["held_out"] = 0.1
    return parse_config(values, source=source)


def _run(
    row: Row,
    config: Config,
    folder: Path,
    train: Train,
    device: torch.device | None,
    images: int,
    samples: int,
    visited: int,
    seed: int,
) -> Outcome:
    try:
        done = train(config, folder, device=device)
    except DivergedError as error:
        say(str(error))
        good = int(error.saved.stem.rpartition("-")[2]) if error.saved else None
        return Outcome(row, error.step, True, good, *_losses(folder), None, None, {})
    model = load(done.checkpoint, precision="float32", device=device)  # rounding would count as bits
    likelihood = _bound(model, images, visited, seed)
    labels = load_split(model, "train", progress=False).labels
    drawn = draw_samples(model, samples, sampling_settings(model), labels)
    return Outcome(row, model.step, False, model.step, *_losses(folder), likelihood, drawn, _quality(model, drawn))


def _bound(model: Model, images: int, visited: int, seed: int) -> Likelihood:
    held_out = load_split(model, evaluated_split(model), progress=False)
    return measure_model(
        model,
        held_out,
        subset(len(held_out), images),
        parts=strata(model.diffusion.schedule.T, visited),
        seed=seed,
        batch_size=model.config.sampling.batch_size,
    )


def _quality(model: Model, samples: np.ndarray) -> dict[str, float]:
    """How good samples are, where something here can tell: an extractor, or the classifier of 8x8 digits."""
    section = model.config.data
    if extractor := scorer_of(model):
        scores = extractor.score(samples)
        return {"fid": scores.fid, "inception_score": scores.inception_score, "samples": len(samples)}
    if section.source != "digits" or section.size != (8, 8) or len(samples) < 10:
        return {}
    scans = data.load(section, "train", progress=False)
    assert scans.labels is not None
    verdict = judge(samples, scans.take(np.arange(len(scans))), scans.labels)
    return {"surely_digits": verdict.sure, "of_scans": verdict.sure_of_scans, "digits_seen": verdict.classes}


def _losses(folder: Path) -> tuple[float | None, float | None]:
    """The last logged loss, and the roughness of the second half."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    losses = [row["loss"] for row in rows if "loss" in row]
    if not losses:
        return None, None
    half = losses[len(losses) // 2 :]
    return losses[-1], max(half) / statistics.median(half) if statistics.median(half) > 0 else None


def _report(
    source: Path,
    out: Path,
    config: Config,
    outcomes: Sequence[Outcome],
    images: int,
    visited: int,
    samples: int,
    seed: int,
) -> Made:
    T = config.diffusion.timesteps
    text = table(outcomes)
    how = "exact" if visited == T else f"estimated from {visited} of {T:,} timesteps"
    notes = [
        f"bound: on {images} held-out images, {how}, with its standard error; EMA weights, estimates of x0 clipped",
        "rough: largest logged loss of the second half over its median",
        f"paper: {PAPER}",
        f"FID and IS of {samples} samples: for comparison among these rows alone",
    ]
    text = "\n".join([text, "", *notes])
    write_text(out / "table2.txt", text + "\n")
    numbers: dict[str, Any] = {
        "config": str(source),
        "data": config.data.source,
        "training_steps": config.training.steps,
        "seed": seed,
        "training_seed": config.training.seed,
        "images": images,
        "timesteps_visited": visited,
        "samples": samples,
        "rows": [outcome.numbers() for outcome in outcomes],
        "paper": PAPER,
    }
    drawn = [outcome for outcome in outcomes if outcome.samples is not None]
    if not drawn:  # nothing to see
        write_json(out / "table2.json", numbers)
        return Made((out / "table2.txt", out / "table2.json"), numbers, text)
    for outcome in drawn:
        assert outcome.samples is not None
        save_png(out / outcome.row.name / "samples.png", grid(outcome.samples))
    made = finish(out, "table2", _picture(source, config, outcomes, seed), numbers, text)
    return Made((out / "table2.txt", *made.files), numbers, text)


def _picture(source: Path, config: Config, outcomes: Sequence[Outcome], seed: int) -> np.ndarray:
    columns = min(PICTURES, max(len(o.samples) for o in outcomes if o.samples is not None))
    cells: list[list[Cell]] = [
        [(array, "") for array in o.samples[:columns]] if o.samples is not None else [None] * columns for o in outcomes
    ]
    labels = []
    for o in outcomes:
        bound = f"{o.likelihood.total.value:.3f} bits/dim" if o.likelihood else f"diverged at step {o.steps:,}"
        labels.append(f"{o.row.prediction}\n{o.row.objective}\n{bound}")
    T, training = config.diffusion.timesteps, config.training
    length = f"{training.steps:,} steps" if training.steps else f"{training.epochs} epochs"
    note = (
        f"{source}; data: {config.data.source}; {length} a row, EMA weights, all {T:,} sampling steps; seed {seed}. "
        f"The paper's figures: {PAPER}"
    )
    return sheet(cells, title="Table 2: prediction, objective and variance", rows=labels, note=note)


_QUALITY = (("surely_digits", "{:.0%}"), ("fid", "{:.2f}"), ("inception_score", "{:.2f}"))


def table(outcomes: Sequence[Outcome]) -> str:
    """The rows with the paper's figures beside, for a terminal."""
    columns = ("predicts", "objective", "stable", "loss", "rough", "bound, bits/dim")
    head = (*columns, "digits", "FID", "IS", "paper: IS", "paper: FID")
    lines: list[tuple[str, ...]] = [head]
    for o in outcomes:
        good = "no good step" if o.last_good_step is None else f"last good {o.last_good_step:,}"
        lines.append(
            (
                o.row.prediction,
                o.row.objective,
                "yes" if not o.diverged else f"no: diverged at {o.steps:,}, {good}",
                "-" if o.final_loss is None else f"{o.final_loss:.4g}",
                "-" if o.roughness is None else f"{o.roughness:.2f}",
                "-" if o.likelihood is None else str(o.likelihood.total),
                *(form.format(o.quality[key]) if key in o.quality else "-" for key, form in _QUALITY),
                o.row.inception_score,
                o.row.fid,
            )
        )
    # A column that nothing was measured for is left out.
    keep = [n for n in range(len(head)) if n < 6 or n > 8 or any(line[n] != "-" for line in lines[1:])]
    widths = {n: max(len(line[n]) for line in lines) for n in keep}
    return "\n".join("  ".join(f"{line[n]:{widths[n]}}" for n in keep).rstrip() for line in lines)
