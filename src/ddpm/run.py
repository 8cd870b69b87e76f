"""A run folder: training with its checkpoints, previews, metrics, and going on where it stopped."""

from __future__ import annotations

import difflib
import math
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ddpm import checkpoint, data, kept, manifest, training_loop
from ddpm.checkpoint import Checkpoint, DataFacts
from ddpm.classes import page
from ddpm.config import Config, differences, find_config, flatten, shipped_configs, to_yaml
from ddpm.data import ImageStream
from ddpm.device import choose_device, describe, is_out_of_memory, repeatable
from ddpm.distributed import by_first, collected, joined, largest, world
from ddpm.errors import ConfigError, DataError, DDPMError, DivergedError, UsageError, WriteError
from ddpm.faults import LOWER, ROLLBACKS, Faults
from ddpm.files import numbered, remove_leftovers, write_text
from ddpm.images import save_png
from ddpm.interrupts import Stop, stop_requests
from ddpm.memory import memory_advice
from ddpm.monitors import Monitors
from ddpm.ops.select import choose_kernels
from ddpm.previews import Previews
from ddpm.progress import progress_bar, say
from ddpm.shards import whole_state
from ddpm.shipped import name_of
from ddpm.tracking import Silent, Tracker
from ddpm.training_loop import Step, TrainingState

MAY_CHANGE = frozenset(
    {
        "data.root",
        "data.workers",
        "training.steps",
        "training.epochs",
        "training.kernels",
        "training.compile",
        "training.parallel",
        "training.log_every",
        "training.save_every",
        "training.keep_last",
        "training.preview_every",
        "training.preview_samples",
        "training.preview_measured",
        "training.preview_steps",
        "training.trackers",
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
    allow: Collection[str] = (),
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Finished:
    """Train to the end, going on from the folder's latest checkpoint if it has one.

    Args:
        config: what to train.
        out: the run folder (default `output/run`).
        fresh: start anew in a numbered folder beside `out` if `out` holds anything already.
        resume_from: go on from this checkpoint instead of the latest in `out`.
        allow: settings (dotted keys) that may differ from those the run was started with, besides MAY_CHANGE;
            "data.images": the images themselves.
        device: where to train; None chooses.
        progress: print the header and show a bar with loss, images/s and the time left.

    Raises:
        ConfigError: the folder's run was started with other settings (shown as a diff).
        CheckpointError: the folder's run has checkpoints, but none can be read.
        Interrupted: a signal came; everything up to the last step is saved.
        DivergedError: the loss is no number, and was none again after going back to a good checkpoint.
        DDPMError: no memory, no disk, ...
    """
    folder = Path(out) if out is not None else Path("output") / "run"
    _check_allowed(config, allow)
    chosen = choose_device(device)
    with joined(chosen) as place, repeatable():
        if fresh:
            folder = by_first(lambda: next(f for f in numbered(folder) if _is_free(f)))
        with _locked(folder) if place.first else nullcontext():
            run = _Run(config, folder, chosen, progress, allow)
            return run.go(Path(resume_from) if resume_from else None)


class _Run:
    """One call of `train`: the consumer of the training loop's records."""

    def __init__(self, config: Config, folder: Path, device: torch.device, progress: bool, allow: Collection[str]):
        self.folder, self.device, self.progress, self.allow = folder, device, progress, allow
        self.first = world().first
        """Whether this process writes; in a job of several all compute the same, and the first alone writes."""
        training_loop.check_processes(config)
        self.images: data.ImageSet | ImageStream
        if config.data.streamed:
            self.images = data.open_stream(config.data, config.network.classes, processes=world().size)
        else:
            self.images = data.load(config.data, "train", progress=progress)
        self.held_out = data.load(config.data, "held_out", progress=False) if config.data.held_out else None
        training_loop.check_classes(config, self.images)
        self.facts = DataFacts(self.images.count, self.images.fingerprint, self.images.class_names, self.images.crop)
        self.total = training_loop.total_steps(config, self.images.count)
        self.decay_from_total = config.training.decay != "constant" and config.training.decay_steps is None
        if self.decay_from_total:
            # Settled at the first start: a longer run later does not bend the curve already followed.
            config = _with_training(config, decay_steps=self.total)
        self.config = config
        self.loss_sum, self.loss_count = torch.zeros((), device=device), 0
        self.saved: Path | None = None
        """The last good checkpoint."""
        self.source: Path | None = None
        """The checkpoint that this call went on from."""
        self.given: Path | None = None
        """The checkpoint that the caller named to go on from."""

    def go(self, resume_from: Path | None) -> Finished:
        state = self._start(resume_from)
        if state.step >= self.total:
            assert self.source is not None
            self._say(f"finished   step {state.step:,} is already reached; nothing to do. {self.source}")
            return Finished(self.folder, self.source, state.step)
        fits = True
        try:
            if self.first:
                write_text(self.folder / "config.yaml", to_yaml(self.config))
            self._header(state)
            with stop_requests() as stop:
                while not self._to_the_end(state, stop):
                    state = self._set_back(state.faults)
        except WriteError as error:
            raise DDPMError(f"{error}\n{self._safe()} Make room, and the same command goes on from there") from error
        except DataError as error:  # of a stream, in the middle of the run
            raise DataError(f"{error}\n{self._safe()}") from error
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
        self.given = resume_from
        found = (resume_from, checkpoint.load(resume_from)) if resume_from else self._latest()
        if found is None:
            return training_loop.new_state(self.config, device=self.device)
        source, saved = found
        self._accept_changes(saved, source)
        self._say(f"resuming   {source}")
        return self._restored(source, saved)

    def _latest(self, *, sound: bool = False) -> tuple[Path, Checkpoint] | None:
        """See `kept.latest`; the first process finds it, and every one reads it."""
        found: tuple[Path, Checkpoint] | None = None

        def look() -> Path | None:
            nonlocal found
            found = kept.latest(self.folder, sound=sound)
            return found and found[0]

        path = by_first(look)
        if found is None and path is not None:
            return path, checkpoint.load(path)
        return found

    def _restored(self, source: Path, saved: Checkpoint) -> TrainingState:
        self.source = source
        if not saved.faults.in_a_row:
            self.saved = source
        self.loss_sum, self.loss_count = torch.tensor(saved.loss_window[0], device=self.device), saved.loss_window[1]
        if saved.stream and "data.images" in self.allow:
            same = len(saved.stream) == world().size and saved.data.fingerprint == self.facts.fingerprint
            saved = saved if same else replace(saved, stream=training_loop.stream_start())
        return training_loop.restore_state(saved, self.config, device=self.device)

    def _set_back(self, faults: Faults) -> TrainingState:
        """The state of the last checkpoint after a sound step, with a lower learning rate from there on."""
        found = self._latest(sound=True)
        if found is None and self.given is not None:
            found = self.given, checkpoint.load(self.given)
        if found:
            state = self._restored(*found)
        else:
            state = training_loop.new_state(self.config, device=self.device)
            self.loss_sum, self.loss_count = torch.zeros((), device=self.device), 0
        state.faults = faults.set_back()
        # What comes after is another run's: a crash from here on finds this one.
        aside = by_first(lambda: kept.set_aside_after(self.folder, state.step))
        self._save(state, manifest.score(found[0]) if found else None)
        say(
            f"warning    the last {faults.in_a_row} steps were skipped: their loss or gradient was not finite. "
            f"Going back to step {state.step:,}, and on at {LOWER:g} times the learning rate"
            + "".join(f"; {path.name} is left aside" for path in aside)
        )
        return state

    def _accept_changes(self, saved: Checkpoint, source: Path) -> None:
        """Refuse settings, or data, other than the run was started with."""
        if self.decay_from_total:
            self.config = _with_training(self.config, decay_steps=saved.config.training.decay_steps)
        keys = [k for k in flatten(self.config) if k not in MAY_CHANGE and not k.startswith("sampling.")]
        changed = differences(saved.config, self.config, keys=[k for k in keys if k not in self.allow])
        if changed:
            lines = "\n".join(f"  {line}" for line in changed)
            raise ConfigError(
                f"{source}: this run was started with other settings:\n{lines}\n"
                "Undo the change to continue it, allow it with --allow-change KEY, or start another run with --fresh "
                "or --out"
            )
        if "data.images" not in self.allow and saved.data.fingerprint != self.facts.fingerprint:
            raise ConfigError(
                f"{source}: this run was trained on other images ({saved.data.amount}, SHA-256 "
                f"{saved.data.fingerprint[:12]}) than data.source: {self.config.data.source} now gives "
                f"({self.facts.amount}, {self.facts.fingerprint[:12]}). Start another run with --fresh or --out, "
                "or go on with these with --allow-change data.images"
            )

    def _to_the_end(self, state: TrainingState, stop: Stop) -> bool:
        """Train until the last step is done; False: too many steps in a row had to be skipped."""
        with self._tracker(state.step) if self.first else Silent() as tracker:
            return self._loop(state, tracker, stop)

    def _tracker(self, step: int) -> Tracker:
        return Tracker(self.folder, step, trackers=self.config.training.trackers, settings=flatten(self.config))

    def _loop(self, state: TrainingState, tracker: Tracker | Silent, stop: Stop) -> bool:
        training = self.config.training
        preview_every = training.preview_every or training.save_every
        monitors = Monitors(state, self.total)
        began, images_since = time.perf_counter(), 0
        with progress_bar("training", self.total, "step", show=self.progress, done=state.step) as bar:
            for step in training_loop.training_steps(self.config, state, self.images):
                bar.update()
                if step.sound:
                    self.loss_sum += step.loss
                    self.loss_count += 1
                images_since += training.batch_size
                last, score = step.step == self.total, None
                signum = largest(stop.signum)  # a signal to one process stops all after the same step
                # A run does not end on skipped steps: nobody would know whether it still works.
                if state.faults.in_a_row >= (1 if last else training.skip_limit):
                    if state.faults.rollbacks >= ROLLBACKS:
                        raise self._diverged(step, state)
                    return False
                if step.step % training.log_every == 0 or last:
                    elapsed = time.perf_counter() - began
                    row = self._row(step, state, images_since / elapsed)
                    bar.set_postfix_str(
                        f"loss {row.get('loss', math.nan):.4f}, {row['time/images_per_s']:.0f} images/s"
                    )
                    tracker.row(step.step, row)
                    began, images_since = time.perf_counter(), 0
                if step.step % preview_every == 0 or last:
                    score = self._preview(state, tracker, monitors)
                if step.step % training.save_every == 0 or last or signum:
                    tracker.sync()
                    written = self._save(state, score)
                if signum and not last:
                    name = signal.Signals(signum).name
                    raise Interrupted(
                        f"stopped by {name} at step {step.step:,}; saved {written}. The same command continues it",
                        signum,
                    )
        return True

    def _row(self, step: Step, state: TrainingState, rate: float) -> dict[str, Any]:
        loss = {"loss": float(self.loss_sum) / self.loss_count} if self.loss_count else {}
        self.loss_sum, self.loss_count = torch.zeros((), device=self.device), 0
        norm = {"grad_norm": float(step.grad_norm)} if step.sound else {}
        return (
            loss
            | norm
            | {
                "learning_rate": step.learning_rate,
                "ema_decay": step.ema_decay,
                "skipped": state.faults.skipped,
                "epoch": self._epoch(state),
                "time/images_per_s": rate,
            }
        )

    def _epoch(self, state: TrainingState) -> float:
        """Passes over the data."""
        if isinstance(self.images, ImageStream):
            assert state.position is not None
            return self.images.epoch(state.position)
        return state.step * self.config.training.batch_size / len(self.images)

    def _safe(self) -> str:
        return f"The last good checkpoint is {self.saved}." if self.saved else "No checkpoint was written yet."

    def _diverged(self, step: Step, state: TrainingState) -> DivergedError:
        count = state.faults.in_a_row
        first = step.step - count + 1
        what = "gradient" if math.isfinite(float(step.loss)) else f"loss ({float(step.loss)})"
        weights = [(name, p.detach()) for name, p in state.network.named_parameters()]
        broken = [name for name, p in weights if not bool(torch.isfinite(p).all())]
        largest = max(float(p.abs().max()) for _, p in weights)
        found = f"weights that are not finite: {', '.join(broken[:3])}" if broken else f"largest weight {largest:.3g}"
        return DivergedError(
            f"training has diverged and was stopped: the {what} of step {first:,}"
            + (f" and the {count - 1} after it" if count > 1 else "")
            + f" is not finite, {state.faults.skipped:,} steps were skipped, and going back to a good checkpoint at "
            f"{LOWER:g} times the learning rate has not helped. {self._safe()}\n"
            f"Found: learning rate {step.learning_rate:.3g}, precision {state.precision}, {found}. A lower "
            "training.learning_rate, a longer training.warmup_steps or training.precision: float32 may help",
            first,
            self.saved,
        )

    def _preview(self, state: TrainingState, tracker: Tracker | Silent, monitors: Monitors) -> float | None:
        """Show and measure what the EMA weights can do; returns their score, the lower the better."""
        numbers = range(self.config.training.preview_samples)
        look = self.previews.look(state)
        array = page(look.images, numbers, self.config, self.config.sampling)
        if self.first:
            save_png(self.folder / "samples" / f"step-{state.step}.png", array)
        tracker.picture(state.step, "preview", array)
        if look.figures:
            tracker.row(state.step, look.figures)
        for line in monitors.warnings(state, look.pixels, self.previews.data):
            say(f"warning    {line}")
        score = look.score
        if self.held_out is not None:
            loss = training_loop.validation_loss(self.config, state, self.held_out)
            tracker.row(state.step, {"validation_loss": loss})
            score = loss if score is None else score
        return score

    def _save(self, state: TrainingState, score: float | None) -> Path:
        content = Checkpoint(
            step=state.step,
            config=self.config,
            data=self.facts,
            precision=state.precision,
            kernels=state.kernels,
            compiled=state.compiled,
            network=whole_state(state.network.state_dict()),
            ema=whole_state(state.ema.state_dict()),
            optimizer={"state": whole_state(state.optimizer.state_dict()["state"])},
            scaler=state.scaler.state_dict(),
            loss_window=(float(self.loss_sum), self.loss_count),
            loss_history=state.loss_history.tensors() if state.loss_history else {},
            faults=state.faults,
            stream=tuple(collected([state.position] if state.position else [])),
        )
        path = checkpoint.path_at(self.folder, content.step)
        keep = self.config.training.keep_last
        if self.first:
            kept.save(self.folder, content, score)
        if not state.faults.in_a_row:
            self.saved = path
            if keep and self.first:
                kept.prune(self.folder, keep)
        return path

    def _header(self, state: TrainingState) -> None:
        config, shape = self.config, self.config.data
        parameters = sum(p.numel() for p in state.network.parameters())
        if isinstance(self.images, ImageStream):
            count, length = f"{len(self.images.shards):,} shards, streamed", ""
        else:
            count = f"{len(self.images):,} images"
            length = f" ({self.total * config.training.batch_size / len(self.images):.1f} epochs)"
        held = f", {len(self.held_out):,} held out" if self.held_out else ""
        h, w = shape.size
        _, kernels = choose_kernels(self.config.training.kernels, state.device)
        if not kernels.startswith(state.kernels):  # a resumed run keeps what it began with
            kernels = f"{state.kernels} kernels"
        compiled = ", compiled (the first step takes a minute)" if state.compiled else ""
        self._say(f"device     {describe(state.device)}, {state.precision}, {kernels}{compiled}")
        if world().size > 1:
            self._say(f"processes  {world().size}, {self.config.training.parallel}")
        told = f", told {config.network.classes} classes" if config.network.classes else ""
        self._say(f"network    {parameters:,} parameters{told}")
        self._say(f"data       {shape.source}: {count}{held}, {h}x{w}, {shape.channels} channel(s)")
        self._say(f"run        {self.folder}")
        self._say(f"ends at    step {self.total:,}{length}; now at {state.step:,}")

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
    except Timeout:  # an OSError too
        raise DDPMError(f"{folder}: another process is training here; wait for it, or choose another --out") from None
    except OSError as error:
        raise DDPMError(f"{folder}: cannot be locked for this run: {error.strerror or error}") from error
    try:
        remove_leftovers(folder)
        remove_leftovers(folder / "samples")
        yield
    finally:
        lock.release()


def _is_free(folder: Path) -> bool:
    """Whether nothing would be overwritten in a folder."""
    return not folder.exists() or (folder.is_dir() and not any(path.name != ".lock" for path in folder.iterdir()))


def _check_allowed(config: Config, allow: Collection[str]) -> None:
    known = [*flatten(config), "data.images"]
    for key in allow:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else " Settings are named as in ddpm config CONFIG"
            raise UsageError(f"--allow-change {key}: is no setting.{hint}")
