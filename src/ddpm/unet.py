"""The noise predictor: a U-Net with timestep embedding and self-attention.

One set of blocks gives the paper's form (Section 4 and Appendix B of arXiv 2006.11239: 35,746,307
parameters at 3 channels) and the lesson's (scale-shift norm and pooled resampling as in
arXiv 2102.09672: 35,204,480 at 1 channel).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def timestep_embedding(position: Tensor, channels: int, convention: Literal["paper", "improved"] = "paper") -> Tensor:
    """Sinusoidal embedding of times counted from 0: position = t - 1.

    Args:
        position: (B,), integer or fractional.
        channels: even number of features.
        convention: `paper` is [sin, cos] with the slowest frequency 1/10000; `improved` (Improved DDPM) is
            [cos, sin] with frequencies that stop one short of it.

    Returns:
        (B, channels), float32 (float64 for float64 positions).
    """
    half = channels // 2
    dtype = torch.float64 if position.dtype == torch.float64 else torch.float32
    span = half - 1 if convention == "paper" else half
    frequency = torch.exp(torch.arange(half, device=position.device, dtype=dtype) * (-math.log(10000) / span))
    angle = position.to(dtype)[:, None] * frequency
    parts = (angle.sin(), angle.cos()) if convention == "paper" else (angle.cos(), angle.sin())
    return torch.cat(parts, 1)


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Group normalisation, then SiLU: the pair that precedes every convolution."""
    return F.silu(norm(x))


class ResBlock(nn.Module):
    """Two 3x3 convolutions with the timestep between them, around a shortcut."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        time: Literal["add", "scale_shift"],
        dropout: float,
        norm_groups: int,
        norm_eps: float,
    ):
        super().__init__()
        self.scale_shift = time == "scale_shift"
        self.dropout = dropout
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(embedding, out_channels * (2 if self.scale_shift else 1))
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(norm_silu(self.norm1, x))
        time = self.time(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, 1)
            h = F.silu(self.norm2(h) * (1 + scale) + shift)
        else:
            h = norm_silu(self.norm2, h + time)
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        return self.shortcut(x) + h  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over all positions of a feature map, around a shortcut."""

    def __init__(self, channels: int, *, heads: int, norm_groups: int, norm_eps: float):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(norm_groups, channels, norm_eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(tokens).view(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        # On the CPU this is faster than the fused kernel, whose backward pass is slow (several times for narrow heads).
        weights = torch.softmax(q @ k.transpose(-1, -2) * (c // self.heads) ** -0.5, -1)
        mixed = (weights @ v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(mixed).transpose(1, 2).view(b, c, h, w)


class Block(nn.Module):
    """A residual block and, where the level has it, attention."""

    def __init__(self, res: ResBlock, attention: Attention | None):
        super().__init__()
        self.res = res
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.res(x, emb)
        return h if self.attention is None else self.attention(h)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, channels: int, padding: Literal["same", "symmetric"]):
        super().__init__()
        self.same = padding == "same"
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if self.same else 1)

    def forward(self, x: Tensor) -> Tensor:
        # TensorFlow's SAME padding of an even size: one pixel right and below.
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.same else x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Double height and width by repetition, then (with `channels`) a convolution."""

    def __init__(self, channels: int | None):
        super().__init__()
        self.conv = nn.Identity() if channels is None else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Down(nn.Module):
    """The blocks of one resolution on the way down; every result is kept for the way up."""

    def __init__(self, blocks: Sequence[Block], resample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, h: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            h = block(h, emb)
            skips.append(h)
        if self.resample is not None:
            h = self.resample(h)
            skips.append(h)
        return h


class Up(nn.Module):
    """The blocks of one resolution on the way up; each takes one of the kept results."""

    def __init__(self, blocks: Sequence[Block], resample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, h: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], 1), emb)
        return h if self.resample is None else self.resample(h)  # type: ignore[no-any-return]


class UNet(nn.Module):
    """(x_t, t) -> prediction of x_t's shape (or with other channels).

    Args:
        in_channels: channels of the images.
        out_channels: channels of the prediction.
        size: (height, width) of the images; with `attention` it decides which levels attend.

    The others are the settings of `config.NetworkSection`, by the same names. Raises ValueError if the
    levels cannot halve `size`.
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
        time: Literal["add", "scale_shift"] = "add",
        resample: Literal["strided", "pooled"] = "strided",
        padding: Literal["same", "symmetric"] = "same",
        embedding: Literal["paper", "improved"] = "paper",
        patch: int = 1,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        outer_bias: bool = True,
    ):
        super().__init__()
        self.channels, self.embedding, self.patch = channels, embedding, patch
        self.factor = patch * 2 ** (len(multipliers) - 1)
        """Heights and widths must be multiples of this."""
        self._check_size(*size)
        wide = 4 * channels

        def block(into: int, out: int, attends: bool) -> Block:
            res = ResBlock(into, out, wide, time=time, dropout=dropout, norm_groups=norm_groups, norm_eps=norm_eps)
            attend = Attention(out, heads=heads, norm_groups=norm_groups, norm_eps=norm_eps) if attends else None
            return Block(res, attend)

        self.time_mlp = nn.Sequential(nn.Linear(channels, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.conv_in = nn.Conv2d(in_channels * patch**2, channels, 3, padding=1, bias=outer_bias)

        widths = [channels * m for m in multipliers]
        sides = [min(size) // patch >> level for level in range(len(widths))]
        last = len(widths) - 1
        skips, width = [channels], channels
        down: list[Down] = []
        for level, out in enumerate(widths):
            level_blocks = []
            for _ in range(blocks):
                level_blocks.append(block(width, out, sides[level] in attention))
                width = out
                skips.append(width)
            step: nn.Module | None = None
            if level < last:
                step = Downsample(width, padding) if resample == "strided" else nn.AvgPool2d(2)
                skips.append(width)
            down.append(Down(level_blocks, step))
        self.down = nn.ModuleList(down)

        self.middle = nn.ModuleList([block(width, width, True), block(width, width, False)])

        up: list[Up] = []
        for level, out in reversed(list(enumerate(widths))):
            level_blocks = []
            for _ in range(blocks + 1):
                level_blocks.append(block(width + skips.pop(), out, sides[level] in attention))
                width = out
            step = Upsample(width if resample == "strided" else None) if level else None
            up.append(Up(level_blocks, step))
        self.up = nn.ModuleList(up)

        self.norm_out = nn.GroupNorm(norm_groups, width, norm_eps)
        self.conv_out = nn.Conv2d(width, out_channels * patch**2, 3, padding=1, bias=outer_bias)
        self._initialise()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict at time t.

        Args:
            x_t: (B, C, H, W).
            t: (B,), 1..T, integer or fractional.

        Returns:
            (B, out_channels, H, W).
        """
        self._check_size(*x_t.shape[-2:])
        # Published weights count time from 0, where 0 is one step of noise: the only shift of the clock.
        emb = timestep_embedding(t - 1, self.channels, self.embedding).to(self.conv_in.weight.dtype)
        emb = F.silu(self.time_mlp(emb))
        h = self.conv_in(F.pixel_unshuffle(x_t, self.patch) if self.patch > 1 else x_t)
        skips = [h]
        for level in self.down:
            h = level(h, emb, skips)
        for block in self.middle:
            h = block(h, emb)
        for level in self.up:
            h = level(h, emb, skips)
        out = self.conv_out(norm_silu(self.norm_out, h))
        return F.pixel_shuffle(out, self.patch) if self.patch > 1 else out

    def _check_size(self, height: int, width: int) -> None:
        if height % self.factor or width % self.factor:
            raise ValueError(f"images of {height}x{width} do not fit: both sides must be multiples of {self.factor}")

    def _initialise(self) -> None:
        """The authors' initialisation: uniform by fan_avg, and zero for the last layer of every branch.

        Each block then starts as the identity, and the first prediction is 0.
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
                nn.init.zeros_(module.out.weight)
        nn.init.zeros_(self.conv_out.weight)
