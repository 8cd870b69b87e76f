"""Arguments that several commands take."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command's `add` adds its parser to."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """CHECKPOINT or --pretrained NAME; `model_path` says which file that is."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT")
    model.add_argument("--pretrained", metavar="NAME", help="or a model that comes with ddpm (ddpm pretrained list)")


def model_path(options: argparse.Namespace) -> Path:
    """The file of the model that was asked for."""
    if options.pretrained is None:
        return options.checkpoint  # type: ignore[no-any-return]
    from ddpm.shipped import path_of

    return path_of(options.pretrained)


def add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="change a setting, e.g. training.steps=500 (repeatable)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 or mps (default: DDPM_DEVICE, else auto)")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="what the network computes in (default: the fastest that the device is good at)",
    )


def natural(text: str) -> int:
    """Type of an argument that is a whole number, 0 or more."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    if len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text[:20]}: too large")
    return int(text)


def positive(text: str) -> int:
    """Type of an argument that is a whole number, 1 or more."""
    if not natural(text):
        raise argparse.ArgumentTypeError("expected 1 or more")
    return int(text)


def number(text: str) -> float:
    """Type of an argument that is a finite number, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, 0 or more")
    return value


def above_zero(text: str) -> float:
    """Type of an argument that is a finite number above 0."""
    if not (value := number(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def interval(text: str) -> tuple[float, float]:
    """Type of an argument LO,HI: two numbers."""
    low, comma, high = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r}: expected LO,HI, for example 0.2,0.8")
    return number(low), number(high)


def shown(value: Any) -> str:
    """A setting or fact as a table prints it."""
    return "-" if value is None else str(value)


def duration(seconds: float) -> str:
    """Seconds in the largest unit that reads well: "1.5 hours"."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(1, round(seconds))} s"
