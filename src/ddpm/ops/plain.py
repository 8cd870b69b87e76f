"""The plain form of each operation: what the fused one is tested against. `ops.Operations` says what they compute."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.ops import Modulation, Operations


def norm_silu(
    norm: nn.GroupNorm, x: Tensor, *, offset: Tensor | None = None, modulation: Modulation | None = None
) -> Tensor:
    h = norm(x if offset is None else x + offset[:, :, None, None])
    if modulation is not None:
        scale, shift = modulation
        h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(h)


def norm_silu_conv(
    norm: nn.GroupNorm,
    conv: nn.Conv2d,
    x: Tensor,
    *,
    offset: Tensor | None = None,
    modulation: Modulation | None = None,
    added: Tensor | None = None,
) -> Tensor:
    return conv3x3(conv, norm_silu(norm, x, offset=offset, modulation=modulation), added=added)


def conv3x3(conv: nn.Conv2d, x: Tensor, *, added: Tensor | None = None) -> Tensor:
    h: Tensor = conv(x)
    return h if added is None else h + added


def freeze(network: nn.Module) -> None:
    pass


PLAIN = Operations("plain", norm_silu, norm_silu_conv, conv3x3, freeze)
