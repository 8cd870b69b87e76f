"""scikit-learn's 1,797 scans of handwritten digits: 8x8, 17 levels, no download."""

from __future__ import annotations

import numpy as np

from ddpm.data.records import Item, Source


def digits_source() -> Source:
    """The scans, their 0..16 spread over 0..255."""
    import sklearn
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()
    levels = np.round(scans.images * 255 / 16).astype(np.uint8)
    items = [
        Item(f"scan {i}", lambda image=image: Image.fromarray(image), int(label))  # type: ignore[misc]
        for i, (image, label) in enumerate(zip(levels, scans.target, strict=True))
    ]
    return Source(items, [(f"scikit-learn {sklearn.__version__}", len(items), 0)], tuple("0123456789"))
