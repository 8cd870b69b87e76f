"""Sampling chains (Algorithm 2) as the figures look at them: time by time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm import samplers
from ddpm.classes import condition
from ddpm.config import SamplingSection
from ddpm.diffusion import Diffusion, Net
from ddpm.errors import UsageError
from ddpm.noise import ImageNoise
from ddpm.paper.subject import Subject
from ddpm.schedule import Pair, pairs, spaced_steps

QUICK_STEPS = 100


class Moment(NamedTuple):
    """The images at one time of their chain."""

    t: int
    x: Tensor
    """x_t, (B, C, H, W)."""
    x0: Tensor
    """The network's estimate of x_0 at x_t; at t = 0 the sample itself."""


@dataclass(frozen=True)
class Chain:
    """How a figure samples: Algorithm 2 on the timesteps that it visits, estimates clipped, without guidance."""

    subject: Subject
    steps: Sequence[Pair]
    classes: tuple[int, ...] | None = None
    """Of the images in turn; None: none, which is all there is where the model has none."""

    @property
    def times(self) -> list[int]:
        """The visited times, descending, with 0."""
        return [t for t, _ in self.steps] + [0]

    def near(self, wanted: Sequence[int]) -> list[int]:
        """The visited times nearest to the wanted ones, descending, each once."""
        return sorted({min(self.times, key=lambda t, w=w: abs(t - w)) for w in wanted}, reverse=True)  # type: ignore[misc]

    def facts(self) -> dict[str, Any]:
        """For a figure's JSON."""
        facts = {"sampler": "ancestral", "steps": len(self.steps), "variance": self.diffusion.variance}
        if self.subject.every_class:
            facts["classes"] = "none" if self.classes is None else np.bincount(self.classes).tolist()
        return facts

    @property
    def words(self) -> str:
        """For a figure's small print."""
        count, T = len(self.steps), self.subject.T
        told = ", told no class" if self.subject.every_class and self.classes is None else ""
        return ("ancestral, all timesteps" if count == T else f"ancestral, {count:,} of {T:,} timesteps") + told

    @property
    def diffusion(self) -> Diffusion:
        """The model's process, its variance made fit for few steps."""
        return self.subject.model.diffusion.for_steps(len(self.steps))

    def network(self, indices: Sequence[int]) -> Net:
        """What is called for the images numbered `indices`."""
        model = self.subject.model
        settings = SamplingSection(classes=self.classes or "none")
        return condition(model.network, model.config, indices, settings, model.device)

    def noise(self, indices: Sequence[int]) -> ImageNoise:
        """The noise of the images numbered `indices`."""
        config, device = self.subject.model.config, self.subject.model.device
        return ImageNoise(self.subject.seed, indices, (config.data.channels, *config.data.size), device)

    def run(self, indices: Sequence[int], *, start: int | None = None, x: Tensor | None = None) -> Iterator[Moment]:
        """The chains of the images numbered `indices`, down to t = 0.

        Args:
            start: the time to begin at (one of `times`), from `x`; None: T, from noise.
        """
        noise, skipped = self.noise(indices), 0 if start is None else self.times.index(start)
        x = noise.start() if x is None else x
        x = x.contiguous(memory_format=torch.channels_last)
        left = self.steps[skipped:]
        # The noise of a step is that of its place in the whole chain, wherever a chain begins.
        states = samplers.ancestral(self.diffusion, self.network(indices), x, left, noise=lambda k: noise(k + skipped))
        for (t, _), state in zip(left, states, strict=True):
            assert state.x0 is not None
            yield Moment(t, x, state.x0)
            x = state.x
        yield Moment(0, x, x)


def chain(
    subject: Subject,
    *,
    steps: int | None = None,
    quick: bool = False,
    at: Sequence[int] = (),
    classes: tuple[int, ...] | None = None,
) -> Chain:
    """A chain of `steps` steps (default all; `QUICK_STEPS` where it is to be quick) that also visits the times `at`.

    Raises UsageError for an impossible number of steps.
    """
    T, learned = subject.T, subject.model.diffusion.variance == "learned"
    if steps is None:
        steps = min(QUICK_STEPS, T) if quick and not learned else T
    if not 1 <= steps <= T or (learned and steps < T):
        allowed = f"{T}, since its variance is learned for t -> t-1" if learned else f"1..{T}"
        raise UsageError(f"--steps: found {steps}; this model allows {allowed}")
    visited = {t for t, _ in spaced_steps(T, steps)} | {t for t in at if 1 <= t <= T}
    return Chain(subject, pairs(sorted(visited)), classes)
