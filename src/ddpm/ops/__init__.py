"""Operations that a sequence of torch's own does slowly: their plain form, and a fused one beside it.

`plain` says what is computed, with torch's operations, on every device and in every precision. `fused` offers the same
functions on the CPU by kernels of our own (`native/`), compiled at first use where there is a compiler, and leaves to
`plain` what they do not cover. A network is told which to use (`UNet.use`); the tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from torch import Tensor, nn

Modulation = tuple[Tensor, Tensor]
"""Scale and shift, each (B, C)."""


class NormSilu(Protocol):
    def __call__(
        self, norm: nn.GroupNorm, x: Tensor, *, offset: Tensor | None = None, modulation: Modulation | None = None
    ) -> Tensor:
        """silu(norm(x + offset) (1 + scale) + shift); arguments as in `NormSiluConv`."""


class NormSiluConv(Protocol):
    def __call__(
        self,
        norm: nn.GroupNorm,
        conv: nn.Conv2d,
        x: Tensor,
        *,
        offset: Tensor | None = None,
        modulation: Modulation | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        """conv(silu(norm(x + offset) (1 + scale) + shift)) + added, for a 3x3 convolution that keeps the size.

        Args:
            x: (B, C, H, W).
            offset: (B, C), the same for every pixel.
            modulation: scale and shift.
            added: of the result's shape.
        """


class Conv3x3(Protocol):
    def __call__(self, conv: nn.Conv2d, x: Tensor, *, added: Tensor | None = None) -> Tensor:
        """conv(x) + added, for a 3x3 convolution that keeps the size; x: (B, C, H, W)."""


class Operations(NamedTuple):
    """The forms that a network computes with: `plain.PLAIN` or `fused.FUSED`."""

    name: Literal["plain", "fused"]
    norm_silu: NormSilu
    norm_silu_conv: NormSiluConv
    conv3x3: Conv3x3
    freeze: Callable[[nn.Module], None]
    """Prepare a network whose weights will not change any more, for sampling."""
