"""Which t are drawn: evenly, or by their losses with weights that leave the mean as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpm.noise import Purpose, rng
from ddpm.timesteps import HISTORY, UNIFORM_SHARE, LossHistory, importance

T = 5


def _filled(scales: list[float]) -> LossHistory:
    """A history in which timestep t has the losses scale, -scale, ...: their root mean square is the scale."""
    history = LossHistory.empty(len(scales))
    for n in range(HISTORY):
        t = torch.arange(1, len(scales) + 1)
        history.update(t, torch.tensor(scales) * (-1) ** n)
    return history


def test_probabilities_by_hand() -> None:
    p = _filled([1.0, 2.0, 3.0, 4.0, 0.0]).probabilities()
    np.testing.assert_allclose(p, 0.999 * np.array([1, 2, 3, 4, 0]) / 10 + 0.001 / 5, rtol=1e-12)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert p.min() == pytest.approx(UNIFORM_SHARE / T)  # never forgotten


def test_it_is_the_second_moment_that_counts() -> None:
    history = LossHistory.empty(2)
    for n in range(HISTORY):
        history.update(torch.tensor([1, 2]), torch.tensor([1.0, 2.0 * (n % 2)]))  # equal means, unlike squares
    p = history.probabilities()
    assert p[1] / p[0] == pytest.approx(2**0.5, rel=1e-3)


def test_uniform_until_all_histories_are_full() -> None:
    history = _filled([1.0, 2.0, 3.0])
    history.counts[1] = HISTORY - 1
    np.testing.assert_array_equal(history.probabilities(), np.full(3, 1 / 3))
    history.update(torch.tensor([2]), torch.tensor([9.0]))
    assert history.probabilities()[1] > 0.4


def test_the_oldest_loss_is_forgotten_first() -> None:
    history = LossHistory.empty(1)
    history.update(torch.ones(HISTORY + 3, dtype=torch.int64), torch.arange(HISTORY + 3.0))
    assert history.losses.tolist() == [list(range(3, HISTORY + 3))]


def test_a_batch_with_one_timestep_twice_is_remembered_in_its_order() -> None:
    history = LossHistory.empty(2)
    history.update(torch.tensor([2, 1, 2]), torch.tensor([5.0, 6.0, 7.0]))
    assert history.losses[:, :2].tolist() == [[6, 0], [5, 7]]
    assert history.counts.tolist() == [1, 2]


def test_what_is_not_finite_is_not_remembered() -> None:
    history = _filled([1.0, 2.0])
    before = history.losses.clone()
    history.update(torch.tensor([1, 2]), torch.tensor([float("nan"), float("inf")]))
    assert torch.equal(history.losses, before)


def test_all_zero_losses_leave_a_distribution() -> None:
    np.testing.assert_array_equal(_filled([0.0, 0.0]).probabilities(), [0.5, 0.5])


def test_the_weighted_mean_is_the_uniform_mean() -> None:
    """Exactly in expectation, and within four standard errors of what is drawn."""
    p = _filled([1.0, 2.0, 30.0, 4.0, 0.5]).probabilities()
    values = np.array([3.0, -1.0, 70.0, 2.0, 9.0])
    assert (p * values / (T * p)).sum() == pytest.approx(values.mean(), rel=1e-12)
    t, weight = importance(rng(0, Purpose.TIMESTEP, 0), 40_000, p)
    assert (t.min(), t.max()) == (1, T)
    np.testing.assert_allclose(weight.numpy(), 1 / (T * p[t.numpy() - 1]), rtol=1e-6)
    drawn = weight.numpy() * values[t.numpy() - 1]
    error = drawn.std() / len(drawn) ** 0.5
    assert abs(drawn.mean() - values.mean()) < 4 * error
    unweighted = values[t.numpy() - 1]
    assert abs(unweighted.mean() - values.mean()) > 40 * error  # the control: it is the weights that do it


def test_draws_follow_the_probabilities() -> None:
    p = _filled([1.0, 2.0, 3.0, 4.0, 0.0]).probabilities()
    t, _ = importance(rng(1, Purpose.TIMESTEP, 0), 20_000, p)
    counts = np.bincount(t.numpy(), minlength=T + 1)[1:]
    expected = 20_000 * p
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.5  # chi-squared, 4 degrees, p = 0.001


def test_importance_lowers_the_variance_where_losses_differ() -> None:
    losses = np.array([1.0, 2.0, 30.0, 4.0, 0.5])
    p = _filled(losses.tolist()).probabilities()
    t, weight = importance(rng(2, Purpose.TIMESTEP, 0), 5_000, p)
    assert (weight.numpy() * losses[t.numpy() - 1]).std() < 0.1 * losses.std()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": torch.zeros(3, HISTORY)}, "losses: expected torch.float64"),
        ({"losses": torch.zeros(4, HISTORY, dtype=torch.float64)}, r"losses: .*\(3, 10\)"),
        ({"counts": torch.zeros(3, dtype=torch.int32)}, "counts"),
    ],
)
def test_a_misfit_state_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    whole = _filled([1.0, 2.0, 3.0])
    assert torch.equal(LossHistory.of(whole.tensors(), 3).losses, whole.losses)
    with pytest.raises(ValueError, match=message):
        LossHistory.of(whole.tensors() | change, 3)
    with pytest.raises(ValueError, match="losses"):
        LossHistory.of({}, 3)
