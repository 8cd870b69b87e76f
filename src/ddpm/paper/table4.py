"""Table 4: rate and distortion of progressive lossy coding along the reverse process (Section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddpm.errors import UsageError
from ddpm.evaluate.nll import CONDITIONAL, SCALING, Likelihood, mean_of, measure_model, subset
from ddpm.files import write_json, write_text
from ddpm.likelihood import isolate, rmse_of_levels, strata
from ddpm.paper.made import Made
from ddpm.paper.subject import Subject, open_subject

QUICK_IMAGES, QUICK_TIMESTEPS = 96, 40

PAPER = (
    (1.0, 1.77581, 0.95136),
    (0.9, 0.11994, 12.02277),
    (0.8, 0.05415, 18.47482),
    (0.7, 0.02866, 24.43656),
    (0.6, 0.01507, 30.80948),
    (0.5, 0.00716, 38.03236),
    (0.4, 0.00282, 46.12765),
    (0.3, 0.00081, 54.18826),
    (0.2, 0.00013, 60.97170),
    (0.1, 0.00000, 67.60125),
)
"""Table 4 itself (CIFAR-10, T = 1,000): reverse time as a share of T, rate in bits per dimension, RMSE (0..255)."""


@dataclass(frozen=True)
class Measured:
    """The bound on some images, with rate and distortion at every time that was visited."""

    subject: Subject
    split: str
    images: int
    data_sha256: str
    likelihood: Likelihood
    times: list[int]
    """The last of each part, ascending."""
    rate: list[float]
    """Bits that tell the receiver x_t at those times, per dimension of the picture."""
    rate_error: list[float]
    """Their standard errors."""
    own: list[int]
    """Places in `times` that were measured themselves, being a part of their own."""
    rmse: list[float]
    """Distortion at `own`: error of the estimate of x_0 at x_t, over the picture, on the scale 0..255."""

    @property
    def table(self) -> list[dict[str, float]]:
        """Table 4's rows: reverse time T - t + 1 from T down by tenths."""
        T = self.subject.T
        places = [(n, k) for n, k in enumerate(self.own) if self.times[k] in _tenths(T)]
        return [
            {
                "t": self.times[k],
                "reverse_time": T - self.times[k] + 1,
                "rate": self.rate[k],
                "rate_error": self.rate_error[k],
                "rmse": self.rmse[n],
            }
            for n, k in places
        ]

    def numbers(self) -> dict[str, Any]:
        """For the JSON."""
        return self.subject.facts(
            split=self.split,
            data_sha256=self.data_sha256,
            bound=self.likelihood.numbers(),
            rate_and_rmse_are_per=(
                "dimension of the picture: all bits and squared errors, the border's too, over the picture alone"
                if self.likelihood.padding != 1
                else "dimension"
            ),
            table=self.table,
            rate={"t": self.times, "rate": self.rate, "rate_error": self.rate_error},
            distortion={"t": [self.times[k] for k in self.own], "rmse": self.rmse},
            paper=[dict(zip(("reverse_time_share", "rate", "rmse"), row, strict=True)) for row in PAPER],
        )

    @property
    def words(self) -> str:
        """For small print."""
        estimate = self.likelihood.is_estimate
        count, T = len(self.likelihood.parts), self.subject.T
        visited = f"ESTIMATE from {count:,} of {T:,} timesteps" if estimate else "all timesteps"
        return f"{self.images:,} {self.split.replace('_', '-')} images, {visited}. {self.subject.words}"


def _tenths(T: int, parts: int = 10) -> set[int]:
    return {1 + round(T * n / parts) for n in range(parts) if round(T * n / parts) < T}


def measured(
    source: Path,
    *,
    images: int | None,
    timesteps: int | None,
    seed: int,
    quick: bool,
    data_root: str | None,
    device: torch.device | str | None,
) -> Measured:
    """Measure a checkpoint; the times of Table 4 are visited whatever `timesteps` is."""
    subject = open_subject(source, seed=seed, data_root=data_root, device=device)
    model, T = subject.model, subject.T
    if timesteps is None and quick:
        timesteps = min(QUICK_TIMESTEPS, T)
    try:
        parts = isolate(strata(T, timesteps), _tenths(T) | _tenths(T, 20))
    except ValueError as error:
        raise UsageError(f"--timesteps: {error}") from None
    split = subject.split()
    pictures = subject.images(split)
    index = subset(len(pictures), images or (QUICK_IMAGES if quick else None))
    result = measure_model(model, pictures, index, parts=parts, seed=seed)
    own = [k for k, part in enumerate(parts) if len(part) == 1]
    factor = result.padding
    rates = [mean_of(column).times(factor) for column in result.bound.rate.T]
    return Measured(
        subject,
        split,
        len(index),
        pictures.fingerprint,
        result,
        [part.stop - 1 for part in parts],
        [rate.value for rate in rates],
        [rate.error for rate in rates],
        own,
        rmse_of_levels(result.bound.x0_mse[:, own].mean(0) * factor).tolist(),
    )


def make(
    source: Path,
    out: Path,
    *,
    images: int | None = None,
    timesteps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    data_root: str | None = None,
    device: torch.device | str | None = None,
) -> Made:
    """`ddpm paper table4 CHECKPOINT`.

    Args:
        images: how many to take (default: all; few where it is to be quick).
        timesteps: how many to visit besides the table's own (default: all, which is exact).
    """
    done = measured(
        source, images=images, timesteps=timesteps, seed=seed, quick=quick, data_root=data_root, device=device
    )
    text, numbers = table_text(done), done.numbers()
    files = (out / "table4.md", out / "table4.json")
    write_text(files[0], f"# Rate and distortion along the reverse process\n\n```\n{text}\n```\n")
    write_json(files[1], numbers)
    return Made(files, numbers, text)


def table_text(done: Measured) -> str:
    """The table, with the paper's own beside it."""
    lines = [
        f"{'':>12}{'this model':^32}{'paper (CIFAR-10)':^22}",
        f"{'T - t + 1':>12}{'rate':>10}{'+-':>9}{'RMSE':>10}{'rate':>12}{'RMSE':>10}",
    ]
    for row, (_, rate, rmse) in zip(done.table, PAPER, strict=False):
        lines.append(
            f"{row['reverse_time']:12}{row['rate']:10.5f}{row['rate_error']:9.5f}{row['rmse']:10.3f}{rate:12.5f}{rmse:10.3f}"
        )
    total, decoder, whole = done.likelihood.rate, done.likelihood.decoder, done.likelihood.total
    factor = done.likelihood.padding
    per = "dimension of the picture" if factor != 1 else "dimension"
    lines += [
        f"Rate in bits per {per}, distortion as root-mean-square error on the scale 0..255.",
        f"rate {total.times(factor)} + distortion L_0 {decoder.times(factor)} = bound {whole.times(factor)}, in bits",
        done.words,
    ]
    if done.likelihood.is_estimate:
        lines.append(f"Estimated: {SCALING}.")
    if done.likelihood.told:
        lines.append(f"Classes: {CONDITIONAL[done.likelihood.told]}.")
    return "\n".join(lines)
