"""Classifier-free guidance against what it is for two Gaussian classes, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch
from torch import Tensor

from ddpm.conditioning import NO_CLASS, Conditional
from ddpm.diffusion import Diffusion
from ddpm.samplers import Guided, ddim
from ddpm.schedule import make_schedule, spaced_steps

SCHEDULE = make_schedule("linear", 100)
MEANS = torch.tensor([-0.5, 0.8], dtype=torch.float64)
SPREAD = 0.3
LABELS = torch.tensor([0, 1, 1, 0, 1])


def log_density(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """log p(x_t | class) of each pixel; of the equal mixture where there is no class."""
    a = SCHEDULE.alpha_bar[t.long()].view(-1, 1, 1, 1)
    variance = a * SPREAD**2 + 1 - a
    each = torch.stack([-((x - a.sqrt() * m) ** 2) / (2 * variance) - variance.log() / 2 for m in MEANS])
    of_class = each.gather(0, labels.clamp(min=0).view(1, -1, 1, 1, 1).expand(1, *x.shape))[0]
    mixture = each.logsumexp(0) - math.log(2)
    return torch.where((labels == NO_CLASS).view(-1, 1, 1, 1), mixture, of_class)


def noise_of(density: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The best noise prediction for a density: -sqrt(1 - alpha_bar) grad log p."""
    (score,) = torch.autograd.grad(density.sum(), x)
    return -(1 - SCHEDULE.alpha_bar[t.long()]).sqrt().view(-1, 1, 1, 1) * score


@dataclass
class Exact:
    """The exact predictor of two Gaussian classes; keeps the sizes of its calls."""

    kind: Literal["epsilon", "x0", "v", "mu"] = "epsilon"
    spread: bool = False
    """Answer with a variance too: the label."""
    sizes: list[int] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.sizes.append(len(x_t))
        labels = torch.full((len(x_t),), NO_CLASS) if labels is None else labels
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            eps = noise_of(log_density(x, t, labels), x, t)
        plain = Diffusion(schedule=SCHEDULE)
        x0 = plain.to_x0(eps, x_t, t)
        out = Diffusion(schedule=SCHEDULE, prediction=self.kind).target(x0, eps, x_t, t)
        return torch.cat([out, labels.view(-1, 1, 1, 1).expand_as(out).to(out)], 1) if self.spread else out


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(5, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.tensor([1, 20, 50, 80, 100])


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v", "mu"])
@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5])
def test_it_is_the_noise_of_the_sharpened_density(kind: Literal["epsilon", "x0", "v", "mu"], scale: float) -> None:
    """p(x_t | class)^scale p(x_t)^(1 - scale), whatever the network predicts."""
    x, t = batch()
    guided = Guided(Exact(kind), LABELS, scale, channels=1)
    diffusion = Diffusion(schedule=SCHEDULE, prediction=kind)
    eps = diffusion.eps_of(diffusion.to_x0(guided(x, t), x, t), x, t)
    asked = x.clone().requires_grad_()
    no_class = torch.full_like(LABELS, NO_CLASS)
    sharpened = scale * log_density(asked, t, LABELS) + (1 - scale) * log_density(asked, t, no_class)
    expected = noise_of(sharpened, asked, t)
    torch.testing.assert_close(eps, expected, rtol=1e-9, atol=1e-9)
    unguided = noise_of(log_density(asked, t, LABELS), asked, t)
    assert float((expected - unguided).abs().max()) > 0.05  # it is not the conditional prediction


def test_sampling_with_guidance_ends_where_the_sharpened_classes_are() -> None:
    """Against a null of one wide Gaussian the guided flow is linear: its mean and scale are followed exactly.

    N(m, s^2)^w N(0, S^2)^(1-w) at each time is a Gaussian, whose noise is (x - its mean) / its variance.
    """
    wide, scale, mean = 0.9, 2.0, 0.4

    def net(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        a = SCHEDULE.alpha_bar[t.long()].view(-1, 1, 1, 1)
        told = (labels != NO_CLASS).view(-1, 1, 1, 1).double()
        variance = a * (told * SPREAD**2 + (1 - told) * wide**2) + 1 - a
        return (1 - a).sqrt() * (x_t - a.sqrt() * told * mean) / variance

    diffusion, steps = Diffusion(schedule=SCHEDULE), spaced_steps(100, 20)
    start = torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1, 1, 1)
    *_, last = ddim(diffusion, Guided(net, LABELS, scale, channels=1), start, steps, clip=False)
    slope, offset = 1.0, 0.0  # of x as a function of x_T
    for t, s in steps:
        a, b = (float(SCHEDULE.alpha_bar[int(u)]) for u in (t, s))
        narrow, broad = a * SPREAD**2 + 1 - a, a * wide**2 + 1 - a
        precision = scale / narrow + (1 - scale) / broad
        centre = scale * math.sqrt(a) * mean / narrow / precision
        grow = math.sqrt(b / a)
        pull = (math.sqrt(1 - b) - grow * math.sqrt(1 - a)) * math.sqrt(1 - a) * precision
        slope, offset = (grow + pull) * slope, (grow + pull) * offset - pull * centre
    torch.testing.assert_close(last.x, slope * start + offset, rtol=1e-9, atol=1e-9)


def test_one_call_of_twice_the_images() -> None:
    x, t = batch()
    exact = Exact()
    Guided(exact, LABELS, 2.0, channels=1)(x, t)
    assert exact.sizes == [10]
    steps = spaced_steps(100, 7)
    exact.sizes.clear()
    list(ddim(Diffusion(schedule=SCHEDULE), Guided(exact, LABELS, 2.0, channels=1), x, steps))
    assert exact.sizes == [10] * 7


def test_an_interval_guides_within_and_is_conditional_outside() -> None:
    """after < t <= until, image by image, and the others are not asked for twice."""
    x, t = batch()  # t = 1, 20, 50, 80, 100
    exact = Exact()
    part = Guided(exact, LABELS, 3.0, channels=1, after=20, until=80)(x, t)
    assert exact.sizes == [7]
    everywhere, conditional = Guided(exact, LABELS, 3.0, channels=1)(x, t), Conditional(exact, LABELS)(x, t)
    within = torch.tensor([False, False, True, True, False]).view(-1, 1, 1, 1)
    torch.testing.assert_close(part, torch.where(within, everywhere, conditional), rtol=0, atol=0)
    assert not torch.equal(everywhere[0], conditional[0])
    exact.sizes.clear()
    list(ddim(Diffusion(schedule=SCHEDULE), Guided(exact, LABELS, 3.0, 1, 20, 80), x, spaced_steps(100, 5)))
    assert exact.sizes == [5, 10, 10, 10, 5]  # 100, 75, 51, 26, 1


def test_a_learned_variance_is_the_conditional_one() -> None:
    x, t = batch()
    out = Guided(Exact(spread=True), LABELS, 4.0, channels=1)(x, t)
    torch.testing.assert_close(out[:, :1], Guided(Exact(), LABELS, 4.0, channels=1)(x, t), rtol=0, atol=0)
    assert torch.equal(out[:, 1], LABELS.view(-1, 1, 1).expand(5, 2, 3).double())
