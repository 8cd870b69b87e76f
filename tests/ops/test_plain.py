"""The plain form of the operations is what its formula says."""

from __future__ import annotations

import torch
from torch import nn

from ddpm.ops.plain import norm_silu, norm_silu_conv
from tests.reference import close


def test_norm_silu_shifts_before_the_norm_and_scales_before_the_nonlinearity() -> None:
    norm = nn.GroupNorm(1, 2)
    x, scale, shift = torch.randn(1, 2, 4, 4), torch.tensor([[0.5, -1.0]]), torch.tensor([[0.25, 3.0]])
    standard = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
    close(norm_silu(norm, x).detach(), standard * torch.sigmoid(standard), 1e-6)
    modulated = standard * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    close(norm_silu(norm, x, modulation=(scale, shift)).detach(), modulated * torch.sigmoid(modulated), 1e-6)
    moved = x + torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    offset = torch.tensor([[2.0, -1.0]])
    close(norm_silu(norm, x, offset=offset).detach(), norm_silu(norm, moved).detach(), 1e-6)


def test_added_comes_last() -> None:
    norm, conv = nn.GroupNorm(1, 2), nn.Conv2d(2, 3, 3, padding=1)
    x, added = torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4)
    difference = norm_silu_conv(norm, conv, x, added=added) - norm_silu_conv(norm, conv, x)
    close(difference.detach(), added, 1e-6)
