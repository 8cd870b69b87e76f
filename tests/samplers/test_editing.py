"""Interpolation, SDEdit and RePaint: their ends, and closed forms for Gaussian data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ddpm.diffusion import Diffusion, Net
from ddpm.samplers import State, ancestral, edit, inpaint, interpolate, repaint_walk, steps_below
from ddpm.schedule import make_schedule, spaced_steps

DIFFUSION = Diffusion(schedule=make_schedule("linear", 100, beta_start=1e-3, beta_end=0.15), variance="fixed_small")
F64 = torch.float64


def _noise(seed: int, shape: tuple[int, ...] = (3, 1, 4, 4)) -> Callable[[int], Tensor]:
    return lambda k: torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + k), dtype=F64)


def _last(states: Iterator[State]) -> Tensor:
    *_, last = states
    assert last.t == 0
    return last.x


def _shrinking(x: Tensor, t: Tensor) -> Tensor:
    """A network that is neither linear nor the same at all times."""
    return torch.tanh(x + t.view(-1, 1, 1, 1) / 100)


def _gaussian_net(mean: Tensor, cov: Tensor, diffusion: Diffusion) -> Net:
    """E[eps | x_t] for data ~ N(mean, cov) over the flattened pixels, exactly."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        a = float(diffusion.schedule.alpha_bar[int(t[0])])
        spread = a * cov + (1 - a) * torch.eye(len(mean), dtype=F64)
        centred = x.flatten(1) - a**0.5 * mean
        return ((1 - a) ** 0.5 * torch.linalg.solve(spread, centred.T).T).view_as(x)

    return net


X, Y = (torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(s), dtype=F64) * 2 - 1 for s in (1, 2))


def test_steps_below_a_time() -> None:
    steps = spaced_steps(100, 5)
    assert steps == [(100, 80), (80, 60), (60, 40), (40, 20), (20, 0)]
    assert steps_below(steps, 100) == steps
    assert steps_below(steps, 55) == [(55, 40), (40, 20), (20, 0)]
    assert steps_below(steps, 40) == [(40, 20), (20, 0)]
    assert steps_below(steps, 0) == []


def test_the_ends_of_an_interpolation_are_reconstructions() -> None:
    steps, eps, noise = steps_below(spaced_steps(100, 20), 60), _noise(0)(0), _noise(1)
    rows = _last(interpolate(DIFFUSION, _shrinking, X, Y, [0, 0.3, 1], steps, eps=eps, noise=noise)).unflatten(
        0, (3, 3)
    )
    for source, column in ((X, 0), (Y, 2)):
        alone = _last(ancestral(DIFFUSION, _shrinking, DIFFUSION.q_sample(source, 60, eps), steps, noise=noise))
        assert torch.equal(rows[:, column], alone)
    assert not torch.allclose(rows[:, 1], 0.7 * rows[:, 0] + 0.3 * rows[:, 2], atol=1e-3)


def test_interpolation_starts_with_the_mixed_latents() -> None:
    """Same noise: a latent of the mixed pixels. Independent noise: a variance that has shrunk."""
    steps, eps, other = steps_below(spaced_steps(100), 60), _noise(0)(0), _noise(0)(1)
    a = float(DIFFUSION.schedule.alpha_bar[60])
    first = next(interpolate(DIFFUSION, _shrinking, X, Y, [0.25], steps, eps=eps, noise=_noise(1)))
    assert first.t == 60
    torch.testing.assert_close(first.x, DIFFUSION.q_sample(0.75 * X + 0.25 * Y, 60, eps))
    first = next(interpolate(DIFFUSION, _shrinking, X, Y, [0.25], steps, eps=eps, other_eps=other, noise=_noise(1)))
    expected = a**0.5 * (0.75 * X + 0.25 * Y) + (1 - a) ** 0.5 * (0.75 * eps + 0.25 * other)
    torch.testing.assert_close(first.x, expected)


def test_without_steps_the_pixels_are_mixed() -> None:
    only = list(interpolate(DIFFUSION, _shrinking, X, Y, [0.0, 0.5], [], eps=_noise(0)(0), noise=_noise(1)))
    assert len(only) == 1
    torch.testing.assert_close(only[0].x.unflatten(0, (3, 2))[:, 1], (X + Y) / 2)


def test_a_row_changes_with_lambda_alone() -> None:
    """Two equal sources give equal images for every lambda: the decoder's noise is shared too."""
    steps = steps_below(spaced_steps(100, 20), 60)
    row = _last(interpolate(DIFFUSION, _shrinking, X, X, [0, 0.5, 1], steps, eps=_noise(0)(0), noise=_noise(1)))
    torch.testing.assert_close(row.unflatten(0, (3, 3))[:, 1], row.unflatten(0, (3, 3))[:, 0])


def test_strength_0_returns_the_picture_and_strength_1_ignores_it() -> None:
    eps, noise = _noise(0)(0), _noise(1)
    assert torch.equal(_last(edit(DIFFUSION, _shrinking, X, [], eps=eps, noise=noise)), X)
    whole = spaced_steps(100, 20)
    one, two = (_last(edit(DIFFUSION, _shrinking, x, whole, eps=eps, noise=noise)) for x in (X, Y))
    assert torch.equal(one, two)
    assert torch.equal(one, _last(ancestral(DIFFUSION, _shrinking, eps, whole, noise=noise)))
    one, two = (_last(edit(DIFFUSION, _shrinking, x, steps_below(whole, 90), eps=eps, noise=noise)) for x in (X, Y))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("t", [5, 30, 70])
def test_an_edit_of_gaussian_data_has_the_exact_mean_and_variance(t: int) -> None:
    """Data N(m, v): the moments of the chain from q(x_t | x_0) down, propagated in float64."""
    m, v, x0, n = 0.2, 0.09, -0.7, 20_000
    mean, cov = torch.full((1,), m, dtype=F64), torch.full((1, 1), v, dtype=F64)
    a = DIFFUSION.schedule.alpha_bar
    expected, var = float(a[t]) ** 0.5 * x0, float(1 - a[t])
    steps = steps_below(spaced_steps(100), t)
    for high, low in steps:
        a_t, a_s = float(a[high]), float(a[low])
        beta, gain = 1 - a_t / a_s, a_t**0.5 * v / (a_t * v + 1 - a_t)
        c_0, c_t = a_s**0.5 * beta / (1 - a_t), (a_t / a_s) ** 0.5 * (1 - a_s) / (1 - a_t)
        expected = c_0 * (m + gain * (expected - a_t**0.5 * m)) + c_t * expected
        var = (c_0 * gain + c_t) ** 2 * var + (1 - a_s) / (1 - a_t) * beta
    net, shape = _gaussian_net(mean, cov, DIFFUSION), (n, 1, 1, 1)
    picture = torch.full(shape, x0, dtype=F64)
    x = _last(edit(DIFFUSION, net, picture, steps, eps=_noise(3, shape)(0), noise=_noise(4, shape), clip=False))
    assert abs(float(x.mean()) - expected) < 4 * (var / n) ** 0.5
    assert abs(float(x.var()) / var - 1) < 4 * (2 / n) ** 0.5


def test_the_walk_of_repaint() -> None:
    """By hand from the paper's description: jumps before the last step and every j steps before that."""
    times = [5, 4, 3, 4, 5, 4, 3, 2, 1, 2, 3, 2, 1, 0]
    assert repaint_walk(spaced_steps(5), jump=2, repeats=2) == list(pairwise(times))
    assert repaint_walk(spaced_steps(5), repeats=1) == spaced_steps(5)


def test_the_walk_has_the_published_length() -> None:
    """T = 250, j = r = 10 (the paper's setting): 4,570 moves, of which 2,410 call the network."""
    walk = repaint_walk(spaced_steps(1000, 250), jump=10, repeats=10)
    assert len(walk) == 4570
    assert sum(t > s for t, s in walk) == 2410
    assert all(a[1] == b[0] for a, b in pairwise(walk))


@pytest.mark.parametrize(("jump", "repeats"), [(0, 2), (2, 0), (5, 2)])
def test_impossible_walks_are_refused(jump: int, repeats: int) -> None:
    with pytest.raises(ValueError, match="jump"):
        repaint_walk(spaced_steps(5), jump=jump, repeats=repeats)


def test_known_pixels_are_kept_and_unknown_ones_are_not_looked_at() -> None:
    known = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    known[..., :2] = True
    walk = repaint_walk(spaced_steps(100, 12), jump=3, repeats=2)
    start, noise = _noise(0)(0), _noise(1)
    run = lambda x0: _last(inpaint(DIFFUSION, _shrinking, start, walk, x0=x0, known=known, noise=noise))  # noqa: E731
    x = run(X)
    assert torch.equal(x[..., :2], X[..., :2])
    assert not torch.isclose(x[..., 2:], X[..., 2:]).any()
    assert torch.equal(x, run(torch.where(known, X, torch.full_like(X, torch.nan))))


def test_with_nothing_known_inpainting_is_sampling() -> None:
    steps, start, noise = spaced_steps(100, 12), _noise(0)(0), _noise(1)
    nothing = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    x = _last(inpaint(DIFFUSION, _shrinking, start, steps, x0=X, known=nothing, noise=noise))
    assert torch.equal(x, _last(ancestral(DIFFUSION, _shrinking, start, steps, noise=noise)))


@pytest.mark.parametrize(("jump", "repeats", "error"), [(1, 1, 0.4), (5, 5, 0.11), (2, 20, 0.035)])
def test_inpainting_of_gaussian_data(jump: int, repeats: int, error: float) -> None:
    """Two pixels that correlate with 0.8, the first known.

    The samples have the moments of the published chain, propagated exactly; its mean approaches the conditional
    mean as stretches are repeated, from an error of 40 % to one of 3.5 %.
    """
    v, rho, value, n = 0.25, 0.8, 0.9, 3000
    cov, eye = v * torch.tensor([[1, rho], [rho, 1]], dtype=F64), torch.eye(2, dtype=F64)
    keep, free = torch.diag(torch.tensor([1.0, 0.0], dtype=F64)), torch.diag(torch.tensor([0.0, 1.0], dtype=F64))
    walk, a = repaint_walk(spaced_steps(100), jump=jump, repeats=repeats), DIFFUSION.schedule.alpha_bar
    m, spread, x0 = torch.zeros(2, dtype=F64), eye, torch.full((2,), value, dtype=F64)
    for t, s in walk:
        a_t, a_s = float(a[t]), float(a[s])
        if s > t:
            m, spread = (a_s / a_t) ** 0.5 * m, a_s / a_t * spread + (1 - a_s / a_t) * eye
            continue
        beta = 1 - a_t / a_s
        gain = a_t**0.5 * cov @ torch.linalg.inv(a_t * cov + (1 - a_t) * eye)  # E[x_0 | x_t]
        step = free @ (a_s**0.5 * beta / (1 - a_t) * gain + (a_t / a_s) ** 0.5 * (1 - a_s) / (1 - a_t) * eye)
        m = step @ m + a_s**0.5 * keep @ x0
        spread = step @ spread @ step.T + (1 - a_s) * keep + (1 - a_s) / (1 - a_t) * beta * free
    assert abs(float(m[1]) / (rho * value) - 1) == pytest.approx(error, rel=0.05)

    net, shape = _gaussian_net(torch.zeros(2, dtype=F64), cov, DIFFUSION), (n, 1, 1, 2)
    known = torch.tensor([True, False]).view(1, 1, 1, 2)
    pictures, start, noise = x0.expand(shape), _noise(5, shape)(0), _noise(6, shape)
    x = _last(inpaint(DIFFUSION, net, start, walk, x0=pictures, known=known, noise=noise, clip=False))[..., 1]
    assert abs(float(x.mean() - m[1])) < 4 * (float(spread[1, 1]) / n) ** 0.5
    assert abs(float(x.var() / spread[1, 1]) - 1) < 4 * (2 / n) ** 0.5


def test_going_up_adds_the_noise_of_the_forward_process() -> None:
    """From x_s ~ q(x_s | x_0) up to t is q(x_t | x_0): mean and variance."""
    shape, n = (20_000, 1, 1, 1), 20_000
    x_s = DIFFUSION.q_sample(torch.full(shape, 0.5, dtype=F64), 10, _noise(7, shape)(0))
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    states = inpaint(DIFFUSION, _shrinking, x_s, [(10, 40)], x0=x_s, known=nothing, noise=_noise(8, shape))
    x_t = next(states).x
    a = float(DIFFUSION.schedule.alpha_bar[40])
    assert abs(float(x_t.mean()) - a**0.5 * 0.5) < 4 * ((1 - a) / n) ** 0.5
    assert abs(float(x_t.var()) / (1 - a) - 1) < 4 * (2 / n) ** 0.5


def test_editing_leaves_gradients_on_outside() -> None:
    steps = spaced_steps(100, 3)
    for state in edit(DIFFUSION, _shrinking, X, steps, eps=_noise(0)(0), noise=_noise(1)):
        assert torch.is_grad_enabled()
        assert not state.x.requires_grad
