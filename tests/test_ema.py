"""The moving average: its closed form, its warm-up, and that it moves at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddpm import ema


def test_closed_form() -> None:
    average, model = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(average.weight)
    expected = 0.0
    for step, value in enumerate([1.0, -2.0, 3.0, 0.5], 1):
        nn.init.constant_(model.weight, value)
        decay = ema.decay_at(step, 0.9)
        ema.update(average, model, decay)
        expected = decay * expected + (1 - decay) * value
    assert average.weight.item() == pytest.approx(expected, abs=1e-15)


def test_a_constant_model_is_reached() -> None:
    average, model = nn.Linear(3, 2), nn.Linear(3, 2)
    for step in range(1, 3000):
        ema.update(average, model, ema.decay_at(step, 0.99))
    assert torch.allclose(average.weight, model.weight, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999, 0.9999])
def test_the_decay_rises_to_its_end(decay: float) -> None:
    values = [ema.decay_at(step, decay) for step in range(1, 200_000, 7)]
    assert values == sorted(values)
    assert values[0] == min(decay, 2 / 11)
    assert values[-1] == decay


def test_the_start_is_forgotten() -> None:
    """With the warm-up, after 1,000 steps the random start weighs less than 1e-9, not 90 % as with 0.9999 alone."""
    weight = 1.0
    for step in range(1, 1001):
        weight *= ema.decay_at(step, 0.9999)
    assert weight < 1e-9
    assert 0.9999**1000 > 0.9


def test_the_model_is_untouched_and_no_gradient_flows() -> None:
    average, model = nn.Linear(2, 2), nn.Linear(2, 2)
    before = model.weight.clone()
    ema.update(average, model, 0.5)
    assert torch.equal(model.weight, before)
    assert average.weight.grad_fn is None


def test_different_models_raise() -> None:
    with pytest.raises(ValueError, match="bias"):
        ema.update(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.5)
