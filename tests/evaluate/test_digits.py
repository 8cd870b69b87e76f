"""The verdict on digits: real scans pass, noise and copies are caught."""

from __future__ import annotations

import numpy as np
import pytest

from ddpm import data
from ddpm.config import DataSection
from ddpm.evaluate.digits import Verdict, judge


@pytest.fixture(scope="module")
def scans() -> data.ImageSet:
    return data.load(DataSection(source="digits", image_size=8, channels=1), progress=False)


def _judge(samples: np.ndarray, scans: data.ImageSet) -> Verdict:
    assert scans.labels is not None
    return judge(samples, scans.take(np.arange(len(scans))), scans.labels)


def test_scans_with_a_little_noise_are_read(scans: data.ImageSet) -> None:
    rng = np.random.default_rng(0)
    real = scans.take(np.arange(300)).transpose(0, 2, 3, 1).astype(int)
    verdict = _judge((real + rng.integers(-40, 41, real.shape)).clip(0, 255).astype(np.uint8), scans)
    assert verdict.sure > 0.8
    assert verdict.classes == 10
    assert verdict.accuracy > 0.97
    assert verdict.sure_of_noise < 0.01
    assert "10 of the 10 digits appear" in str(verdict)


def test_copies_are_caught(scans: data.ImageSet) -> None:
    verdict = _judge(scans.take(np.arange(200)).transpose(0, 2, 3, 1), scans)
    assert verdict.copies == 1
    assert verdict.copies_of_scans < 0.03


@pytest.mark.parametrize("kind", ["noise", "one digit", "shuffled"])
def test_bad_samples_are_not_praised(scans: data.ImageSet, kind: str) -> None:
    rng = np.random.default_rng(1)
    real = scans.take(np.arange(200)).transpose(0, 2, 3, 1)
    samples = {
        "noise": rng.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8),
        "one digit": np.repeat(real[:1], 200, 0),
        "shuffled": rng.permuted(real.reshape(200, -1), axis=1).reshape(real.shape),
    }[kind]
    verdict = _judge(samples, scans)
    if kind == "one digit":
        assert verdict.classes == 1
        assert verdict.copies == 1
    else:
        assert verdict.sure < 0.02
