"""Which form of the operations a network computes with."""

from __future__ import annotations

import os
from typing import Literal

import torch

from ddpm.errors import UsageError
from ddpm.ops import Operations
from ddpm.ops.native import Unavailable, library
from ddpm.ops.plain import PLAIN

Kernels = Literal["plain", "fused"]


def choose_kernels(name: Literal["auto"] | Kernels, device: torch.device) -> tuple[Operations, str]:
    """The operations for a device, and the choice in words.

    `auto` (which the environment variable DDPM_KERNELS may settle) takes the fused form on a CPU where it can be
    compiled and the plain one elsewhere. Raises UsageError where "fused" is asked for and cannot be had.
    """
    asked = name
    if name == "auto":
        named = os.environ.get("DDPM_KERNELS", "auto")
        if named not in ("auto", "plain", "fused"):
            raise UsageError(f"DDPM_KERNELS: found {named!r}, expected auto, plain or fused")
        asked = named  # type: ignore[assignment]
    if asked == "plain":
        return PLAIN, "plain kernels"
    try:
        if device.type != "cpu":
            raise Unavailable(f"they are for the CPU; this device is {device.type}")
        library()
    except Unavailable as reason:
        if asked == "fused":
            raise UsageError(f"fused kernels cannot be had: {reason}. Use training.kernels: plain") from None
        return PLAIN, "plain kernels" if device.type != "cpu" else f"plain kernels ({reason})"
    from ddpm.ops.fused import FUSED

    return FUSED, "fused kernels"
