"""A run folder: what it holds, that the same command continues it, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from ddpm import checkpoint, manifest, run
from ddpm.config import load_config, to_yaml
from ddpm.errors import ConfigError, DDPMError
from ddpm.images import read_png
from ddpm.memory import memory_advice
from ddpm.run import folder_of, sample_folder_of, train
from ddpm.training_loop import new_state
from tests.tiny import tiny


def _rows(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def _same_checkpoints(a: Path, b: Path) -> None:
    one, two = (torch.load(p, weights_only=True) for p in (a, b))

    def compare(x: object, y: object, where: str) -> None:
        assert type(x) is type(y), where
        if isinstance(x, dict):
            assert x.keys() == y.keys(), where  # type: ignore[attr-defined]
            for key in x:
                compare(x[key], y[key], f"{where}.{key}")  # type: ignore[index]
        elif isinstance(x, list | tuple):
            for i, (v, w) in enumerate(zip(x, y, strict=True)):  # type: ignore[call-overload]
                compare(v, w, f"{where}.{i}")
        elif isinstance(x, torch.Tensor):
            assert torch.equal(x, y), where  # type: ignore[arg-type]
        elif where != ".config.training.steps":
            assert x == y, where

    compare(one, two, "")


def test_a_run_folder_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = train(tiny(), tmp_path / "run")
    names = {p.name for p in done.folder.iterdir() if not p.name.startswith(".")}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    others = {"manifest.json", "metrics.jsonl", "samples"}
    assert names - events == {"config.yaml", "diffusion-3.pt", "diffusion-6.pt", *others}
    assert {p.name for p in (done.folder / "samples").iterdir()} == {"step-3.png", "step-6.png"}
    assert read_png(done.folder / "samples" / "step-6.png").ndim == 3
    assert done.checkpoint == done.folder / "diffusion-6.pt"
    assert load_config(done.folder / "config.yaml") == tiny()
    rows = _rows(done.folder)
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]
    assert [row["step"] for row in rows if "validation_loss" in row] == [3, 6]
    printed = capsys.readouterr()
    for word in ("device", "float32", "parameters", "1,617 images, 180 held out", "step 6"):
        assert word in printed.out + printed.err


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_the_same_command_continues_exactly(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tiny(), tmp_path / "whole", progress=False)

    # A real signal, at the end of step `stop`.
    steps = run.training_loop.training_steps

    def interrupted(*arguments: object) -> object:
        for step in steps(*arguments):  # type: ignore[arg-type]
            if step.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(run.training_loop, "training_steps", interrupted)
        with pytest.raises(run.Interrupted, match=f"SIGTERM at step {stop}") as caught:
            train(tiny(), tmp_path / "parted", progress=False)
    assert caught.value.exit_code == 143
    parted = train(tiny(), tmp_path / "parted", progress=False)
    _same_checkpoints(whole.checkpoint, parted.checkpoint)
    assert _rows(whole.folder) == _rows(parted.folder)
    for step in (3, 6):
        name = f"samples/step-{step}.png"
        assert (whole.folder / name).read_bytes() == (parted.folder / name).read_bytes()


@pytest.mark.parametrize("stop", [2, 4])
def test_the_same_command_continues_exactly_with_every_kind_of_state(
    tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importance sampling's history, a learned variance, the hybrid loss, dropout and accumulation together."""
    config = tiny(
        diffusion__timesteps=4,
        diffusion__variance="learned_range",
        sampling__steps=None,
        training__timesteps="importance",
        training__loss="hybrid",
        training__batch_size=64,
        training__accumulation=2,
        training__save_every=stop,
    )
    whole = train(config, tmp_path / "whole", progress=False)
    history = checkpoint.load(whole.checkpoint).loss_history
    assert bool((history["counts"] == 10).all())
    assert history["losses"].dtype == torch.float64

    train(config, tmp_path / "parted", progress=False)
    for later in checkpoint.all_in(tmp_path / "parted"):
        if later.name != f"diffusion-{stop}.pt":
            later.unlink()
    saved = checkpoint.load(tmp_path / "parted" / f"diffusion-{stop}.pt")
    assert not torch.equal(saved.loss_history["losses"], history["losses"])
    parted = train(config, tmp_path / "parted", progress=False)
    _same_checkpoints(whole.checkpoint, parted.checkpoint)
    assert _rows(whole.folder) == _rows(parted.folder)

    # The control: another history takes other steps.
    content = torch.load(tmp_path / "parted" / f"diffusion-{stop}.pt", weights_only=True)
    content["loss_history"]["losses"][0] *= 3
    torch.save(content, tmp_path / "other.pt")
    other = train(config, tmp_path / "other", resume_from=tmp_path / "other.pt", progress=False)
    a, b = (checkpoint.load(run.checkpoint).network for run in (whole, other))
    assert not all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_previews_in_few_steps_of_a_model_that_learns_its_variance(tmp_path: Path, variance: str) -> None:
    config = tiny(diffusion__variance=variance, training__loss="hybrid", training__steps=3, sampling__steps=None)
    done = train(config, tmp_path, progress=False)
    assert read_png(done.folder / "samples" / "step-3.png").ndim == 3
    assert config.training.preview_steps < config.diffusion.timesteps


def test_a_longer_run_goes_on(tmp_path: Path) -> None:
    train(tiny(training__steps=3), tmp_path / "grown", progress=False)
    grown = train(tiny(), tmp_path / "grown", progress=False)
    straight = train(tiny(), tmp_path / "straight", progress=False)
    assert grown.step == 6
    a, b = (checkpoint.load(r.checkpoint) for r in (grown, straight))
    assert all(torch.equal(v, b.network[k]) for k, v in a.network.items())


def test_a_longer_decaying_run_keeps_its_curve(tmp_path: Path) -> None:
    config = tiny(training__steps=3, training__decay="linear")
    train(config, tmp_path, progress=False)
    train(tiny(training__steps=6, training__decay="linear"), tmp_path, progress=False)
    assert checkpoint.load(tmp_path / "diffusion-6.pt").config.training.decay_steps == 3
    assert [row["learning_rate"] for row in _rows(tmp_path) if "loss" in row][-1] == 0


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(tiny(), tmp_path, progress=False)
    before = first.checkpoint.stat().st_mtime_ns
    assert train(tiny(), tmp_path).checkpoint == first.checkpoint
    assert "nothing to do" in capsys.readouterr().err
    assert first.checkpoint.stat().st_mtime_ns == before


def test_changed_settings_are_refused_with_a_diff(tmp_path: Path) -> None:
    train(tiny(training__steps=3), tmp_path, progress=False)
    with pytest.raises(ConfigError, match=r"training\.learning_rate: 0\.001 -> 0\.002") as caught:
        train(tiny(training__learning_rate=0.002), tmp_path, progress=False)
    assert "network" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"network\.channels: 8 -> 16"):
        train(tiny(network__channels=16), tmp_path, progress=False)


def test_other_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny(training__steps=3), tmp_path, progress=False)
    load = run.data.load

    def other(*arguments: object, **options: object) -> object:
        from dataclasses import replace

        return replace(load(*arguments, **options), fingerprint="0" * 64)  # type: ignore[arg-type]

    monkeypatch.setattr(run.data, "load", other)
    with pytest.raises(ConfigError, match="other images"):
        train(tiny(), tmp_path, progress=False)


def test_fresh_starts_beside_and_overwrites_nothing(tmp_path: Path) -> None:
    first = train(tiny(training__steps=3), tmp_path / "run", progress=False)
    before = first.checkpoint.read_bytes()
    second = train(tiny(training__steps=2), tmp_path / "run", fresh=True, progress=False)
    assert second.folder == tmp_path / "run-2"
    assert train(tiny(training__steps=2), tmp_path / "run", fresh=True, progress=False).folder == tmp_path / "run-3"
    assert first.checkpoint.read_bytes() == before


def test_resume_from_a_named_checkpoint(tmp_path: Path) -> None:
    first = train(tiny(), tmp_path / "a", progress=False)
    again = train(tiny(), tmp_path / "b", resume_from=first.folder / "diffusion-3.pt", progress=False)
    _same_checkpoints(first.checkpoint, again.checkpoint)


def test_keep_last(tmp_path: Path) -> None:
    train(tiny(training__save_every=1, training__keep_last=2), tmp_path, progress=False)
    assert [p.name for p in checkpoint.all_in(tmp_path)] == ["diffusion-5.pt", "diffusion-6.pt"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(DDPMError, match="another process"):
        train(tiny(), tmp_path, progress=False)


def test_divergence_stops_the_run_and_saves_nothing_bad(tmp_path: Path) -> None:
    with pytest.raises(DDPMError, match=r"diverged.*diffusion-3\.pt"):
        train(tiny(training__steps=3), tmp_path, progress=False) and train(
            _poisoned(tmp_path, tiny()), tmp_path, progress=False
        )
    assert [p.name for p in checkpoint.all_in(tmp_path)] == ["diffusion-3.pt"]


def _poisoned(folder: Path, config: object) -> object:
    content = torch.load(folder / "diffusion-3.pt", weights_only=True)
    content["network"]["conv_out.bias"].fill_(float("nan"))
    torch.save(content, folder / "diffusion-3.pt")
    manifest.enter(folder / "diffusion-3.pt", None)  # as if it had been written so
    return config


def test_run_folders_mirror_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lesson = "image/mnist/ddpm_32x32_epsilon_discrete"
    expected = Path("output/image/mnist/ddpm_32x32_epsilon_discrete.yaml")
    assert folder_of(lesson) == expected
    assert folder_of(f"configs/{lesson}.yaml") == expected
    (tmp_path / "mine.yaml").write_text(to_yaml(tiny()))
    assert folder_of("mine.yaml") == Path("output/mine.yaml")
    assert sample_folder_of(expected / "diffusion-1.pt") == Path("output/image/mnist/sample") / expected.name


def test_memory_advice_names_a_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(training__batch_size=24, training__accumulation=2)
    state = new_state(config, device=torch.device("cpu"))
    fits = []

    def forward(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        fits.append(len(x))
        if len(x) > 4:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return (x * state.network.conv_in.weight.sum()).sum()

    monkeypatch.setattr(state.network, "forward", forward)
    advice = memory_advice(config, state)
    assert fits == [6, 3]
    assert "with 12 images at a time does not fit" in advice
    assert "--set training.accumulation=8" in advice
    assert "--set training.batch_size=3" in advice


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is set as Linux does")
def test_a_run_that_does_not_fit_is_told_what_does(tmp_path: Path) -> None:
    """A real allocation failure, in a process of its own with little memory."""
    (tmp_path / "big.yaml").write_text(to_yaml(tiny(training__batch_size=65536)))
    code = (
        "import resource, sys, torch; torch.set_num_threads(1)\n"
        "import ddpm.run, tensorboard, torch.utils.tensorboard\n"
        "ddpm.device.limit_memory = lambda device: resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))\n"
        "from ddpm.cli import main; sys.exit(main(['train', sys.argv[1], '--out', sys.argv[2], '--device', 'cpu']))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "big.yaml"), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == -signal.SIGSEGV:  # seldom: the limit struck in a small allocation that nobody checks
        result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "out of memory" in result.stderr
    assert "--set training.accumulation=" in result.stderr
    assert "Traceback" not in result.stderr
