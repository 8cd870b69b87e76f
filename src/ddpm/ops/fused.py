"""The same operations as `plain`, on the CPU by our own kernels.

GroupNorm and SiLU are one operation that reads each byte once a pass, in float32 or bfloat16. A 3x3 convolution in
float32 is Winograd's F(4x4, 3x3), with a quarter of the multiplications: faster than any direct form where the
processor has no matrix unit. What feeds a convolution is computed again in the backward pass instead of being kept, so
that half of the activations need no memory. What a kernel does not cover goes to `plain`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ddpm.ops import Modulation, Operations, plain
from ddpm.ops.native import library

FEWEST_TILES = 48
"""Tiles of 4x4 pixels in a batch from which Winograd's form pays for transforming its weights."""


def norm_silu_conv(
    norm: nn.GroupNorm,
    conv: nn.Conv2d,
    x: Tensor,
    *,
    offset: Tensor | None = None,
    modulation: Modulation | None = None,
    added: Tensor | None = None,
) -> Tensor:
    lanes = library().ddpm_lanes()
    if x.device.type != "cpu" or x.dtype not in _KERNELS or x.shape[1] % lanes:
        return plain.norm_silu_conv(norm, conv, x, offset=offset, modulation=modulation, added=added)
    # norm, scale and shift together are one multiplication and one addition a channel.
    batch = x.shape[0]
    scale, shift = norm.weight.expand(batch, -1), norm.bias.expand(batch, -1)
    if modulation is not None:
        gain = 1 + modulation[0].float()
        scale, shift = scale * gain, shift * gain + modulation[1].float()
    offset = None if offset is None else offset.float()
    weight, bias, packed = conv.weight, conv.bias, _kept(conv)
    if x.dtype != torch.float32:
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    with torch.autocast("cpu", enabled=False):
        return _NormSiluConv.apply(  # type: ignore[no-untyped-call, no-any-return]
            x, offset, scale, shift, weight, bias, added, norm.num_groups, norm.eps, packed
        )


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


def _norm_silu(
    x: Tensor, offset: Tensor | None, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
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
    return y, mean, rstd


class _NormSiluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        offset: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        added: Tensor | None,
        groups: int,
        eps: float,
        packed: Tensor | None,
    ) -> Tensor:
        x, scale, shift = _last(x), scale.contiguous(), shift.contiguous()
        offset = None if offset is None else offset.contiguous()
        y, mean, rstd = _norm_silu(x, offset, scale, shift, groups, eps)
        ctx.save_for_backward(x, offset, scale, shift, weight, mean, rstd)
        ctx.groups, ctx.eps, ctx.has_bias = groups, eps, bias is not None
        return _forward(y, weight, bias, added, packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, offset, scale, shift, weight, mean, rstd = ctx.saved_tensors
        dout = _last(dout)
        y, _, _ = _norm_silu(x, offset, scale, shift, ctx.groups, ctx.eps)
        dy, dw, db = _backward(y, weight, ctx.has_bias, dout, (True, ctx.needs_input_grad[4]))
        del y
        assert dy is not None
        dy = _last(dy)
        (b, c, h, w), dx = x.shape, torch.empty_like(x)
        dscale, dshift = torch.empty(b, c), torch.empty(b, c)
        doffset = None if offset is None else torch.empty(b, c)
        getattr(library(), f"ddpm_norm_silu_backward_{_KERNELS[x.dtype]}")(
            x.data_ptr(),
            dy.data_ptr(),
            _pointer(offset),
            scale.data_ptr(),
            shift.data_ptr(),
            mean.data_ptr(),
            rstd.data_ptr(),
            dx.data_ptr(),
            _pointer(doffset),
            dscale.data_ptr(),
            dshift.data_ptr(),
            *(b, h * w, c, ctx.groups),
        )
        dadded = dout if ctx.needs_input_grad[6] else None
        return dx, doffset, dscale, dshift, dw, db, dadded, None, None, None


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


FUSED = Operations("fused", norm_silu_conv, conv3x3, freeze)
