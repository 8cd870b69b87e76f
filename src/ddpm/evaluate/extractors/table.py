"""From an extractor's name to the extractor."""

from __future__ import annotations

import torch

from ddpm.errors import UsageError
from ddpm.evaluate.extractors.digits import digits
from ddpm.evaluate.extractors.extractor import Extractor


def by_name(name: str, device: torch.device | str = "cpu") -> Extractor:
    """The extractor called `name`: digits.

    Raises UsageError for another name.
    """
    if name != "digits":
        raise UsageError(f"extractor {name!r}: expected digits")
    return digits(device)
