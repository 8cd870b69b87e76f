"""What more GPUs would do for the paper's recipes: a model of a training step, its assumptions in one place.

    python -m benchmarks.scaling            # the tables of docs/scaling.md

Counted here: operations, parameters, kernels and saved activations of the networks, and (measured on this machine)
the time to draw an image's random numbers, which each process does for its own images. Assumed: `H100`. Checked
against published runs: `CHECKS`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.config import Config, load_config
from ddpm.cost import cost_of
from ddpm.data import Batch
from ddpm.training_loop import build_network, draw_inputs


@dataclass(frozen=True)
class Machine:
    """GPUs in nodes."""

    name: str
    peak: float
    """Operations a second of one GPU in bfloat16 (float16 where it has none), dense."""
    share: float
    """Of the peak, that convolutions of these sizes reach."""
    memory: float
    """Bytes of one GPU."""
    node: int = 8
    """GPUs in a node."""
    inside: float = 360e9
    """Bytes a second each way between the GPUs of a node (450 GB/s of NVLink, at 80 %)."""
    outside: float = 40e9
    """Bytes a second each way of one GPU's network card (400 Gbit/s, at 80 %)."""
    hop: float = 20e-6
    """Seconds that one exchange takes whatever its size, a step of the tree of nodes."""
    kernel: float = 5e-6
    """Seconds that starting a kernel takes: a step is no shorter than its kernels."""


H100 = Machine("H100 SXM, 8 a node", 989e12, 0.25, 80e9)
TPU_V3 = Machine("TPU v3-8 (8 cores)", 420e12 / 8, 0.25, 16e9)
V100 = Machine("V100, 8 a node", 125e12, 0.25, 16e9, inside=120e9)

MASTER = 20
"""Bytes a parameter: weight, gradient, two moments, moving average, each float32."""
BUCKET = 25e6
"""Bytes of gradients that DDP exchanges at a time; the last bucket is exchanged after the backward pass."""


@dataclass(frozen=True)
class Recipe:
    """A network and how long it is trained."""

    name: str
    config: Config
    batch: int
    steps: int

    @cached_property
    def flop(self) -> float:
        """Of a training step, an image."""
        return 3e9 * cost_of(self.config).gflop_per_image

    @cached_property
    def parameters(self) -> int:
        return cost_of(self.config).parameters

    @cached_property
    def kernels(self) -> int:
        """Of a training step: each operation of the forward pass, twice as many backward."""
        return 3 * _counted(self.config)[0]

    @cached_property
    def saved(self) -> int:
        """Bytes of activations kept for the backward pass, an image, in bfloat16."""
        return _counted(self.config)[1]

    @cached_property
    def drawing(self) -> float:
        """Seconds an image: t and eps, on one core of this machine."""
        count = 64
        pixels = np.zeros((count, self.config.data.channels, *self.config.data.size), np.uint8)
        batch = Batch(np.arange(count), pixels, None)
        draw_inputs(self.config, batch, 0, 1000)
        began = time.perf_counter()
        for step in range(3):
            draw_inputs(self.config, batch, step, 1000)
        return (time.perf_counter() - began) / 3 / count


@lru_cache
def _counted(config: Config) -> tuple[int, int]:
    """Kernels of a forward pass, and bytes that it keeps, on a network without storage."""
    kernels, kept = 0, {}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal kernels
            views = ("view", "t.default", "permute", "transpose", "expand", "detach", "unsqueeze", "slice", "split")
            kernels += not any(word in str(function) for word in views)
            return function(*args, **(kwargs or {}))

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if not isinstance(x, torch.nn.Parameter):
            kept[storage._cdata] = (storage, storage.nbytes() // 2)  # held, so that no other takes its place
        return x

    with torch.device("meta"):
        network = build_network(config)
        x = torch.zeros(1, config.data.channels, *config.data.size)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), Count():
            network(x, torch.ones(1))
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    return kernels, sum(size for key, (_, size) in kept.items() if key not in own)


@dataclass(frozen=True)
class Step:
    """One training step of `gpus` GPUs with `local` images each."""

    recipe: Recipe
    machine: Machine
    gpus: int
    local: int
    sharded: bool = False

    @property
    def compute(self) -> float:
        busy = self.recipe.flop * self.local / (self.machine.peak * self.machine.share)
        return max(busy, self.recipe.kernels * self.machine.kernel)

    def _exchange(self, volume: float) -> float:
        """Seconds to sum `volume` bytes over all GPUs: within the nodes, then each GPU its part between them."""
        m = self.machine
        inner, nodes = min(self.gpus, m.node), max(1, self.gpus // m.node)
        inside = 2 * (inner - 1) / inner * volume / m.inside
        outside = 2 * (nodes - 1) / nodes * volume / inner / m.outside
        return float(inside + outside + m.hop * np.log2(self.gpus)) if self.gpus > 1 else 0.0

    @property
    def waiting(self) -> float:
        """Seconds of the exchange that computing does not hide."""
        volume = 4.0 * self.recipe.parameters
        if self.sharded:  # weights gathered forward and backward, gradients scattered: 3/2 of a sum, beside everything
            return max(0.0, 1.5 * self._exchange(volume) - self.compute)
        backward = 2 / 3 * self.compute
        return max(0.0, self._exchange(volume) - backward) + self._exchange(min(volume, BUCKET))

    @property
    def host(self) -> float:
        """Seconds that each process draws the noise of its own images, beside the GPU."""
        return self.recipe.drawing * self.local

    @property
    def seconds(self) -> float:
        return max(self.compute + self.waiting, self.host)

    @property
    def rate(self) -> float:
        """Images a second of all GPUs."""
        return self.gpus * self.local / self.seconds

    @property
    def memory(self) -> float:
        """Bytes a GPU."""
        state = MASTER * self.recipe.parameters
        return self.recipe.saved * self.local + (state / self.gpus if self.sharded else state)


def recipes() -> tuple[Recipe, Recipe]:
    """The paper's: CIFAR-10 (800,000 steps of 128), LSUN Bedroom 256x256 (2,400,000 steps of 64)."""
    cifar, large = (load_config(name) for name in ("image/cifar10/ddpm_32x32", "image/celebahq/ddpm_256x256"))
    return Recipe("CIFAR-10 32x32", cifar, 128, 800_000), Recipe("LSUN Bedroom 256x256", large, 64, 2_400_000)


def checks() -> Iterator[tuple[str, ...]]:
    """Published speeds, and the share of the peak that they mean."""
    cifar, large = recipes()
    plus = ["network.multipliers=[2,2,2]", "network.blocks=4"]
    edm = Recipe("", load_config("image/cifar10/ddpm_32x32", plus), 512, 0)
    for what, recipe, machine, rate in (
        ("the paper, CIFAR-10: 21 steps/s of 128", cifar, TPU_V3, 21 * 128.0),
        ("the paper, 256x256: 2.2 steps/s of 64", large, TPU_V3, 2.2 * 64),
        ("EDM, CIFAR-10: 200 million images in about two days", edm, V100, 200e6 / (2 * 86400)),
    ):
        step = Step(recipe, machine, 8, recipe.batch // 8)
        share = recipe.flop * rate / (8 * machine.peak)
        network = f"{recipe.parameters / 1e6:.1f} M, {recipe.flop / 1e9:,.0f} GFLOP"
        yield what, machine.name, network, f"{rate:,.0f}", f"{share:.0%}", f"{step.rate:,.0f}"


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def rows(recipe: Recipe, batches: Sequence[tuple[int, int]]) -> Iterator[tuple[str, ...]]:
    """For (GPUs, images a GPU); efficiency is that of each GPU beside one alone with the most images of the list."""
    images = recipe.steps * recipe.batch
    alone = Step(recipe, H100, 1, max(local for _, local in batches))
    for gpus, local in batches:
        for sharded in (False, True) if gpus > 1 else (False,):
            step = Step(recipe, H100, gpus, local, sharded)
            pixels = 3 * np.prod(recipe.config.data.size)
            yield (
                f"{gpus}",
                "FSDP" if sharded else "DDP" if gpus > 1 else "-",
                f"{gpus * local:,} ({local} each)",
                f"{1e3 * step.seconds:.1f}" + (" (drawing)" if step.host == step.seconds else ""),
                f"{step.rate:,.0f}",
                f"{step.rate / alone.rate / gpus:.0%}",
                f"{images / step.rate / 3600:.1f}",
                f"{step.memory / 1e9:.1f}",
                f"{step.rate * pixels / 1e6:,.0f}",
            )


COLUMNS = ("GPUs", "held by", "batch", "ms a step", "images/s", "efficiency", "hours for the paper's images",
           "GB a GPU", "pixels read, MB/s")  # fmt: skip


def main() -> None:
    columns = ("run", "machine", "network", "images/s published", "share of the peak", "images/s at 25 %")
    print(table(columns, checks()))
    cifar, large = recipes()
    for recipe, fixed, grown in (
        (cifar, ((1, 128), (8, 16), (64, 2)), ((8, 128), (64, 128), (512, 128))),
        (large, ((1, 64), (8, 8), (64, 1)), ((8, 64), (64, 64), (512, 64))),
    ):
        about = f"{recipe.parameters / 1e6:.1f} M parameters, {recipe.kernels:,} kernels a step"
        print(f"{recipe.name}: {about}, {recipe.saved / 1e6:.0f} MB of activations an image, "
              f"{1e6 * recipe.drawing:.0f} us to draw an image's noise\n")  # fmt: skip
        print("The paper's batch, shared:\n\n" + table(COLUMNS, rows(recipe, fixed)))
        print("The batch grown with the GPUs (another recipe: fewer steps, and a learning rate to be found):\n")
        print(table(COLUMNS, rows(recipe, grown)))


if __name__ == "__main__":
    main()
