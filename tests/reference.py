"""The analytic models behind the reference vectors, on their 0-based clock and on ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]


@lru_cache(maxsize=8)
def arrays(path: Path) -> dict[str, Any]:
    """All arrays of a reference file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def index(path: Path) -> Any:
    return json.loads(path.read_text())


def _column(t: Tensor, x: Tensor) -> Tensor:
    return t.double().view(-1, *[1] * (x.ndim - 1))


def tanh(x: Tensor, t: Tensor) -> Tensor:
    """A poor predictor of the noise whose x_0 estimates saturate; t counts from 0."""
    return (0.1 * torch.tanh(x.double()) + 0.01 * torch.sin(_column(t, x) / 100)).to(x.dtype)


def gmm(x: Tensor, t: Tensor, m: float = 0.8, s: float = 0.35) -> Tensor:
    """The best predictor of the noise for pixels from 1/2 N(-m, s^2) + 1/2 N(m, s^2); t counts from 0."""
    x64, t64 = x.double(), _column(t, x)
    ab = torch.exp(-(1e-4 * (t64 + 1) + 0.0199 * t64 * (t64 + 1) / 1998))
    v, a = ab * s**2 + (1 - ab), m * ab.sqrt()
    return ((1 - ab).sqrt() * (x64 - a * torch.tanh(a * x64 / v)) / v).to(x.dtype)


MODELS: dict[str, Model] = {"tanh": tanh, "gmm": gmm}


def ours(model: Model) -> Model:
    """A model of the 0-based clock as a callable of ours, where t = 1 is one noising step."""
    return lambda x, t: model(x, t - 1)


def close(actual: Any, expected: Any, tolerance: float) -> None:
    """Every element within tolerance * (1 + |expected|)."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance, atol=tolerance)


def model_with_variance(name: str, variance: str) -> Model:
    """A model that also answers with the variance's channels, where `variance` is learned; t counts from 0."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        x64, t64 = x.double(), _column(t, x)
        learned = {
            "LEARNED": -4 + torch.sin(2 * x64) + 0.002 * t64,
            "LEARNED_RANGE": 1.2 * torch.sin(3 * x64 + t64 / 50),
        }
        out = MODELS[name](x, t)
        return torch.cat([out, learned[variance].to(x.dtype)], 1) if variance in learned else out

    return net


# (file, shape family, tolerance, tolerance where rounding is amplified up to 157 times)
FILES = [("process.npz", "c1", 1e-5, 1e-3), ("process.npz", "c3", 1e-5, 1e-3), ("process_f64.npz", "c1", 1e-10, 1e-10)]
files = pytest.mark.parametrize(("file", "c", "tolerance", "amplified"), FILES)


class Case:
    """One file's images of one shape, on our clock."""

    def __init__(self, golden: Path, file: str, c: str):
        self._arrays, self._c = arrays(golden / file), c
        self.x0, self.eps, self.noise = self["x0"], self["noise"], self["noise2"]
        self.x_t, self.t = self["q_sample"], torch.from_numpy(self._arrays["t"]) + 1

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[f"{name}.{self._c}"])
