"""How fast a machine trains and samples a configuration, measured on random pictures (`ddpm benchmark`)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ddpm.config import Config
from ddpm.cost import cost_of
from ddpm.data import ImageSet, ScanReport
from ddpm.device import Precision, choose_precision, is_out_of_memory, synchronize
from ddpm.generate import frozen
from ddpm.training_loop import build_network, new_state, training_steps

Work = Literal["train", "sample"]


class Rate(NamedTuple):
    """One kind of work at one batch size."""

    work: Work
    """A training step, or one network call of a sampler."""
    batch: int
    images_per_s: float
    gflop_per_s: float
    """As a direct convolution would count them: Winograd's form does fewer, so that it may exceed the peak."""


def training_step(config: Config, device: torch.device) -> Callable[[], object]:
    """One step of the training loop after another: data, noise, optimiser, EMA and all."""
    endless = config.training.model_copy(update={"steps": 10**9, "epochs": None, "init_from": None})
    config = config.model_copy(update={"training": endless})
    steps = training_steps(config, new_state(config, device=device), random_pictures(config))
    return lambda: next(steps)


def network_call(config: Config, batch: int, device: torch.device) -> Callable[[], object]:
    """A network call as `ddpm sample` makes it, in the configuration's precision and kernels."""
    training = config.training
    precision = choose_precision(training.precision, device)
    network = frozen(build_network(config).to(device), precision, device, training.kernels)
    x = torch.zeros(batch, config.data.channels, *config.data.size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    t = torch.full((batch,), config.diffusion.timesteps, device=device)
    return torch.no_grad()(lambda: network(x, t))


def random_pictures(config: Config, count: int = 4096) -> ImageSet:
    """Pictures of noise: speed does not depend on what they show."""
    shape = (count, config.data.channels, *config.data.size)
    packed = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    classes = config.network.classes
    labels = None if classes is None else np.arange(count) % classes
    return ImageSet(packed, None, labels, tuple(map(str, range(classes or 0))), None, "random", ScanReport(count))


def peak_gflops(precision: Precision, device: torch.device, *, seconds: float = 1.0) -> float:
    """10^9 operations a second of a large matrix product, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    return 2 * size**3 / 1e9 / min(_durations(lambda: a @ a, device, seconds))


def rates(config: Config, work: Work, device: torch.device, *, most: int = 256, seconds: float = 1.0) -> Iterator[Rate]:
    """Batches of 1, 2, 4, ... images, to `most` or to what memory holds; each measured for about `seconds`."""
    gflop = cost_of(config).gflop_per_image * (3 if work == "train" else 1)
    batch = 1
    while batch <= most:
        try:
            call = _call(config, work, batch, device)
            taken = statistics.median(_durations(call, device, seconds))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return
        yield Rate(work, batch, batch / taken, gflop * batch / taken)
        batch *= 2


def best(measured: list[Rate]) -> Rate:
    """The smallest batch whose speed is within 5 % of the fastest's."""
    fastest = max(rate.images_per_s for rate in measured)
    return min((r for r in measured if r.images_per_s >= 0.95 * fastest), key=lambda r: r.batch)


def _call(config: Config, work: Work, batch: int, device: torch.device) -> Callable[[], object]:
    if work == "sample":
        return network_call(config, batch, device)
    changes: dict[str, Any] = {"batch_size": batch, "accumulation": 1}
    return training_step(config.model_copy(update={"training": config.training.model_copy(update=changes)}), device)


def _durations(call: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each of at least three calls, after two that are not counted."""
    taken: list[float] = []
    for number in range(10_000):
        began = time.perf_counter()
        call()
        synchronize(device)
        if number >= 2:
            taken.append(time.perf_counter() - began)
            if len(taken) >= 3 and sum(taken) >= seconds:
                break
    return taken
