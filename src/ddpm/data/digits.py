"""scikit-learn's 1,797 scans of handwritten digits: 8x8, 17 levels, no download, no cache."""

from __future__ import annotations

import numpy as np

from ddpm.data.arrays import array_contents
from ddpm.data.records import Contents, Source


def digits_source() -> Source:
    """The scans, their levels 0..16 spread over 0..255."""
    return Source("digits", None, _read)


def _read() -> Contents:
    from sklearn.datasets import load_digits

    scans = load_digits()
    levels = np.round(scans.images * 255 / 16).astype(np.uint8)
    return array_contents(levels, scans.target, tuple("0123456789"), where="scikit-learn's digits")
