"""Algorithm 1: each line of it, and that a run is a function of its seed and step."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm import data, training_loop
from ddpm.config import Config
from ddpm.data import ImageSet
from ddpm.errors import CheckpointError
from ddpm.noise import Purpose, rng
from ddpm.timesteps import LossHistory, importance
from ddpm.training_loop import (
    TrainingState,
    build_network,
    draw_inputs,
    learning_rate_at,
    load_weights,
    new_state,
    total_steps,
    training_steps,
    validation_loss,
)
from tests.tiny import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return data.load(tiny().data, "train", progress=False)


def _weights(state: TrainingState) -> dict[str, torch.Tensor]:
    return {
        **{f"network.{k}": v.clone() for k, v in state.network.state_dict().items()},
        **{f"ema.{k}": v.clone() for k, v in state.ema.state_dict().items()},
    }


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_is_a_function_of_its_seed(digits: ImageSet) -> None:
    def run(seed: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        config = tiny(training__seed=seed)
        state = new_state(config, device=CPU)
        losses = [float(step.loss) for step in training_steps(config, state, digits)]
        return losses, _weights(state)

    losses, weights = run(0)
    again, same = run(0)
    other, different = run(1)
    assert losses == again
    assert _same(weights, same)
    assert losses != other
    assert not _same(weights, different)


def test_the_global_random_state_is_neither_used_nor_changed(digits: ImageSet) -> None:
    config = tiny()

    def run() -> dict[str, torch.Tensor]:
        state = new_state(config, device=CPU)
        list(training_steps(config, state, digits))
        return _weights(state)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert _same(first, run())


def test_stopping_and_going_on_changes_nothing(digits: ImageSet) -> None:
    config = tiny()
    whole = new_state(config, device=CPU)
    list(training_steps(config, whole, digits))
    parted = new_state(config, device=CPU)
    list(islice(training_steps(config, parted, digits), 4))
    assert parted.step == 4
    list(training_steps(config, parted, digits))
    assert _same(_weights(whole), _weights(parted))


def test_accumulation_takes_the_same_step(digits: ImageSet) -> None:
    """Without dropout, parts of a batch give the whole batch's gradient up to rounding."""
    results = []
    for parts in (1, 2, 4):
        config = tiny(training__accumulation=parts, network__dropout=0.0, training__steps=3)
        state = new_state(config, device=CPU)
        losses = [float(step.loss) for step in training_steps(config, state, digits)]
        results.append((losses, _weights(state)))
    for losses, weights in results[1:]:
        np.testing.assert_allclose(losses, results[0][0], rtol=1e-5)
        for name, value in weights.items():
            # Adam divides by the gradient's size, so a rounding error in a zero gradient can cost a whole step.
            torch.testing.assert_close(value, results[0][1][name], atol=3.5e-3, rtol=0)
    assert results[0][0][-1] != results[0][0][0]


def test_every_image_once_an_epoch_and_fresh_noise_each_step(digits: ImageSet) -> None:
    config = tiny()
    source = data.batches(digits, 8, seed=0)
    draws = [draw_inputs(config, next(source), step, 20) for step in range(200)]
    t = torch.cat([d.t for d in draws])
    assert (int(t.min()), int(t.max())) == (1, 20)
    counts = torch.bincount(t, minlength=21)[1:].double()
    expected = len(t) / 20
    assert float(((counts - expected) ** 2 / expected).sum()) < 43.8  # chi-squared, 19 degrees, p = 0.001
    assert len({d.eps.sum().item() for d in draws}) == 200
    noise = torch.cat([d.eps.flatten() for d in draws])
    assert abs(float(noise.mean())) < 4 / len(noise) ** 0.5


def test_flips_mirror_about_half_of_the_images(digits: ImageSet) -> None:
    plain, flipping = tiny(), tiny(data__horizontal_flip=True)
    batch = next(data.batches(digits, 400, seed=0))
    straight = draw_inputs(plain, batch, 0, 20).levels
    mixed = draw_inputs(flipping, batch, 0, 20).levels
    mirrored = (mixed == straight.flip(-1)).all(-1).all(-1).all(-1)
    kept = (mixed == straight).all(-1).all(-1).all(-1)
    assert bool((mirrored | kept).all())
    assert 150 < int(mirrored.sum()) < 250


def test_the_loss_falls(digits: ImageSet) -> None:
    config = tiny(training__steps=150, training__batch_size=64, training__learning_rate=3e-3)
    state = new_state(config, device=CPU)
    losses = [float(step.loss) for step in training_steps(config, state, digits)]
    assert losses[0] == pytest.approx(1.0, abs=0.1)  # a network that answers 0 is off by eps: E eps^2 = 1
    assert np.mean(losses[-20:]) < 0.6


def test_ema_moves_and_follows(digits: ImageSet) -> None:
    config = tiny(training__steps=4)
    state = new_state(config, device=CPU)
    start = copy.deepcopy(state.ema.state_dict())
    decays = [step.ema_decay for step in training_steps(config, state, digits)]
    assert decays == sorted(decays)
    moved = [k for k, v in state.ema.state_dict().items() if not torch.equal(v, start[k])]
    assert len(moved) > 10
    assert any(not torch.equal(v, state.network.state_dict()[k]) for k, v in state.ema.state_dict().items())
    assert not any(p.requires_grad for p in state.ema.parameters())


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("constant", [0.5, 1, 1, 1, 1]), ("linear", [0.5, 1, 0.875, 0.5, 0]), ("cosine", [0.5, 1, 0.962, 0.5, 0])],
)
def test_learning_rate(decay: str, expected: list[float]) -> None:
    config = tiny(training__decay=decay, training__warmup_steps=2, training__learning_rate=2.0)
    rates = [learning_rate_at(step, config, 10) / 2 for step in (1, 2, 3, 6, 10)]
    assert rates == pytest.approx(expected, abs=1e-3)


def test_decay_steps_outlive_a_longer_run() -> None:
    config = tiny(training__decay="linear", training__decay_steps=10, training__warmup_steps=0)
    assert learning_rate_at(5, config, 1000) == learning_rate_at(5, config, 10)
    assert learning_rate_at(20, config, 1000) == 0


@pytest.mark.parametrize(("epochs", "count", "steps"), [(1, 80, 10), (2.5, 80, 25), (1, 81, 11), (0.01, 8, 1)])
def test_epochs_are_steps(epochs: float, count: int, steps: int) -> None:
    assert total_steps(tiny(training__steps=None, training__epochs=epochs), count) == steps


def test_gradients_are_clipped(digits: ImageSet) -> None:
    def first_move(limit: float | None) -> float:
        config = tiny(training__grad_clip=limit, training__warmup_steps=0, training__steps=1)
        state = new_state(config, device=CPU)
        # Adam hides the gradient's scale; plain descent shows it.
        state.optimizer = torch.optim.SGD(state.network.parameters(), lr=0.0)
        start = _weights(state)
        (step,) = training_steps(config, state, digits)
        norm = sum(
            float((state.network.state_dict()[k[8:]] - v).square().sum()) for k, v in start.items() if "ema" not in k
        )
        return norm**0.5 / step.learning_rate / min(float(step.grad_norm), limit or float("inf"))

    assert first_move(1e-3) == pytest.approx(1, abs=1e-3)
    assert first_move(None) == pytest.approx(1, abs=1e-3)


def test_validation_loss_is_a_fixed_task(digits: ImageSet) -> None:
    config = tiny()
    state = new_state(config, device=CPU)
    a, b = (validation_loss(config, state, digits, limit=100) for _ in range(2))
    assert a == b
    assert a == pytest.approx(1.0, abs=0.05)


def test_weights_must_fit() -> None:
    network = build_network(tiny())
    weights = dict(network.state_dict())
    weights["conv_in.weight"] = torch.zeros(3)
    del weights["conv_out.bias"]
    with pytest.raises(
        CheckpointError, match=r"here: .*\n  conv_in.weight: found \(3,\).*\n  conv_out.bias: found none"
    ):
        load_weights(network, weights, "here")


@pytest.mark.parametrize(
    "objective",
    [{}, {"training__loss": "bound"}, {"training__loss": "hybrid", "diffusion__variance": "learned_range"}],
    ids=["simple", "bound", "hybrid"],
)
def test_bfloat16_trains_and_keeps_float32_weights(digits: ImageSet, objective: dict[str, str]) -> None:
    config = tiny(training__precision="bfloat16", training__steps=3, **objective)
    state = new_state(config, device=CPU)
    for step in training_steps(config, state, digits):
        assert torch.isfinite(step.loss)
        assert step.loss.dtype == torch.float32
    assert {v.dtype for v in _weights(state).values()} == {torch.float32}


def test_inputs_made_ahead_are_the_same(digits: ImageSet) -> None:
    """What a GPU's run is fed by a thread is what a CPU's makes in place."""
    config = tiny(data__horizontal_flip=True)
    state = new_state(config, device=CPU)
    state.step = 3
    in_place, made_ahead = (islice(f(training_loop._inputs(config, state, digits, 20)), 5) for f in (iter, data.ahead))
    for a, b in zip(in_place, made_ahead, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
        assert a[1] is b[1] is None  # of no stream


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch.compile's own insides
@pytest.mark.parametrize(
    ("form", "tolerance"),
    [({"precision": "bfloat16", "kernels": "auto"}, 0.03), ({"kernels": "plain", "compile": "on"}, 0.02)],
    ids=["bfloat16", "compiled"],
)
def test_the_loss_curve_is_that_of_plain_float32(digits: ImageSet, form: dict[str, str], tolerance: float) -> None:
    """300 steps on digits: the curve's parts of 50 steps stay together, in a precision or form that differs."""

    def curve(**training: object) -> torch.Tensor:
        settings = {f"training__{k}": v for k, v in training.items()}
        config = tiny(network__dropout=0.0, training__steps=300, training__batch_size=32, **settings)
        state = new_state(config, device=CPU)
        return torch.stack([step.loss for step in training_steps(config, state, digits)])

    reference, other = curve(kernels="plain", compile="off"), curve(**form)
    assert not torch.equal(reference, other)  # it is another form
    a, b = (x.view(6, 50).mean(1) for x in (reference, other))
    assert float((b / a - 1).abs().max()) < tolerance
    assert float(a[0] / a[-1]) > 1.5  # there was something to follow


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_outputs_and_gradients_are_the_plain_ones() -> None:
    config = tiny(network__dropout=0.0, training__kernels="plain")
    plain, compiled = (new_state(config, device=CPU).network for _ in range(2))
    with torch.no_grad():
        for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
            q.copy_(p.normal_(0, 0.1))
    compiled.compile()
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([1, 5, 10, 20])
    ours, theirs = plain(x, t), compiled(x, t)
    assert float((ours - theirs).detach().norm() / ours.detach().norm()) < 1e-5
    ours.square().mean().backward()
    theirs.square().mean().backward()
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert float((p.grad - q.grad).norm()) < 1e-4 * float(p.grad.norm()) + 1e-7


def test_fine_tuning_starts_from_the_ema_weights(digits: ImageSet, tmp_path: Path) -> None:
    from ddpm.run import train

    done = train(tiny(training__steps=3), tmp_path / "a", progress=False)
    config = tiny(training__init_from=str(done.checkpoint), training__seed=5)
    state = new_state(config, device=CPU)
    saved = torch.load(done.checkpoint, weights_only=True)
    assert all(torch.equal(v, saved["ema"][k]) for k, v in state.network.state_dict().items())
    assert all(torch.equal(v, saved["ema"][k]) for k, v in state.ema.state_dict().items())
    assert state.step == 0


def _importance(**changes: object) -> Config:
    """Few timesteps and large batches, so that importance sampling warms up within two steps."""
    settings = {
        "diffusion__timesteps": 4,
        "diffusion__variance": "learned_range",
        "training__timesteps": "importance",
        "training__loss": "hybrid",
        "training__batch_size": 64,
        "sampling__steps": None,
    }
    return tiny(**settings | changes)


def test_importance_sampling_keeps_its_history_once_a_step_in_the_batchs_order(digits: ImageSet) -> None:
    config = _importance(training__accumulation=4, network__dropout=0.0)
    state = new_state(config, device=CPU)
    assert state.loss_history is not None
    drawn, weights = [], []

    def watched(*arguments: object) -> object:
        inputs = draw_inputs(*arguments)  # type: ignore[arg-type]
        drawn.append(inputs.t)
        weights.append(inputs.weight)
        p = state.loss_history.probabilities()  # type: ignore[union-attr]
        np.testing.assert_allclose(inputs.weight.numpy(), 1 / (4 * p[inputs.t.numpy() - 1]), rtol=1e-6)
        return inputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm.training_loop.draw_inputs", watched)
        for step in training_steps(config, state, digits):
            seen = sum(int((t == 1).sum()) for t in drawn)
            assert int(state.loss_history.counts[0]) == min(10, seen)
            assert torch.isfinite(step.loss)
    assert bool((state.loss_history.counts == 10).all())
    assert bool((weights[0] == 1).all())
    assert float(weights[-1].std()) > 0.02  # by now they differ


@pytest.mark.parametrize("parts", [1, 4])
def test_the_history_holds_each_images_own_loss_under_its_own_timestep(digits: ImageSet, parts: int) -> None:
    """A fresh network answers 0, so that the loss of image i is known: the mean of its eps^2."""
    config = _importance(
        diffusion__variance="fixed_large",
        training__loss="simple",
        training__batch_size=16,
        training__accumulation=parts,
    )
    state = new_state(config, device=CPU)
    inputs = draw_inputs(config, next(data.batches(digits, 16, seed=0)), 0, 4)
    next(training_steps(config, state, digits))
    expected = LossHistory.empty(4)
    expected.update(timesteps_of_first_step(config), inputs.eps.square().flatten(1).mean(1))
    assert state.loss_history is not None
    assert torch.equal(state.loss_history.counts, expected.counts)
    np.testing.assert_allclose(state.loss_history.losses, expected.losses, rtol=1e-5)


def timesteps_of_first_step(config: Config) -> torch.Tensor:
    """What importance sampling draws while its history is empty."""
    source = rng(config.training.seed, Purpose.TIMESTEP, 0)
    return importance(source, config.training.batch_size, np.full(4, 0.25))[0]


def test_importance_sampling_does_not_depend_on_the_parts(digits: ImageSet) -> None:
    results = []
    for parts in (1, 4):
        config = _importance(training__accumulation=parts, network__dropout=0.0, training__steps=3)
        state = new_state(config, device=CPU)
        losses = [float(step.loss) for step in training_steps(config, state, digits)]
        assert state.loss_history is not None
        results.append((losses, state.loss_history.losses.clone()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "variance", "first"),
    [("bound", "fixed_large", None), ("bound", "learned", None), ("hybrid", "learned_range", 1.0)],
)
def test_the_other_losses_fall_too(digits: ImageSet, loss: str, variance: str, first: float | None) -> None:
    config = tiny(
        training__loss=loss,
        diffusion__variance=variance,
        sampling__steps=None,
        training__steps=80,
        training__batch_size=64,
        training__learning_rate=3e-3,
    )
    state = new_state(config, device=CPU)
    losses = [float(step.loss) for step in training_steps(config, state, digits)]
    if first is not None:
        assert losses[0] == pytest.approx(first, abs=0.1)
    assert np.mean(losses[-20:]) < 0.8 * losses[0]


def test_step_loss_is_what_is_minimised_and_the_validation_loss_is_not(digits: ImageSet) -> None:
    """Two objectives of one prediction: their losses differ, and the held-out L_simple is the same at the start."""
    losses, held_out = [], []
    for changes in ({}, {"training__weighting": "min_snr"}, {"training__loss": "bound"}):
        config = tiny(training__steps=1, **changes)
        state = new_state(config, device=CPU)
        held_out.append(validation_loss(config, state, digits, limit=50))
        losses += [float(step.loss) for step in training_steps(config, state, digits)]
    assert len(set(losses)) == 3
    assert len(set(held_out)) == 1


def test_a_checkpoint_without_its_history_is_refused(digits: ImageSet, tmp_path: Path) -> None:
    from dataclasses import replace

    from ddpm import checkpoint
    from ddpm.run import train
    from ddpm.training_loop import restore_state

    done = train(_importance(training__steps=2), tmp_path, progress=False)
    saved = checkpoint.load(done.checkpoint)
    assert restore_state(saved, saved.config, device=CPU).loss_history is not None
    with pytest.raises(CheckpointError, match=r"importance.*losses: expected"):
        restore_state(replace(saved, loss_history={}), saved.config, device=CPU)
