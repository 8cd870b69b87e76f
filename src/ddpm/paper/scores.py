"""Inception Score and FID for the tables and figures that report them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddpm.evaluate.distances import fid, inception_score
from ddpm.evaluate.extractor import load_extractor
from ddpm.evaluate.nll import load_split
from ddpm.evaluate.reference import read_images, read_reference
from ddpm.generate import Model
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


ABSENT = "there is no feature extractor for these data: Inception Score and FID were not measured"


def scorer(subject: Subject) -> Scorer | None:
    """The extractor for a model's images; None where there is none: the digit extractor reads MNIST alone."""
    return scorer_of(subject.model, subject.data_root)


def scorer_of(model: Model, root: str | None = None) -> Scorer | None:
    """`scorer` of a model whose data lie in `root`, if not where they lay in training."""
    if model.config.data.source != "mnist":
        return None
    extractor = load_extractor(device=model.device)

    @functools.cache
    def reference() -> np.ndarray:
        images = load_split(model, "train", root=root, progress=False)
        return read_reference(images, "mnist", "train", extractor, progress=True).features.vectors

    def score(images: np.ndarray) -> Scores:
        read = read_images(images, extractor)
        return Scores(fid(read.vectors, reference()), inception_score(read.probabilities))

    name = f"the digit extractor {extractor.sha256[:8]}"
    return Scorer(name, score, lambda images: read_images(images, extractor).vectors)
