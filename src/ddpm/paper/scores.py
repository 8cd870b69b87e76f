"""Inception Score and FID for the tables and figures that report them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddpm.paper.subject import Subject


class Scores(NamedTuple):
    """How good a set of images is, by an extractor's features."""

    fid: float
    inception_score: float


class Scorer(NamedTuple):
    """An extractor, named."""

    extractor: str
    score: Callable[[np.ndarray], Scores]
    """uint8 (N, H, W, C) -> scores against the subject's training images."""
    features: Callable[[np.ndarray], np.ndarray]
    """uint8 (N, H, W, C) -> (N, D)."""


ABSENT = "no feature extractor is part of this version: Inception Score and FID were not measured"


def scorer(subject: Subject) -> Scorer | None:
    """The extractor for a model's images; None where there is none."""
    return None
