"""The noise predictor: a U-Net with timestep embedding and self-attention.

One set of blocks gives two forms, selected by settings:

- the paper's (Section 4 and Appendix B of arXiv 2006.11239; 35,746,307 parameters for CIFAR-10), the defaults;
- the lesson's (35,204,480 parameters for MNIST): the timestep as scale and shift of the norm (arXiv 2102.09672),
  residual blocks between pooling and repetition instead of convolutions (BigGAN's, as in arXiv 2105.05233).

Shapes: B images, C channels, H x W pixels, E features of the timestep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.conditioning import NO_CLASS
from ddpm.ops import Operations
from ddpm.ops.plain import PLAIN

Time = Literal["add", "scale_shift"]
Resample = Literal["strided", "pooled"]
Padding = Literal["same", "symmetric"]
Convention = Literal["paper", "improved"]
Norm = Callable[[int], nn.GroupNorm]
"""Makes the normalisation of so many channels."""


def timestep_embedding(position: Tensor, channels: int, convention: Convention = "paper") -> Tensor:
    """Sines and cosines of times counted from 0, that is of t - 1.

    Args:
        position: (B,), integer or fractional.
        channels: even, at least 4.
        convention: `paper` is [sin, cos] with the slowest frequency 1/10000; `improved` (arXiv 2102.09672) is
            [cos, sin] with frequencies that stop one short of it.

    Returns:
        (B, channels), float32 (float64 for float64 positions).
    """
    if channels < 4 or channels % 2:
        raise ValueError(f"channels {channels}: the timestep embedding needs an even number, at least 4")
    _one_of("embedding", convention, Convention)
    half = channels // 2
    span = half - 1 if convention == "paper" else half
    dtype = torch.float64 if position.dtype == torch.float64 else torch.float32
    frequency = torch.exp(torch.arange(half, dtype=dtype, device=position.device) * -(math.log(10000) / span))
    angle = position.to(dtype)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()] if convention == "paper" else [angle.cos(), angle.sin()], 1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the timestep enters before or in the second norm."""

    def __init__(self, into: int, out: int, features: int, *, time: Time, dropout: float, norm: Norm):
        super().__init__()
        self.scale_shift, self.dropout = time == "scale_shift", dropout
        self.norm1 = norm(into)
        self.conv1 = nn.Conv2d(into, out, 3, padding=1)
        self.time = nn.Linear(features, 2 * out if self.scale_shift else out)
        self.norm2 = norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(into, out, 1) if into != out else nn.Identity()
        self.operations: Operations = PLAIN

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, into, H, W), (B, E) -> (B, out, H, W)."""
        h = self.operations.norm_silu_conv(self.norm1, self.conv1, x)
        time, shortcut = self.time(emb), self.shortcut(x)
        scale_shift, offset = (time.chunk(2, 1), None) if self.scale_shift else (None, time)
        if not (self.dropout and self.training):
            return self.operations.norm_silu_conv(
                self.norm2, self.conv2, h, offset=offset, modulation=scale_shift, added=shortcut
            )
        h = self.operations.norm_silu(self.norm2, h, offset=offset, modulation=scale_shift)
        return self.operations.conv3x3(self.conv2, F.dropout(h, self.dropout), added=shortcut)


class Attention(nn.Module):
    """Self-attention over all positions of a feature map, around a shortcut."""

    def __init__(self, channels: int, *, heads: int, norm: Norm):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split into {heads} heads")
        self.heads = heads
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C): no copy where channels are last in memory
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, HW, C/heads)
        # Softmax by hand is no faster on the CPU: forward and backward of 8 maps of 16x16 in torch 2.13, by hand and
        # fused: 1 head of 256 16.6 and 18.2 ms, 2 of 128 18.9 and 18.1 ms, 4 of 64 23.4 and 20.0 ms.
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, channels: int, padding: Padding):
        super().__init__()
        self.same = padding == "same"
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if self.same else 1)

    def forward(self, x: Tensor) -> Tensor:
        # TensorFlow's SAME: an even size is padded by one pixel, right and below.
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.same else x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Double height and width by repetition and, in the paper's form, a convolution."""

    def __init__(self, channels: int, resample: Resample):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if resample == "strided" else None
        self.operations: Operations = PLAIN

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.operations.conv3x3(self.conv, x)


class Block(nn.Module):
    """A residual block and, at the sizes that have it, attention."""

    def __init__(self, res: ResBlock, attention: Attention | None):
        super().__init__()
        self.res = res
        self.attention = attention if attention is not None else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.res(x, emb))  # type: ignore[no-any-return]


class Down(nn.Module):
    """One resolution on the way down. Returns every result, as each is kept for the way up; the last goes on."""

    def __init__(self, blocks: Sequence[Block], resample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, h: Tensor, emb: Tensor) -> list[Tensor]:
        results = []
        for block in self.blocks:
            h = block(h, emb)
            results.append(h)
        return results if self.resample is None else [*results, self.resample(h)]


class Up(nn.Module):
    """One resolution on the way up. Each block takes the last of the kept results off their list."""

    def __init__(self, blocks: Sequence[Block], resample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample if resample is not None else nn.Identity()

    def forward(self, h: Tensor, emb: Tensor, kept: list[Tensor]) -> Tensor:
        for block in self.blocks:
            h = block(torch.cat([h, kept.pop()], 1), emb)
        return self.resample(h)  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Predicts, from x_t and t, the noise or what else it is trained for. The first prediction is 0.

    Args:
        in_channels: channels of the images.
        out_channels: channels of the prediction.
        size: (height, width) of the images, which decides at which levels the sizes in `attention` occur. The network
            itself runs on images of other sizes too, if both sides are multiples of `factor`.

    The others are the settings of `ddpm.config.NetworkSection` and explained there. Raises ValueError for values
    that do not fit together.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        heads: int = 1,
        dropout: float = 0.0,
        time: Time = "add",
        resample: Resample = "strided",
        padding: Padding = "same",
        embedding: Convention = "paper",
        patch: int = 1,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        outer_bias: bool = True,
        time_scale: float = 1.0,
        classes: int | None = None,
    ):
        super().__init__()
        if min(in_channels, out_channels, channels, *multipliers, blocks, heads, patch, classes or 1) < 1:
            raise ValueError("channels, multipliers, blocks, heads, patch and classes are at least 1")
        _one_of("time", time, Time)
        _one_of("resample", resample, Resample)
        _one_of("padding", padding, Padding)
        _one_of("embedding", embedding, Convention)
        self.channels, self.embedding, self.patch, self.time_scale = channels, embedding, patch, time_scale
        self.factor = patch * 2 ** (len(multipliers) - 1)
        """Heights and widths must be multiples of this."""
        self._check_size(*size)
        levels = range(len(multipliers))
        widths = [channels * m for m in multipliers]
        sides = [min(size) // patch >> level for level in levels]
        if absent := set(attention) - set(sides):
            raise ValueError(f"attention at {sorted(absent)}: the feature maps' shorter sides are {sides}")
        features = 4 * channels
        norm = partial(nn.GroupNorm, norm_groups, eps=norm_eps)

        def block(into: int, out: int, attends: bool) -> Block:
            res = ResBlock(into, out, features, time=time, dropout=dropout, norm=norm)
            return Block(res, Attention(out, heads=heads, norm=norm) if attends else None)

        def stack(level: int, intos: Sequence[int]) -> list[Block]:
            return [block(into, widths[level], sides[level] in attention) for into in intos]

        self.time_mlp = nn.Sequential(nn.Linear(channels, features), nn.SiLU(), nn.Linear(features, features))
        self.class_embedding = None if classes is None else nn.Embedding(1 + classes, features)  # row 0: no class
        self.conv_in = nn.Conv2d(in_channels * patch**2, channels, 3, padding=1, bias=outer_bias)

        width, kept = channels, [channels]  # of the current map; of those kept for the way up
        self.down = nn.ModuleList()
        for level in levels:
            stacked = stack(level, [width] + [widths[level]] * (blocks - 1))
            width = widths[level]
            kept += [width] * blocks
            halve: nn.Module | None = None
            if level < levels[-1]:
                halve = Downsample(width, padding) if resample == "strided" else nn.AvgPool2d(2)
                kept.append(width)
            self.down.append(Down(stacked, halve))

        self.middle = nn.ModuleList([block(width, width, True), block(width, width, False)])

        self.up = nn.ModuleList()
        for level in reversed(levels):
            stacked = stack(level, [w + kept.pop() for w in [width] + [widths[level]] * blocks])
            width = widths[level]
            self.up.append(Up(stacked, Upsample(width, resample) if level else None))

        self.norm_out = norm(width)
        self.conv_out = nn.Conv2d(width, out_channels * patch**2, 3, padding=1, bias=outer_bias)
        self.operations: Operations = PLAIN
        self._initialise()

    def use(self, operations: Operations) -> UNet:
        """Compute with these forms of the operations (PLAIN, where a network starts, or FUSED)."""
        for module in self.modules():
            if hasattr(module, "operations"):
                module.operations = operations  # type: ignore[assignment]
        return self

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict at time t.

        Args:
            x_t: (B, in_channels, H, W).
            t: (B,), on the paper's clock 1..T, integer or fractional.
            labels: (B,) int64, 0..classes-1 or NO_CLASS; None: NO_CLASS for all. Only for a network with classes.

        Returns:
            (B, out_channels, H, W).
        """
        self._check_size(*x_t.shape[2:])
        if t.shape != x_t.shape[:1]:
            raise ValueError(f"t has the shape {tuple(t.shape)}: one time for each of {x_t.shape[0]} images is needed")
        # Published weights count time from 0, where 0 is one step of noise: the only shift of the clock.
        position = t - 1 if self.time_scale == 1 else (t - 1) * self.time_scale
        embedded = timestep_embedding(position, self.channels, self.embedding)
        emb = self.time_mlp(embedded.to(x_t.dtype))
        if self.class_embedding is not None:
            labels = torch.full(t.shape, NO_CLASS, device=t.device) if labels is None else labels
            emb = emb + self.class_embedding(labels - NO_CLASS)
        elif labels is not None:
            raise ValueError("labels have no effect on a network without classes")
        emb = F.silu(emb)
        kept = [self.conv_in(F.pixel_unshuffle(x_t, self.patch) if self.patch > 1 else x_t)]
        for level in self.down:
            kept += level(kept[-1], emb)
        h = kept[-1]
        for block in self.middle:
            h = block(h, emb)
        for level in self.up:
            h = level(h, emb, kept)
        out = self.operations.norm_silu_conv(self.norm_out, self.conv_out, h)
        return F.pixel_shuffle(out, self.patch) if self.patch > 1 else out

    def _check_size(self, height: int, width: int) -> None:
        if height % self.factor or width % self.factor:
            raise ValueError(f"images of {height}x{width} do not fit: both sides must be multiples of {self.factor}")

    @torch.no_grad()
    def _initialise(self) -> None:
        """As the authors: uniform by fan_avg, biases 0, and the last layer of every branch 0.

        Every block starts as its shortcut, and the network as 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, Attention):
                for weight in module.qkv.weight.chunk(3):  # three layers in one
                    nn.init.xavier_uniform_(weight)
                nn.init.zeros_(module.out.weight)
        nn.init.zeros_(self.conv_out.weight)


def _one_of(name: str, value: str, kind: Any) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{name}: {value!r} is none of {', '.join(get_args(kind))}")
