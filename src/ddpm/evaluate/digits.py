"""A verdict on 8x8 digit samples: does a classifier read them, are all ten there, are they copies?

The set of 1,797 scans is far too small for a Frechet distance, so the samples are judged by a support
vector machine trained on the same scans. Held-out scans and pure noise are judged beside them, so that
the verdict means something.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SURE = 0.9
"""Probability from which the classifier counts as sure."""
NO_DIGIT = 10
"""The classifier's eleventh class."""


@dataclass(frozen=True)
class Verdict:
    """Shares are in 0..1."""

    samples: int
    sure: float
    """Share of samples of whose digit the classifier is sure."""
    confidence: float
    """Mean probability of the likeliest digit."""
    counts: tuple[int, ...]
    """Samples surely read as 0, 1, ..., 9."""
    copies: float
    """Share of near-copies: nearer to a training scan than all but 1 % of the held-out scans are."""
    accuracy: float
    """The classifier's, on held-out scans."""
    sure_of_scans: float
    """Share of held-out scans it is sure of: what perfect samples would reach."""
    confidence_of_scans: float
    sure_of_noise: float
    """Share of pure noise it is sure of: what worthless samples would reach."""
    confidence_of_noise: float
    copies_of_scans: float
    """Share of near-copies among the held-out scans, 0.01 by the definition of a near-copy."""

    @property
    def classes(self) -> int:
        """How many of the ten digits appear."""
        return sum(count > 0 for count in self.counts)

    def __str__(self) -> str:
        counts = ", ".join(f"{n} x {digit}" for digit, n in enumerate(self.counts))
        rows: list[tuple[str, str, tuple[float, ...]]] = [
            ("surely a digit", "{:.1%}", (self.sure, self.sure_of_scans, self.sure_of_noise)),
            ("mean confidence", "{:.3f}", (self.confidence, self.confidence_of_scans, self.confidence_of_noise)),
            ("near-copies", "{:.1%}", (self.copies, self.copies_of_scans)),
        ]
        table = [f"{'':18}{'samples':>9}{'held-out scans':>16}{'pure noise':>12}"]
        for name, form, values in rows:
            cells = (f"{form.format(value):>{width}}" for value, width in zip(values, (9, 16, 12), strict=False))
            table.append(f"{name:18}{''.join(cells)}")
        return "\n".join(
            [
                *table,
                f"{self.classes} of the 10 digits appear: {counts}",
                f"The classifier names {self.accuracy:.1%} of the held-out scans rightly; sure means p >= {SURE}.",
            ]
        )


def judge(samples: np.ndarray, images: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Verdict:
    """Judge digit samples against the scans they were learned from.

    Args:
        samples: uint8 (N, H, W, 1).
        images: uint8 (M, 1, H, W), the scans; a quarter of them is kept from the classifier.
        labels: (M,) digits 0..9.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import train_test_split
    from sklearn.svm import SVC

    scans = images.reshape(len(images), -1) / 255.0
    drawn = samples.reshape(len(samples), -1) / 255.0
    known, unknown, y_known, y_unknown = train_test_split(
        scans, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    generator = np.random.default_rng(seed)
    rubbish = _rubbish(known, y_known, generator)
    classifier = CalibratedClassifierCV(SVC(gamma=0.1, C=10), ensemble=False, cv=5)
    classifier.fit(np.concatenate([known, rubbish]), np.concatenate([y_known, np.full(len(rubbish), NO_DIGIT)]))
    noise = generator.random((1000, scans.shape[1]))
    p_drawn, p_unknown, p_noise = (classifier.predict_proba(x)[:, :NO_DIGIT] for x in (drawn, unknown, noise))
    read, sure = p_drawn.argmax(1), p_drawn.max(1) >= SURE
    threshold = np.quantile(_nearest(unknown, known), 0.01)
    return Verdict(
        samples=len(samples),
        sure=float(sure.mean()),
        confidence=float(p_drawn.max(1).mean()),
        counts=tuple(np.bincount(read[sure], minlength=10).tolist()),
        copies=float((_nearest(drawn, scans) < threshold).mean()),
        accuracy=float((p_unknown.argmax(1) == y_unknown).mean()),
        sure_of_scans=float((p_unknown.max(1) >= SURE).mean()),
        confidence_of_scans=float(p_unknown.max(1).mean()),
        sure_of_noise=float((p_noise.max(1) >= SURE).mean()),
        confidence_of_noise=float(p_noise.max(1).mean()),
        copies_of_scans=float((_nearest(unknown, known) < threshold).mean()),
    )


def _rubbish(scans: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What is no digit: noise, scans with their pixels shuffled, two different digits on top of one another.

    A classifier that knows only digits is as sure of noise as of a digit.
    """
    other = generator.permutation(len(scans))
    blends = (scans + scans[other])[labels != labels[other]] / 2
    return np.concatenate([generator.random(scans.shape), generator.permuted(scans, axis=1), blends])


def _nearest(points: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Distance of each point to the nearest of `among`."""
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=1).fit(among).kneighbors(points)
    return np.asarray(distances[:, 0])
