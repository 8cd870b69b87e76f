"""What every peer's module needs: settings read field by field, and weights with no name left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from ddpm.config import Config
from ddpm.errors import DDPMError
from ddpm.unet import UNet

REQUIRED: Any = object()
"""The default of a field that has none."""


class Field(NamedTuple):
    """One field of a peer's configuration."""

    default: Any
    """What the peer takes where the field is absent."""
    accepts: Callable[[Any], bool]
    """Whether our network can express a value."""
    words: str
    """The values that are accepted, for the message."""


def one_of(*values: Any, default: Any = REQUIRED) -> Field:
    """A field that may have these values alone."""
    return Field(default, lambda value: value in values, " or ".join(map(repr, values)))


def count(default: Any = REQUIRED) -> Field:
    """A positive whole number."""
    return Field(default, is_count, "a positive number")


def number(default: Any = REQUIRED, *, below: float = float("inf")) -> Field:
    """A number in [0, below)."""
    return Field(default, lambda v: isinstance(v, int | float) and 0 <= v < below, f"a number from 0, below {below}")


def counts(default: Any = REQUIRED) -> Field:
    """A list of positive whole numbers."""
    return Field(default, lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(map(is_count, v)), "a list")


def anything(default: Any = REQUIRED) -> Field:
    """A field without effect on the networks that are accepted."""
    return Field(default, lambda value: True, "anything")


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def read(config: Mapping[str, Any], fields: Mapping[str, Field], source: str) -> dict[str, Any]:
    """The value of every field, given or by default.

    Raises DDPMError naming each field that is unknown, missing or has a value that is not accepted.
    """
    values = {name: config.get(name, field.default) for name, field in fields.items()}
    refuse(
        source,
        [f"{name}: unknown field (found: {config[name]!r})" for name in config if name not in fields]
        + [f"{name}: is missing" for name, value in values.items() if value is REQUIRED]
        + [
            f"{name}: found {value!r}, supported: {fields[name].words}"
            for name, value in values.items()
            if value is not REQUIRED and not fields[name].accepts(value)
        ],
    )
    return values


def refuse(source: str, reasons: Iterable[str], *, target: str = "ddpm's network") -> None:
    """Raise DDPMError with all the reasons, if there are any."""
    if reasons := list(reasons):
        raise DDPMError("\n".join([f"{source}: not for {target}", *(f"  {reason}" for reason in reasons)]))


def heads_of(head: int | None, widths: Iterable[int], field: str) -> tuple[int, list[str]]:
    """How many heads of `head` channels each attention has (None: one, whatever its width).

    Args:
        head: channels of a head.
        widths: channels of the feature maps with attention.
        field: what the peer calls `head`, for the message.

    Returns:
        The number, and the reasons why ours, one number for all, cannot say it.
    """
    if head is None:
        return 1, []
    widths = sorted(set(widths))
    if any(width % head for width in widths):
        return 1, [f"{field}: {head} does not divide the widths with attention, {widths}"]
    heads = [width // head for width in widths]
    different = f"{field}: {head} gives {heads} heads to the widths with attention, {widths}; one number is supported"
    return heads[0], [different] if len(heads) > 1 else []


def accepted(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """`settings`, once UNet has taken them. Raises DDPMError if it does not."""
    try:
        shapes(settings)
    except ValueError as error:
        refuse(source, [str(error)])
    return settings


def unet_arguments(config: Config) -> dict[str, Any]:
    """The arguments of `UNet` that build the network of a configuration."""
    channels = config.data.channels
    return {
        "in_channels": channels,
        "out_channels": channels * (2 if config.diffusion.learns_variance else 1),
        "size": config.data.size,
        **config.network.model_dump(),
    }


def shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of UNet(**settings)."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in UNet(**settings).state_dict().items()}
