"""Algorithm 1 as a generator: one typed record per optimiser step.

Everything that varies with time is a function of the step, so that a run that stops and goes on
makes the same steps. Bars, files and previews are the consumer's affair (see `run`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm import checkpoint, distributed, ema, sharding, timesteps
from ddpm.conditioning import NO_CLASS, Conditional, dropped
from ddpm.config import Config
from ddpm.data import Batch, ImageSet, ImageStream, Position, ahead, batches
from ddpm.device import Precision, autocast, choose_device, choose_precision
from ddpm.diffusion import Diffusion, Net
from ddpm.distributed import ALONE, World
from ddpm.errors import CheckpointError, ConfigError
from ddpm.faults import Faults
from ddpm.images import to_model
from ddpm.interop.strict import unet_arguments
from ddpm.losses import Objective, simple
from ddpm.noise import Purpose, normal, normal_of_images, rng, torch_seed
from ddpm.ops.select import Kernels, choose_kernels
from ddpm.schedule import make_schedule, zero_terminal_snr
from ddpm.sharding import Parallel
from ddpm.shards import whole
from ddpm.timesteps import LossHistory
from ddpm.unet import UNet


class Step(NamedTuple):
    """What one optimiser step did. Tensors stay on the device: reading them is the caller's cost."""

    step: int
    """Steps done, this one included."""
    loss: Tensor
    """Mean over the batch of the loss that is minimised, weights included (a scalar tensor)."""
    grad_norm: Tensor
    """Norm of the whole gradient before clipping (a scalar tensor)."""
    learning_rate: float
    ema_decay: float
    sound: bool = True
    """Whether loss and gradient were finite. If not, the step was skipped: nothing has changed but the counts."""


@dataclass
class TrainingState:
    """The named tensors and the one integer that training is."""

    network: UNet
    ema: UNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    precision: Precision
    kernels: Kernels
    """The operations the network computes with."""
    compiled: bool
    """Whether torch.compile compiles the network."""
    loss_history: LossHistory | None
    """What importance sampling of the timesteps goes by; None where they are drawn uniformly."""
    step: int = 0
    """Optimiser steps done, skipped ones included."""
    faults: Faults = field(default_factory=Faults)
    """Steps skipped, and rollbacks."""
    position: Position | None = None
    """Where this process has come to in a stream of images; None where the step says which images are next."""


def build_diffusion(config: Config) -> Diffusion:
    """The diffusion process that a configuration describes."""
    d = config.diffusion
    schedule = make_schedule(d.schedule, d.timesteps, beta_start=d.beta_start, beta_end=d.beta_end)
    if d.zero_terminal_snr:
        schedule = zero_terminal_snr(schedule)
    return Diffusion(schedule=schedule, prediction=d.prediction, variance=d.variance)


def build_objective(config: Config) -> Objective:
    """The loss that a configuration describes."""
    training = config.training
    weight, gamma = training.vlb_weight, training.min_snr_gamma
    return Objective(
        training.loss,
        vlb_weight=1e-3 if weight is None else weight,
        min_snr_gamma=None if training.weighting == "none" else 5.0 if gamma is None else gamma,
    )


def build_network(config: Config) -> UNet:
    """The noise predictor that a configuration describes, its weights a function of training.seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.training.seed, Purpose.INIT))
        return UNet(**unet_arguments(config))


def trained_network(config: Config, weights: Mapping[str, Tensor], source: str) -> UNet:
    """The network of a configuration with weights from elsewhere; misfits cost no memory.

    Raises CheckpointError naming `source` and the misfits.
    """
    with torch.device("meta"):
        _check_fit(build_network(config), weights, source)
    network = build_network(config)
    load_weights(network, weights, source)
    return network


def new_state(config: Config, *, device: torch.device | None = None) -> TrainingState:
    """Step 0 of a run: fresh weights, or those of `training.init_from`."""
    device = device or choose_device()
    precision = choose_precision(config.training.precision, device)
    if config.training.init_from:
        source = checkpoint.load(Path(config.training.init_from))
        network = trained_network(config, source.ema, f"training.init_from: {config.training.init_from}")
    else:
        network = build_network(config)
    compiled = _compile_pays(config, device) if config.training.compile == "auto" else config.training.compile == "on"
    average = copy.deepcopy(network)
    state = _assemble(config, network, average, device, precision, config.training.kernels, compiled)
    state.position = stream_start()[distributed.world().rank] if config.data.streamed else None
    return state


def restore_state(saved: checkpoint.Checkpoint, config: Config, *, device: torch.device | None = None) -> TrainingState:
    """The state that a checkpoint holds, to go on from its step under `config`."""
    device = device or choose_device()
    network = trained_network(config, saved.network, "the checkpoint's raw weights")
    average = trained_network(config, saved.ema, "the checkpoint's EMA weights")
    precision = choose_precision(saved.precision, device)
    training = config.training  # what `auto` came to at the first start stays, so that the numbers do
    kernels = saved.kernels if training.kernels == "auto" else training.kernels
    compiled = saved.compiled if training.compile == "auto" else training.compile == "on"
    state = _assemble(config, network, average, device, precision, kernels, compiled)
    if not saved.optimizer:
        raise CheckpointError(
            "the checkpoint has weights alone (it was imported): there is no training to go on with. "
            "Fine-tune from it with training.init_from"
        )
    _restore_optimizer(state.optimizer, saved)
    if saved.scaler.keys() != state.scaler.state_dict().keys():
        raise CheckpointError(f"the checkpoint's loss scaler: found {sorted(saved.scaler)} for {precision}")
    state.scaler.load_state_dict(dict(saved.scaler))
    state.step, state.faults = saved.step, saved.faults
    state.position = _position(saved) if config.data.streamed else None
    if state.loss_history is not None:
        try:
            state.loss_history = LossHistory.of(saved.loss_history, config.diffusion.timesteps)
        except ValueError as error:
            raise CheckpointError(f"the checkpoint's loss history (training.timesteps: importance): {error}") from None
    return state


def stream_start() -> tuple[Position, ...]:
    """Where each process of this job begins in a stream."""
    return tuple(Position(rank, 0) for rank in range(distributed.world().size))


def _position(saved: checkpoint.Checkpoint) -> Position:
    """Where this process goes on in a stream. Raises CheckpointError: saved by another number of processes."""
    place, count = distributed.world(), len(saved.stream)
    if not count:
        raise CheckpointError("the checkpoint does not say where its run had come to in the stream of images")
    if count != place.size or any(at.shard % count != rank for rank, at in enumerate(saved.stream)):
        raise CheckpointError(
            f"the run was saved by {count} {'process' if count == 1 else 'processes'}, each at its own place in the "
            f"stream of images, which {place.size} cannot go on from without leaving out or repeating some. Start "
            f"it with {count} (torchrun --nproc-per-node {count}), or begin the data anew with --allow-change "
            "data.images"
        )
    return saved.stream[place.rank]


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: checkpoint.Checkpoint) -> None:
    """The moments of every parameter, strictly: torch itself would begin those that are missing anew, silently."""
    own = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = saved.optimizer.get("state")
    # Fresh: no step that counted came before.
    fresh = isinstance(moments, dict) and not moments and saved.step <= saved.faults.skipped
    if not isinstance(moments, dict) or not (fresh or set(moments) == set(range(len(parameters)))):
        raise CheckpointError("the checkpoint's optimiser: its moments are not those of the network's parameters")
    for i, found in moments.items():
        expected = {"step": (), "exp_avg": tuple(parameters[i].shape), "exp_avg_sq": tuple(parameters[i].shape)}
        shapes = (
            {k: tuple(v.shape) for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
        )
        if shapes != expected:
            raise CheckpointError(f"the checkpoint's optimiser: parameter {i} has {shapes}, expected {expected}")
    sharding.load_optimizer(optimizer, {"state": moments, "param_groups": own["param_groups"]})


def load_weights(network: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a network, strictly, wrapped by torch.compile or DistributedDataParallel or not.

    Raises CheckpointError naming `source` and the misfits.
    """
    weights = _check_fit(network, weights, source)
    names = {checkpoint.bare_name(name): name for name in network.state_dict()}
    network.load_state_dict({names[name]: value for name, value in weights.items()})


def _check_fit(network: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """The weights under their bare names. Raises CheckpointError if they are not those of the network."""
    weights = checkpoint.bare(weights)
    expected = {checkpoint.bare_name(name): tuple(value.shape) for name, value in network.state_dict().items()}
    checkpoint.check_weights(weights, expected, source)
    return weights


def _assemble(
    config: Config,
    network: UNet,
    average: UNet,
    device: torch.device,
    precision: Precision,
    kernels: Literal["auto"] | Kernels,
    compiled: bool,
) -> TrainingState:
    operations, _ = choose_kernels(kernels, device)
    # Convolutions are faster with the channels last in memory; the numbers are the same.
    for model in (network, average):
        model.to(device, memory_format=torch.channels_last).use(operations)  # type: ignore[call-overload]
    network.train()
    average.eval().requires_grad_(False)
    training = config.training
    if training.parallel == "fsdp":
        sharding.shard(network, average)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=training.learning_rate,
        betas=training.betas,
        weight_decay=training.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    if compiled:
        network.compile()
    history = LossHistory.empty(config.diffusion.timesteps) if training.timesteps == "importance" else None
    return TrainingState(network, average, optimizer, scaler, device, precision, operations.name, compiled, history)


def _compile_pays(config: Config, device: torch.device) -> bool:
    """On the CPU it does not: a minute of compiling, then the plain network's speed and less than the fused one's."""
    steps = config.training.steps
    return device.type == "cuda" and find_spec("triton") is not None and (steps is None or steps >= 1000)


def check_classes(config: Config, images: ImageSet | ImageStream) -> None:
    """Refuse data whose classes are not the network's. Raises ConfigError."""
    if isinstance(images, ImageStream):  # each label is looked at when it comes
        return
    classes, found = config.network.classes, len(images.class_names)
    if classes is None:
        return
    if images.labels is None:
        raise ConfigError(
            f"network.classes: {classes}, but the images of data.source: {config.data.source} have no labels. Sort "
            "them into one sub-folder a class, with none beside the folders, or remove network.classes"
        )
    if classes != found:
        names = ", ".join(images.class_names[:12]) + (", ..." if found > 12 else "")
        raise ConfigError(
            f"network.classes: {classes}, but data.source: {config.data.source} has {found} classes ({names}). "
            f"Set network.classes: {found}"
        )


def _of_all(x: Tensor) -> Tensor:
    """The rows of all processes, on the CPU."""
    return torch.cat(distributed.collected([x.cpu()]))


def check_processes(config: Config) -> None:
    """Refuse a batch that the processes of this job cannot share equally. Raises ConfigError."""
    batch, parts = config.training.batch_size, config.training.accumulation
    size = distributed.world().size
    if batch % (size * parts):
        whole = size * parts
        low, high = batch // whole * whole or whole, -(-batch // whole) * whole
        fits = f"{low} or {high if high > low else low + whole}"
        split = f"{size} processes" + (f" of accumulation: {parts} parts each" if parts > 1 else "")
        raise ConfigError(f"training.batch_size: {batch} cannot be shared equally by {split}. Use {fits}")


def total_steps(config: Config, count: int | None) -> int:
    """The optimiser steps of a run over `count` training images; None: of a stream."""
    training = config.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None
    assert count is not None  # the configuration refuses epochs of a stream
    return max(1, math.ceil(training.epochs * count / training.batch_size))


def learning_rate_at(step: int, config: Config, total: int) -> float:
    """The learning rate of optimiser step number `step` (1 is the first): warm-up, then decay."""
    training = config.training
    rate = training.learning_rate * min(1.0, step / max(1, training.warmup_steps))
    span = max(1, (training.decay_steps or total) - training.warmup_steps)
    progress = min(1.0, max(0, step - training.warmup_steps) / span)
    match training.decay:
        case "constant":
            return rate
        case "linear":
            return rate * (1 - progress)
        case "cosine":
            return rate * (1 + math.cos(math.pi * progress)) / 2


def training_steps(config: Config, state: TrainingState, images: ImageSet | ImageStream) -> Iterator[Step]:
    """Train from `state.step` to the end, changing `state` in place; yields after each optimiser step.

    Stopping the iteration at any point leaves a whole state: the one after the last record.
    """
    check_classes(config, images)
    check_processes(config)
    parallel = sharding.parallel(state.network, config.training.parallel)
    diffusion, objective = build_diffusion(config), build_objective(config)
    training, total = config.training, total_steps(config, images.count)
    inputs = _inputs(config, state, images, diffusion.schedule.T)
    if state.device.type != "cpu" and state.loss_history is None:  # with a history t depends on the step before
        inputs = ahead(inputs)
    while state.step < total:
        number = state.step + 1
        rate = learning_rate_at(number, config, total) * state.faults.rate_factor
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        drawn, after = next(inputs)
        loss, each = _accumulate_gradients(config, state, diffusion, objective, parallel, drawn)
        state.scaler.unscale_(state.optimizer)
        limit = training.grad_clip if training.grad_clip is not None else math.inf
        grad_norm = whole(torch.nn.utils.clip_grad_norm_(state.network.parameters(), limit))
        decay = ema.decay_at(number, training.ema_decay)
        # The one look at the device a step: what is not finite must not reach weights, moments or averages.
        sound = bool(torch.isfinite(loss) & torch.isfinite(grad_norm))
        if sound:
            state.scaler.step(state.optimizer)
            ema.update(state.ema, state.network, decay)
            if state.loss_history is not None:
                state.loss_history.update(_of_all(drawn.t), _of_all(each))  # it goes by the whole batch
        state.faults = state.faults.after(sound=sound, alarming=sound or not _scale_too_large(state, loss))
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step, state.position = number, after
        yield Step(number, loss, grad_norm, rate, decay, sound)


def _scale_too_large(state: TrainingState, loss: Tensor) -> bool:
    """Whether a gradient that is not finite says no more than that float16's loss scale has to fall, as it will."""
    return state.scaler.is_enabled() and math.isfinite(float(loss)) and state.scaler.get_scale() > 1


class Inputs(NamedTuple):
    """A process's share of a step's batch, with all its randomness drawn (on the CPU)."""

    levels: Tensor
    """(B, C, H, W) uint8."""
    t: Tensor
    """(B,) int64 in 1..T."""
    eps: Tensor
    """(B, C, H, W) float32."""
    weight: Tensor
    """(B,) float32: of each image's loss, for the way its t was drawn."""
    labels: Tensor
    """(B,) int64: the class that the network is told, NO_CLASS where it is told none."""


def _inputs(
    config: Config, state: TrainingState, images: ImageSet | ImageStream, T: int
) -> Iterator[tuple[Inputs, Position | None]]:
    """What the steps after `state.step` are trained with, without end, and where a stream goes on after each."""
    size, seed, place = config.training.batch_size, config.training.seed, distributed.world()
    if isinstance(images, ImageStream):
        start = state.position or stream_start()[place.rank]
        source = images.batches(size // place.size, seed=seed, start=start, processes=place.size)
    else:
        source = batches(images, size, seed=seed, start=state.step, rows=place.rows(size))
    for step, batch in enumerate(source, state.step):
        yield draw_inputs(config, batch, step, T, state.loss_history, place), batch.after


def draw_inputs(
    config: Config, batch: Batch, step: int, T: int, history: LossHistory | None = None, place: World = ALONE
) -> Inputs:
    """Lines 2 to 4 of Algorithm 1 for the step after `step` steps: x_0, t and eps of a process's share of the batch.

    What costs a number an image is drawn for the whole batch and cut; the noise of each image is its own.
    """
    seed, count = config.training.seed, len(batch.images) * place.size
    rows = place.rows(count)
    levels = torch.from_numpy(batch.images)
    if config.data.horizontal_flip:
        flip = torch.from_numpy(rng(seed, Purpose.FLIP, step).random(count) < 0.5)[rows]
        levels = torch.where(flip[:, None, None, None], levels.flip(-1), levels)
    source = rng(seed, Purpose.TIMESTEP, step)
    if history is None:
        t, weight = timesteps.uniform(source, count, T), torch.ones(count)
    else:
        t, weight = timesteps.importance(source, count, history.probabilities())
    eps = normal_of_images(seed, Purpose.NOISE, (step,), range(rows.start, rows.stop), levels.shape[1:])
    labels, share = _labels(batch.labels, len(levels)), config.training.label_dropout
    if config.network.classes is not None:
        chance = rng(seed, Purpose.LABEL, step).random(count)[rows]
        labels = dropped(labels, 0.1 if share is None else share, chance)
    return Inputs(levels, t[rows], eps, weight[rows], labels)


def _labels(labels: np.ndarray | None, count: int) -> Tensor:
    return torch.full((count,), NO_CLASS) if labels is None else torch.from_numpy(labels)


def _told(config: Config, network: torch.nn.Module, labels: Tensor) -> Net:
    """The network as a net for images of these classes, if it knows any."""
    return network if config.network.classes is None else Conditional(network, labels)


def _accumulate_gradients(
    config: Config, state: TrainingState, diffusion: Diffusion, objective: Objective, parallel: Parallel, inputs: Inputs
) -> tuple[Tensor, Tensor]:
    """Gradients of the mean weighted loss over the batch, part by part.

    Returns it, and the loss of each of this process's images, detached. The parts are counted over all processes:
    part k is part k, whoever computes it.
    """
    training, device, place = config.training, state.device, distributed.world()
    parts, first = training.accumulation, training.accumulation * place.rank
    means, losses = [], []
    cut = zip(*(x.chunk(parts) for x in inputs), strict=True)
    for part, (levels, t, eps, weight, labels) in enumerate(cut, first):
        x0, eps = (
            x.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            for x in (to_model(levels.to(device, non_blocking=True)), eps)
        )
        key = torch_seed(training.seed, Purpose.DROPOUT, state.step, part)
        with parallel.summing(last=part == first + parts - 1):
            with _dropout_keyed(key, config, device), autocast(state.precision, device):
                each = objective(diffusion, _told(config, parallel.network, labels.to(device)), x0, t.to(device), eps)
                loss = (weight.to(device) * each).mean() / parts  # the processes' gradients are averaged
            state.scaler.scale(loss).backward()
        means.append(loss.detach() / place.size)
        losses.append(each.detach())
    return distributed.total(torch.stack(means).sum()), torch.cat(losses)


@contextmanager
def _dropout_keyed(key: int, config: Config, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, which dropout draws from, and give them back as they were."""
    if not config.network.dropout:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield


@torch.no_grad()
def validation_loss(config: Config, state: TrainingState, images: ImageSet, *, limit: int = 1024) -> float:
    """Mean L_simple of the EMA weights over (at most `limit`) held-out images, whatever loss is minimised.

    A network with classes is told each image's. It compares runs of the same prediction, unweighted. Each image has
    its own fixed t and eps, so that two checkpoints are compared on the same task.
    """
    diffusion, count, size = build_diffusion(config), min(limit, len(images)), config.training.batch_size
    total = 0.0
    for start in range(0, count, size):
        indices = np.arange(start, min(start + size, count))
        levels = torch.from_numpy(images.take(indices))
        labels = _labels(None if images.labels is None else images.labels[indices], len(indices))
        net = _told(config, state.ema, labels.to(state.device))
        # Stratified: image i of n has its t in the i-th of n equal parts of 1..T.
        place = (torch.arange(start, start + len(levels)) + 0.5) / count
        t = (place * diffusion.schedule.T).long() + 1
        eps = normal(rng(0, Purpose.VALIDATION, start // size), levels.shape)
        x0 = to_model(levels.to(state.device))
        with autocast(state.precision, state.device):
            each = simple(diffusion, net, x0, t.to(state.device), eps.to(state.device))
        total += float(each.sum())
    return total / count
