"""A run folder: training with its checkpoints, previews, metrics, and going on where it stopped."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ddpm import checkpoint, data, training_loop
from ddpm.checkpoint import Checkpoint, DataFacts
from ddpm.classes import page
from ddpm.config import Config, differences, find_config, flatten, shipped_configs, to_yaml
from ddpm.device import choose_device, describe, is_out_of_memory
from ddpm.errors import ConfigError, DDPMError, DivergedError
from ddpm.files import numbered, write_text
from ddpm.images import save_png
from ddpm.interrupts import Stop, stop_requests
from ddpm.memory import memory_advice
from ddpm.monitors import Monitors
from ddpm.ops.select import choose_kernels
from ddpm.previews import Previews
from ddpm.progress import progress_bar, say
from ddpm.shipped import name_of
from ddpm.tracking import Tracker
from ddpm.training_loop import Step, TrainingState

MAY_CHANGE = frozenset(
    {
        "data.root",
        "training.steps",
        "training.epochs",
        "training.kernels",
        "training.compile",
        "training.log_every",
        "training.save_every",
        "training.keep_last",
        "training.preview_every",
        "training.preview_samples",
        "training.preview_measured",
        "training.preview_steps",
    }
)
"""Settings that a continued run may change (and all of `sampling`): they leave the steps taken as they are.

Other kernels, or compiling, change the last digits of the steps to come."""


class Interrupted(DDPMError):
    """Training was stopped by a signal, after saving."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


def folder_of(config_path: str | Path) -> Path:
    """`output/` and the config's own path below `configs/`, file name included."""
    path = find_config(config_path)
    parts = path.parts
    if "configs" in parts:
        below = Path(*parts[len(parts) - parts[::-1].index("configs") :])
    elif shipped_configs() in path.parents:
        below = path.relative_to(shipped_configs())
    else:
        below = Path(path.name)
    return Path("output") / below


def sample_folder_of(checkpoint_path: Path) -> Path:
    """Where samples of a checkpoint go: `sample/<run>` beside its run folder."""
    return folder_beside(checkpoint_path, "sample")


def folder_beside(checkpoint_path: Path, kind: str) -> Path:
    """Where things of a kind that are made from a checkpoint go: `<kind>/<run>` beside its run folder.

    For a model that comes with the package: `output/pretrained/<kind>/<name>`.
    """
    if (name := name_of(checkpoint_path)) is not None:  # beside it lies the package
        return Path("output") / "pretrained" / kind / name
    run = checkpoint_path.resolve().parent
    return _shortest(run.parent / kind / run.name)


def _shortest(path: Path) -> Path:
    """Relative to the current folder where it lies below it: shorter to read and to type."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@dataclass(frozen=True)
class Finished:
    """A run that has reached its end."""

    folder: Path
    checkpoint: Path
    step: int


def train(
    config: Config,
    out: str | Path | None = None,
    *,
    fresh: bool = False,
    resume_from: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Finished:
    """Train to the end, going on from the folder's latest checkpoint if it has one.

    Args:
        config: what to train.
        out: the run folder (default `output/run`).
        fresh: start anew in a numbered folder beside `out` if `out` holds a run already.
        resume_from: go on from this checkpoint instead of the latest in `out`.
        device: where to train; None chooses.
        progress: print the header and show a bar with loss, images/s and the time left.

    Raises:
        ConfigError: the folder's run was started with other settings (shown as a diff).
        Interrupted: a signal came; everything up to the last step is saved.
        DDPMError: no memory, no disk, diverged, ...
    """
    folder = Path(out) if out is not None else Path("output") / "run"
    if fresh:
        folder = next(f for f in numbered(folder) if not checkpoint.all_in(f))
    chosen = choose_device(device)
    with _locked(folder):
        return _Run(config, folder, chosen, progress).go(Path(resume_from) if resume_from else None)


class _Run:
    """One call of `train`: the consumer of the training loop's records."""

    def __init__(self, config: Config, folder: Path, device: torch.device, progress: bool):
        self.folder, self.device, self.progress = folder, device, progress
        self.images = data.load(config.data, "train", progress=progress)
        self.held_out = data.load(config.data, "held_out", progress=False) if config.data.held_out else None
        training_loop.check_classes(config, self.images)
        self.facts = DataFacts(len(self.images), self.images.fingerprint, self.images.class_names, self.images.crop)
        self.total = training_loop.total_steps(config, len(self.images))
        self.decay_from_total = config.training.decay != "constant" and config.training.decay_steps is None
        if self.decay_from_total:
            # Settled at the first start: a longer run later does not bend the curve already followed.
            config = _with_training(config, decay_steps=self.total)
        self.config = config
        self.loss_sum, self.loss_count = torch.zeros((), device=device), 0
        self.saved: Path | None = None

    def go(self, resume_from: Path | None) -> Finished:
        state = self._start(resume_from)
        if state.step >= self.total:
            assert self.saved is not None
            self._say(f"finished   step {state.step:,} is already reached; nothing to do. {self.saved}")
            return Finished(self.folder, self.saved, state.step)
        write_text(self.folder / "config.yaml", to_yaml(self.config))
        self._header(state)
        fits = True
        with Tracker(self.folder, state.step) as tracker, stop_requests() as stop:
            try:
                self._loop(state, tracker, stop)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                fits = False
        if not fits:  # only now is what the failed step held let go of
            raise DDPMError(memory_advice(self.config, state))
        assert self.saved is not None
        self._say(f"finished   {self.saved}")
        return Finished(self.folder, self.saved, state.step)

    @cached_property
    def previews(self) -> Previews:
        return Previews(self.config, self.images)

    def _start(self, resume_from: Path | None) -> TrainingState:
        """The state to go on from: a given checkpoint, the folder's latest, or step 0."""
        known = checkpoint.all_in(self.folder)
        source = resume_from or (known[-1] if known else None)
        if source is None:
            return training_loop.new_state(self.config, device=self.device)
        saved = checkpoint.load(source)
        self._accept_changes(saved, source)
        self.saved = source
        self.loss_sum, self.loss_count = torch.tensor(saved.loss_window[0], device=self.device), saved.loss_window[1]
        self._say(f"resuming   {source}")
        return training_loop.restore_state(saved, self.config, device=self.device)

    def _accept_changes(self, saved: Checkpoint, source: Path) -> None:
        """Refuse settings, or data, other than the run was started with."""
        if self.decay_from_total:
            self.config = _with_training(self.config, decay_steps=saved.config.training.decay_steps)
        keys = [k for k in flatten(self.config) if k not in MAY_CHANGE and not k.startswith("sampling.")]
        changed = differences(saved.config, self.config, keys=keys)
        if changed:
            lines = "\n".join(f"  {line}" for line in changed)
            raise ConfigError(
                f"{source}: this run was started with other settings:\n{lines}\n"
                "Undo the change to continue it, or start another run with --fresh or --out"
            )
        if saved.data.fingerprint != self.facts.fingerprint:
            raise ConfigError(
                f"{source}: this run was trained on other images ({saved.data.count:,}, SHA-256 "
                f"{saved.data.fingerprint[:12]}) than data.source: {self.config.data.source} now gives "
                f"({self.facts.count:,}, {self.facts.fingerprint[:12]}). Start another run with --fresh or --out"
            )

    def _loop(self, state: TrainingState, tracker: Tracker, stop: Stop) -> None:
        training = self.config.training
        preview_every = training.preview_every or training.save_every
        monitors = Monitors(state, self.total)
        began, images_since = time.perf_counter(), 0
        with progress_bar("training", self.total, "step", show=self.progress, done=state.step) as bar:
            for step in training_loop.training_steps(self.config, state, self.images):
                bar.update()
                self.loss_sum += step.loss
                self.loss_count += 1
                images_since += training.batch_size
                last = step.step == self.total
                # On the CPU looking at the loss is free; elsewhere it waits for the device.
                if self.device.type == "cpu" or step.step % training.log_every == 0 or last:
                    self._check_finite(step)
                if step.step % training.log_every == 0 or last:
                    elapsed = time.perf_counter() - began
                    row = self._row(step, images_since / elapsed)
                    bar.set_postfix_str(f"loss {row['loss']:.4f}, {row['time/images_per_s']:.0f} images/s")
                    tracker.row(step.step, row)
                    began, images_since = time.perf_counter(), 0
                if step.step % preview_every == 0 or last:
                    self._preview(state, tracker, monitors)
                if step.step % training.save_every == 0 or last or stop.signum:
                    self._check_finite(step)
                    self._save(state)
                if stop.signum and not last:
                    name = signal.Signals(stop.signum).name
                    raise Interrupted(
                        f"stopped by {name} at step {step.step:,}; saved {self.saved}. The same command continues it",
                        stop.signum,
                    )

    def _row(self, step: Step, rate: float) -> dict[str, Any]:
        loss = float(self.loss_sum) / self.loss_count
        self.loss_sum, self.loss_count = torch.zeros((), device=self.device), 0
        return {
            "loss": loss,
            "grad_norm": float(step.grad_norm),
            "learning_rate": step.learning_rate,
            "ema_decay": step.ema_decay,
            "epoch": step.step * self.config.training.batch_size / len(self.images),
            "time/images_per_s": rate,
        }

    def _check_finite(self, step: Step) -> None:
        if math.isfinite(float(step.loss)):
            return
        safe = f"The last good checkpoint is {self.saved}" if self.saved else "No checkpoint was written yet"
        raise DivergedError(
            f"the loss is {float(step.loss)} at step {step.step:,}: training has diverged and was stopped. {safe}. "
            "A lower training.learning_rate, a longer training.warmup_steps or training.precision: float32 may help",
            step.step,
            self.saved,
        )

    def _preview(self, state: TrainingState, tracker: Tracker, monitors: Monitors) -> None:
        numbers = range(self.config.training.preview_samples)
        look = self.previews.look(state)
        array = page(look.images, numbers, self.config, self.config.sampling)
        save_png(self.folder / "samples" / f"step-{state.step}.png", array)
        tracker.picture(state.step, "preview", array)
        if look.figures:
            tracker.row(state.step, look.figures)
        for line in monitors.warnings(state, look.pixels, self.previews.data):
            say(f"warning    {line}")
        if self.held_out is not None:
            loss = training_loop.validation_loss(self.config, state, self.held_out)
            tracker.row(state.step, {"validation_loss": loss})

    def _save(self, state: TrainingState) -> None:
        content = Checkpoint(
            step=state.step,
            config=self.config,
            data=self.facts,
            precision=state.precision,
            kernels=state.kernels,
            compiled=state.compiled,
            network=state.network.state_dict(),
            ema=state.ema.state_dict(),
            optimizer=state.optimizer.state_dict(),
            scaler=state.scaler.state_dict(),
            loss_window=(float(self.loss_sum), self.loss_count),
            loss_history=state.loss_history.tensors() if state.loss_history else {},
        )
        self.saved = checkpoint.path_at(self.folder, state.step)
        checkpoint.save(self.saved, content)
        keep = self.config.training.keep_last
        for old in checkpoint.all_in(self.folder)[: -keep or None] if keep else []:
            old.unlink()

    def _header(self, state: TrainingState) -> None:
        config, shape = self.config, self.config.data
        parameters = sum(p.numel() for p in state.network.parameters())
        epochs = self.total * config.training.batch_size / len(self.images)
        held = f", {len(self.held_out):,} held out" if self.held_out else ""
        h, w = shape.size
        _, kernels = choose_kernels(self.config.training.kernels, state.device)
        if not kernels.startswith(state.kernels):  # a resumed run keeps what it began with
            kernels = f"{state.kernels} kernels"
        compiled = ", compiled (the first step takes a minute)" if state.compiled else ""
        self._say(f"device     {describe(state.device)}, {state.precision}, {kernels}{compiled}")
        told = f", told {config.network.classes} classes" if config.network.classes else ""
        self._say(f"network    {parameters:,} parameters{told}")
        self._say(f"data       {shape.source}: {len(self.images):,} images{held}, {h}x{w}, {shape.channels} channel(s)")
        self._say(f"run        {self.folder}")
        self._say(f"ends at    step {self.total:,} ({epochs:.1f} epochs); now at {state.step:,}")

    def _say(self, line: str) -> None:
        say(line, show=self.progress)


def _with_training(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time in a run folder; the operating system frees the lock of a dead one."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DDPMError(f"{folder}: cannot be made: {error.strerror}") from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DDPMError(f"{folder}: another process is training here; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()
