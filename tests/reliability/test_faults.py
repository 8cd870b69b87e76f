"""Losses and gradients that are no numbers: skipped, counted, set back once, stopped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ddpm import data, kept, training_loop
from ddpm.checkpoint import load
from ddpm.errors import DivergedError
from ddpm.faults import Faults
from ddpm.run import train
from tests.reliability.compare import content, rows, unlike
from tests.reliability.runs import Trainers, rich, said
from tests.reliability.worker import with_nan
from tests.tiny import tiny

CPU = torch.device("cpu")


def inject(patch: pytest.MonkeyPatch, *when: tuple[int, int], gradient: bool = False) -> None:
    original = training_loop._accumulate_gradients
    patch.setattr(training_loop, "_accumulate_gradients", with_nan(original, when, gradient=gradient))


@pytest.mark.parametrize("gradient", [False, True])
def test_a_step_that_is_no_number_changes_nothing_but_the_count(
    monkeypatch: pytest.MonkeyPatch, gradient: bool
) -> None:
    config = tiny(training__steps=4, training__kernels="plain")
    inject(monkeypatch, (0, 3), gradient=gradient)
    state = training_loop.new_state(config, device=CPU)
    states, faults = [], []
    for step in training_loop.training_steps(config, state, data.load(config.data, progress=False)):
        moments = [value.clone() for moment in state.optimizer.state.values() for value in moment.values()]
        tensors = [*state.network.state_dict().values(), *state.ema.state_dict().values()]
        states.append([*(t.clone() for t in tensors), *moments])
        faults.append((step.sound, state.faults.skipped, state.faults.in_a_row))
    assert faults == [(True, 0, 0), (True, 0, 0), (False, 1, 1), (True, 1, 0)]
    assert all(map(torch.equal, states[1], states[2]))
    assert not any(map(torch.equal, states[2][:3], states[3][:3]))
    assert all(bool(torch.isfinite(value).all()) for value in states[3])


def test_the_run_says_how_many_it_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, (0, 3), (0, 4))
    done = train(tiny(training__kernels="plain"), tmp_path, device=CPU, progress=False)
    logged = [row for row in rows(tmp_path) if "skipped" in row]
    assert [row["skipped"] for row in logged] == [0, 2, 2]
    assert ["loss" in row for row in logged] == [True, False, True]
    assert all(math.isfinite(value) for row in logged for value in row.values())
    assert load(done.checkpoint).faults == Faults(skipped=2)


STREAK = ((0, 4), (0, 5), (0, 6))


def test_too_many_in_a_row_set_the_run_back_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inject(monkeypatch, *STREAK)
    config = rich(
        root, training__skip_limit=3, training__save_every=2, training__log_every=1, training__decay="constant"
    )
    done = train(config, tmp_path, device=CPU, progress=False)
    assert load(done.checkpoint).faults == Faults(skipped=3, rollbacks=1)
    rates = {row["step"]: row["learning_rate"] for row in rows(tmp_path) if "learning_rate" in row}
    assert rates == {1: 5e-4, 2: 1e-3} | dict.fromkeys(range(3, 9), 5e-4)
    # The checkpoint at 4 was saved in the bad streak: not lost, but not gone on from.
    assert content(tmp_path / f"diffusion-4.pt{kept.ASIDE}")["faults"]["in_a_row"] == 1
    assert content(tmp_path / "diffusion-4.pt")["faults"] == {"skipped": 3, "in_a_row": 0, "rollbacks": 1}
    said = capsys.readouterr().err
    assert "the last 3 steps were skipped" in said
    assert "Going back to step 2, and on at 0.5 times the learning rate; diffusion-4.pt.set-aside" in said


@pytest.mark.parametrize(
    ("moment", "number", "signum"), [("step", 5, 15), ("step", 7, 9), ("rename", 14, 9), ("rename", 16, 9)]
)
def test_a_resume_in_or_after_the_streak_is_exact(
    trainers: Trainers, root: Path, tmp_path: Path, moment: str, number: int, signum: int
) -> None:
    config = rich(root, training__skip_limit=3, training__save_every=2)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert trainers.train(whole, config, nan=STREAK) == 0
    assert trainers.train(parted, config, nan=STREAK, moment=moment, number=number, signum=signum) in (143, -9)
    if signum == 15:
        assert content(parted / "diffusion-5.pt")["faults"]["in_a_row"] == 2
    assert trainers.train(parted, config, nan=STREAK) == 0, said(parted)
    assert unlike(whole, parted) == []
    assert content(parted / "diffusion-8.pt")["faults"] == {"skipped": 3, "in_a_row": 0, "rollbacks": 1}


def test_the_second_time_it_stops_with_a_diagnosis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, *((turn, step) for turn in (0, 1) for step in (4, 5)))
    config = tiny(training__kernels="plain", training__skip_limit=2)
    with pytest.raises(DivergedError) as caught:
        train(config, tmp_path, device=CPU, progress=False)
    message = str(caught.value)
    for part in (
        "diverged and was stopped: the loss (nan) of step 4 and the 1 after it is not finite, 4 steps were skipped",
        "going back to a good checkpoint at 0.5 times the learning rate has not helped",
        f"The last good checkpoint is {tmp_path / 'diffusion-3.pt'}",
        "learning rate 0.0005, precision float32, largest weight",
        "training.learning_rate",
    ):
        assert part in message
    assert (caught.value.step, caught.value.saved, caught.value.exit_code) == (4, tmp_path / "diffusion-3.pt", 1)
    assert load(tmp_path / "diffusion-3.pt").step == 3


def test_before_the_first_checkpoint_it_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, (0, 1), (0, 2), gradient=True)
    done = train(tiny(training__kernels="plain", training__skip_limit=2), tmp_path, device=CPU, progress=False)
    assert (done.step, load(done.checkpoint).faults) == (6, Faults(skipped=2, rollbacks=1))


def test_a_run_does_not_end_on_a_skipped_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, (0, 6))
    done = train(tiny(training__kernels="plain"), tmp_path, device=CPU, progress=False)
    assert load(done.checkpoint).faults == Faults(skipped=1, rollbacks=1)


def test_without_the_look_nan_would_reach_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what the skipping keeps from happening."""
    config = tiny(training__steps=2, training__kernels="plain")
    inject(monkeypatch, (0, 1), gradient=True)
    monkeypatch.setattr("ddpm.training_loop.torch.isfinite", lambda value: torch.tensor(True))
    state = training_loop.new_state(config, device=CPU)
    list(training_loop.training_steps(config, state, data.load(config.data, progress=False)))
    assert all(math.isnan(float(value.sum())) for value in state.network.state_dict().values())


def test_float16_keeps_its_loss_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where torch's scaler works as on a GPU."""
    monkeypatch.setattr(training_loop, "choose_precision", lambda name, device: name)
    config = tiny(training__precision="float16", training__kernels="plain", training__log_every=3)
    original = training_loop._assemble

    def assemble(*arguments: object) -> training_loop.TrainingState:
        state = original(*arguments)  # type: ignore[arg-type]
        state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=3)
        return state

    monkeypatch.setattr(training_loop, "_assemble", assemble)
    whole = train(config, tmp_path / "whole", device=CPU, progress=False)
    saved = [load(path) for path in sorted((tmp_path / "whole").glob("*.pt"))]
    # The first scale is far too large for a gradient in float16: it falls, and nobody is alarmed.
    assert saved[0].faults.skipped > 0
    assert saved[0].faults.in_a_row == 0
    assert saved[0].scaler["scale"] < 2.0**40
    half = tiny(training__precision="float16", training__kernels="plain", training__log_every=3, training__steps=3)
    train(half, tmp_path / "parted", device=CPU, progress=False)
    parted = train(config, tmp_path / "parted", device=CPU, progress=False)
    assert load(parted.checkpoint).scaler == load(whole.checkpoint).scaler
    assert unlike(tmp_path / "whole", tmp_path / "parted") == []
