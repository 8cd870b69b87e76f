"""The standard Inception-v3 of FID (arXiv 1512.00567): TensorFlow's network of 2015, as its converted weights name it.

Its numbers carry the word "unverified": nobody has yet compared them with published ones in this version.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.data.download import fetch
from ddpm.device import choose_device
from ddpm.errors import CheckpointError
from ddpm.evaluate.extractor import Extractor
from ddpm.files import cache_folder
from ddpm.generate import file_sha256

SIDE = 299
BATCH = 32
TRANSFORM = f"RGB, resized to {SIDE}x{SIDE} bilinearly as TensorFlow 1 does (no half-pixel shift), (level - 128) / 128"
NAME = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
URLS = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
)
UNVERIFIED = "unverified"
"""The mark of all numbers of this extractor."""

Kernel = int | tuple[int, int]


class Layer(NamedTuple):
    """Convolutions that all read the same and are concatenated: one, or two side by side."""

    names: tuple[str, ...]
    out: int
    kernels: tuple[Kernel, ...]
    stride: int = 1


def _layer(name: str, out: int, kernel: Kernel = 1, stride: int = 1) -> Layer:
    return Layer((name,), out, (kernel,), stride)


class Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU. With stride 1 the size is kept unless `same` is False."""

    def __init__(self, into: int, out: int, kernel: Kernel, stride: int = 1, *, same: bool = True):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(into, out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """An Inception block: chains of convolutions side by side, and a pooled one, concatenated."""

    def __init__(
        self, into: int, chains: Sequence[Sequence[Layer]], pool: Literal["mean", "max", "halve"], pooled: int | None
    ):
        super().__init__()
        self._chains, self._pool = chains, pool
        for chain in chains:
            width = into
            for layer in chain:
                for name, kernel in zip(layer.names, layer.kernels, strict=True):
                    self.add_module(f"branch{name}", Convolution(width, layer.out, kernel, layer.stride))
                width = layer.out
        self.branch_pool = Convolution(into, pooled, 1) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for chain in self._chains:
            y = x
            for layer in chain:
                y = torch.cat([self.get_submodule(f"branch{name}")(y) for name in layer.names], 1)
            parts.append(y)
        parts.append(self._pooled(x))
        return torch.cat(parts, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self._pool == "halve":
            return F.max_pool2d(x, 3, 2)
        # TensorFlow averages over what lies inside alone.
        mean = self._pool == "mean"
        y = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if mean else F.max_pool2d(x, 3, 1, 1)
        assert self.branch_pool is not None
        return self.branch_pool(y)  # type: ignore[no-any-return]


def _grid35(into: int, pooled: int) -> Mixed:
    double = [_layer("3x3dbl_1", 64), _layer("3x3dbl_2", 96, 3), _layer("3x3dbl_3", 96, 3)]
    return Mixed(into, [[_layer("1x1", 64)], [_layer("5x5_1", 48), _layer("5x5_2", 64, 5)], double], "mean", pooled)


def _to_grid17(into: int) -> Mixed:
    double = [_layer("3x3dbl_1", 64), _layer("3x3dbl_2", 96, 3), _layer("3x3dbl_3", 96, 3, 2)]
    return Mixed(into, [[_layer("3x3", 384, 3, 2)], double], "halve", None)


def _grid17(width: int) -> Mixed:
    across, down = (1, 7), (7, 1)
    single = [_layer("7x7_1", width), _layer("7x7_2", width, across), _layer("7x7_3", 192, down)]
    double = [
        _layer("7x7dbl_1", width),
        _layer("7x7dbl_2", width, down),
        _layer("7x7dbl_3", width, across),
        _layer("7x7dbl_4", width, down),
        _layer("7x7dbl_5", 192, across),
    ]
    return Mixed(768, [[_layer("1x1", 192)], single, double], "mean", 192)


def _to_grid8() -> Mixed:
    seven = [
        _layer("7x7x3_1", 192),
        _layer("7x7x3_2", 192, (1, 7)),
        _layer("7x7x3_3", 192, (7, 1)),
        _layer("7x7x3_4", 192, 3, 2),
    ]
    return Mixed(768, [[_layer("3x3_1", 192), _layer("3x3_2", 320, 3, 2)], seven], "halve", None)


def _grid8(into: int, pool: Literal["mean", "max"]) -> Mixed:
    fork: tuple[Kernel, ...] = ((1, 3), (3, 1))
    single = [_layer("3x3_1", 384), Layer(("3x3_2a", "3x3_2b"), 384, fork)]
    double = [
        _layer("3x3dbl_1", 448),
        _layer("3x3dbl_2", 384, 3),
        Layer(("3x3dbl_3a", "3x3dbl_3b"), 384, fork),
    ]
    return Mixed(into, [[_layer("1x1", 320)], single, double], pool, 192)


class InceptionV3(nn.Module):
    """(B, 3, 299, 299) -> 2,048 pooled features and 1,008 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, same=False)
        self.Mixed_5b = _grid35(192, 32)
        self.Mixed_5c = _grid35(256, 64)
        self.Mixed_5d = _grid35(288, 64)
        self.Mixed_6a = _to_grid17(288)
        self.Mixed_6b = _grid17(128)
        self.Mixed_6c = _grid17(160)
        self.Mixed_6d = _grid17(160)
        self.Mixed_6e = _grid17(192)
        self.Mixed_7a = _to_grid8()
        self.Mixed_7b = _grid8(1280, "mean")
        self.Mixed_7c = _grid8(2048, "max")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        features = x.mean((2, 3))
        # Without the bias, as the Inception Score has been computed from the start.
        return features, F.linear(features, self.fc.weight)


def transform(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, C), 1 or 3 channels -> float32 (B, 3, 299, 299), as `TRANSFORM` says."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    for dim in (2, 3):
        x = _resized(x, dim)
    return (x.expand(-1, 3, -1, -1) - 128) / 128


def _resized(x: Tensor, dim: int) -> Tensor:
    """One dimension resized linearly: place i reads from i * length / SIDE, between its neighbours."""
    length = x.shape[dim]
    place = torch.arange(SIDE, dtype=torch.float32) * (length / SIDE)
    low = place.floor().long()
    high, share = (low + 1).clamp(max=length - 1), place - low
    share = share.reshape([-1 if d == dim else 1 for d in range(x.ndim)])
    return torch.lerp(x.index_select(dim, low), x.index_select(dim, high), share)


def load_inception(
    path: Path | None = None, *, device: torch.device | str | None = None, progress: bool = True
) -> Extractor:
    """The Inception extractor; its weights (96 MB) are downloaded at the first use.

    Args:
        path: a file of the same weights, checked in the same way.

    Raises:
        DataError: they cannot be downloaded; says what to do.
        CheckpointError: the file is another one, damaged, or names its weights differently.
    """
    file = path or fetch(
        URLS,
        cache_folder() / "extractors" / NAME,
        file_sha256=SHA256,
        by_hand=f"Put the file into {cache_folder() / 'extractors'}, or leave out what needs it (--extractor digits)",
        progress=progress,
    )
    found = file_sha256(file) if file.is_file() else None
    if found != SHA256:
        what = f"has SHA-256 {found}" if found else "is not there"
        raise CheckpointError(f"{file}: {what}; expected the Inception weights, {SHA256}. Remove it and run again")
    chosen, network = choose_device(device), InceptionV3()
    load_weights(network, file)
    return Extractor(
        "inception",
        found,
        TRANSFORM,
        network.eval().requires_grad_(False).to(chosen),
        chosen,
        prepare=transform,
        batch=BATCH,
        mark=UNVERIFIED,
    )


def load_weights(network: InceptionV3, file: Path) -> None:
    """Weights by their names, none missing and none left over. Raises CheckpointError."""
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, TypeError, AttributeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = " ".join(line.strip() for line in lines[:3])[:300]
        raise CheckpointError(f"{file}: is not what the Inception network was converted to: {reason}") from error
