"""The same operations as `plain`, on the CPU by our own kernels.

GroupNorm and SiLU are one operation that reads each byte once a pass, in float32 or bfloat16. A 3x3 convolution in
float32 is Winograd's F(4x4, 3x3), with a quarter of the multiplications: faster than any direct form where the
processor has no matrix unit. What feeds a convolution is computed again in the backward pass instead of being kept, so
that half of the activations need no memory. What a kernel does not cover goes to `plain`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ddpm.ops import Modulation, Operations, plain
from ddpm.ops.native import library

FEWEST_TILES = 48
"""Tiles of 4x4 pixels in a batch from which Winograd's form pays for transforming its weights."""


def norm_silu(
    norm: nn.GroupNorm, x: Tensor, *, offset: Tensor | None = None, modulation: Modulation | None = None
) -> Tensor:
    if not _covered(x):
        return plain.norm_silu(norm, x, offset=offset, modulation=modulation)
    return _NormSilu.apply(x, *_affine(norm, x, offset, modulation), norm.num_groups, norm.eps)  # type: ignore[no-untyped-call, no-any-return]


def norm_silu_conv(
    norm: nn.GroupNorm,
    conv: nn.Conv2d,
    x: Tensor,
    *,
    offset: Tensor | None = None,
    modulation: Modulation | None = None,
    added: Tensor | None = None,
) -> Tensor:
    if not _covered(x):
        return plain.norm_silu_conv(norm, conv, x, offset=offset, modulation=modulation, added=added)
    weight, bias = conv.weight, conv.bias
    if x.dtype != torch.float32:
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    affine = _affine(norm, x, offset, modulation)
    with torch.autocast("cpu", enabled=False):
        return _NormSiluConv.apply(  # type: ignore[no-untyped-call, no-any-return]
            x, *affine, norm.num_groups, norm.eps, weight, bias, added, _kept(conv)
        )


def _covered(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in _KERNELS and x.shape[1] % library().ddpm_lanes() == 0


Affine = tuple[Tensor | None, Tensor, Tensor]


def _affine(norm: nn.GroupNorm, x: Tensor, offset: Tensor | None, modulation: Modulation | None) -> Affine:
    """Offset, scale and shift of each image's channels, (B, C) float32: the norm's own and the modulation in one."""
    scale, shift = norm.weight.expand(len(x), -1), norm.bias.expand(len(x), -1)
    if modulation is not None:
        gain = 1 + modulation[0].float()
        scale, shift = scale * gain, shift * gain + modulation[1].float()
    return None if offset is None else offset.float(), scale, shift


def conv3x3(conv: nn.Conv2d, x: Tensor, *, added: Tensor | None = None) -> Tensor:
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or not _winograd(x, conv.weight):
        return plain.conv3x3(conv, x, added=added)
    return _Conv3x3.apply(x, conv.weight, conv.bias, added, _kept(conv))  # type: ignore[no-untyped-call, no-any-return]


def freeze(network: nn.Module) -> None:
    # The transformed weights are kept: four times the weights' memory, for a tenth of the time.
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and (conv.kernel_size, conv.stride) == ((3, 3), (1, 1)) and _suits(conv.weight):
            conv.packed = (conv.weight._version, _pack(conv.weight))  # type: ignore[assignment]


def _kept(conv: nn.Conv2d) -> Tensor | None:
    packed = getattr(conv, "packed", None)
    return packed[1] if packed is not None and packed[0] == conv.weight._version else None


_KERNELS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def _suits(weight: Tensor) -> bool:
    lanes = library().ddpm_lanes()
    return weight.dtype == torch.float32 and weight.shape[0] % lanes == 0 and weight.shape[1] % lanes == 0


def _winograd(x: Tensor, weight: Tensor) -> bool:
    tiles = x.shape[0] * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    return x.device.type == "cpu" and x.dtype == torch.float32 and tiles >= FEWEST_TILES and _suits(weight)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _pack(weight: Tensor, *, turned: bool = False) -> Tensor:
    """A weight (O, I, 3, 3) in Winograd's form; `turned` as its gradient needs it: flipped, O and I exchanged."""
    out, into = weight.shape[:2]
    so, si, sr, ss = weight.stride()
    first = weight.data_ptr()
    if turned:
        out, into, so, si = into, out, si, so
        first += weight.element_size() * (2 * sr + 2 * ss)
        sr, ss = -sr, -ss
    panel = 2 * library().ddpm_lanes()
    packed = torch.empty(-(-out // panel) * 36 * into * panel)
    library().ddpm_conv3x3_weights(first, so, si, sr, ss, into, out, packed.data_ptr())
    return packed


def _convolve(x: Tensor, packed: Tensor, bias: Tensor | None, added: Tensor | None, out: int) -> Tensor:
    b, into, h, w = x.shape
    y = torch.empty((b, out, h, w), memory_format=torch.channels_last)
    added = None if added is None else _last(added)
    if library().ddpm_conv3x3(
        x.data_ptr(), packed.data_ptr(), _pointer(bias), _pointer(added), y.data_ptr(), b, h, w, into, out
    ):
        raise MemoryError("a convolution's working memory")
    return y


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None, packed: Tensor | None) -> Tensor:
    if _winograd(x, weight):
        return _convolve(x, _pack(weight) if packed is None else packed, bias, added, weight.shape[0])
    y = F.conv2d(x, weight, bias, padding=1)
    return y if added is None else y + added


def _backward(
    x: Tensor, weight: Tensor, has_bias: bool, dy: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the input, the weight and the bias; `wanted`: of the input, of the others."""
    if not _winograd(x, weight):
        mask = [wanted[0], wanted[1], wanted[1] and has_bias]
        sizes = [weight.shape[0]] if has_bias else None
        return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
            dy, x, weight, sizes, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
        )
    dx = _convolve(dy, _pack(weight, turned=True), None, None, weight.shape[1]) if wanted[0] else None
    dw = db = None
    if wanted[1]:
        dw, db = torch.empty_like(weight), torch.empty(weight.shape[0])
        b, into, h, w = x.shape
        if library().ddpm_conv3x3_weight_gradient(
            x.data_ptr(), dy.data_ptr(), dw.data_ptr(), *dw.stride(), db.data_ptr(), b, h, w, into, len(db)
        ):
            raise MemoryError("a convolution's working memory")
    return dx, dw, db if has_bias else None


class _Normed(NamedTuple):
    """What the backward pass of norm and SiLU needs."""

    x: Tensor
    offset: Tensor | None
    scale: Tensor
    shift: Tensor
    mean: Tensor
    rstd: Tensor


def _norm_silu(
    x: Tensor, offset: Tensor | None, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> tuple[Tensor, _Normed]:
    x, scale, shift = _last(x), scale.contiguous(), shift.contiguous()
    offset = None if offset is None else offset.contiguous()
    b, c, h, w = x.shape
    y, mean, rstd = torch.empty_like(x), torch.empty(b, groups), torch.empty(b, groups)
    getattr(library(), f"ddpm_norm_silu_{_KERNELS[x.dtype]}")(
        x.data_ptr(),
        _pointer(offset),
        scale.data_ptr(),
        shift.data_ptr(),
        y.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        *(b, h * w, c, groups),
        eps,
    )
    return y, _Normed(x, offset, scale, shift, mean, rstd)


def _norm_silu_backward(normed: _Normed, dy: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of x, offset, scale and shift."""
    x, (b, c, h, w) = normed.x, normed.x.shape
    dy, dx = _last(dy), torch.empty_like(x)
    dscale, dshift = torch.empty(b, c), torch.empty(b, c)
    doffset = None if normed.offset is None else torch.empty(b, c)
    getattr(library(), f"ddpm_norm_silu_backward_{_KERNELS[x.dtype]}")(
        x.data_ptr(),
        dy.data_ptr(),
        _pointer(normed.offset),
        normed.scale.data_ptr(),
        normed.shift.data_ptr(),
        normed.mean.data_ptr(),
        normed.rstd.data_ptr(),
        dx.data_ptr(),
        _pointer(doffset),
        dscale.data_ptr(),
        dshift.data_ptr(),
        *(b, h * w, c, normed.mean.shape[1]),
    )
    return dx, doffset, dscale, dshift


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, offset: Tensor | None, scale: Tensor, shift: Tensor, groups: int, eps: float
    ) -> Tensor:
        y, normed = _norm_silu(x, offset, scale, shift, groups, eps)
        ctx.save_for_backward(*normed)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_norm_silu_backward(_Normed(*ctx.saved_tensors), dy), None, None


class _NormSiluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        offset: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        groups: int,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
        added: Tensor | None,
        packed: Tensor | None,
    ) -> Tensor:
        y, normed = _norm_silu(x, offset, scale, shift, groups, eps)
        ctx.save_for_backward(*normed, weight)
        ctx.groups, ctx.eps, ctx.has_bias = groups, eps, bias is not None
        return _forward(y, weight, bias, added, packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        *saved, weight = ctx.saved_tensors
        normed, dout = _Normed(*saved), _last(dout)
        y, _ = _norm_silu(*normed[:4], ctx.groups, ctx.eps)
        dy, dw, db = _backward(y, weight, ctx.has_bias, dout, (True, ctx.needs_input_grad[6]))
        del y
        assert dy is not None
        dadded = dout if ctx.needs_input_grad[8] else None
        return *_norm_silu_backward(normed, dy), None, None, dw, db, dadded, None


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None, packed: Tensor | None
    ) -> Tensor:
        x = _last(x)
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _forward(x, weight, bias, added, packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dout = _last(dout)
        dx, dw, db = _backward(x, weight, ctx.has_bias, dout, ctx.needs_input_grad[:2])
        return dx, dw, db, dout if ctx.needs_input_grad[3] else None, None


FUSED = Operations("fused", norm_silu, norm_silu_conv, conv3x3, freeze)
