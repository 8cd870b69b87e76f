"""From a checkpoint to images: load, sample in batches, stream to disk."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ddpm import checkpoint, files, model_file, samplers
from ddpm.checkpoint import DataFacts
from ddpm.choices import DEFAULT_SPACING, EFFECTIVE, PARTICULAR
from ddpm.classes import class_numbers, condition, grid_count, page
from ddpm.conditioning import LabelledNet
from ddpm.config import ABOUT_CLASSES, Config, SamplingSection
from ddpm.device import Precision, autocast, batch_fits, choose_device, choose_precision
from ddpm.diffusion import Clip, Diffusion, Dynamic, Net
from ddpm.distributed import collected, wait_for_all, world
from ddpm.errors import UsageError
from ddpm.files import atomic_write, numbered, write_json
from ddpm.images import grid, read_png, save_gif, save_png, to_arrays
from ddpm.interop.steps import diffusers_ddim_steps, diffusers_states, diffusers_steps
from ddpm.model_file import ModelFile, is_model_file
from ddpm.noise import ImageNoise
from ddpm.ops.select import Kernels, choose_kernels
from ddpm.progress import progress_bar
from ddpm.schedule import Steps, sampling_steps
from ddpm.training_loop import build_diffusion, trained_network
from ddpm.unet import UNet

Weights = Literal["ema", "raw"]

GIF_LIMIT = 16
"""Pictures in the GIF; noise does not compress, so that it stays at a few megabytes."""
GIF_FRAMES = 40


@dataclass(frozen=True)
class Model:
    """A trained model on a device, ready to sample."""

    config: Config
    data: DataFacts
    step: int
    """Training steps behind it."""
    weights: Weights
    precision: Precision
    """What the network computes in."""
    network: LabelledNet
    """Without labels, and where it has no classes, a plain net; see `classes.condition`."""
    diffusion: Diffusion
    device: torch.device
    sha256: str
    """Of the checkpoint file."""


def load(
    path: str | Path,
    *,
    weights: Weights = "ema",
    precision: Literal["auto"] | Precision = "auto",
    device: torch.device | str | None = None,
) -> Model:
    """Load a checkpoint, or a file of weights alone (`model_file`), for sampling.

    Args:
        path: a checkpoint, or a .safetensors file, which has EMA weights alone.
        weights: the moving average ("ema", what samples are usually drawn with) or the "raw" weights.
        precision: what the network computes in; "auto" chooses (see `device.choose_precision`).
        device: where to put it; None chooses (see `device.choose_device`).

    Raises:
        CheckpointError: no such file, damaged, or not a checkpoint.
        UsageError: raw weights of a file that has none.
    """
    path = Path(path)
    if weights not in ("ema", "raw"):
        raise UsageError(f"weights: {weights!r}: expected ema or raw")
    saved, values = stored(path, weights)
    chosen = choose_device(device)
    network = trained_network(saved.config, values, str(path))
    computing = choose_precision(precision, chosen)
    return Model(
        config=saved.config,
        data=saved.data,
        step=saved.step,
        weights=weights,
        precision=computing,
        network=frozen(network.to(chosen), computing, chosen),
        diffusion=build_diffusion(saved.config),
        device=chosen,
        sha256=file_sha256(path),
    )


def stored(path: Path, weights: Weights) -> tuple[checkpoint.Checkpoint | ModelFile, Mapping[str, Tensor]]:
    """What a checkpoint or a file of weights alone says, and the weights asked for. Raises as `load` does."""
    if is_model_file(path):
        model = model_file.read(path)
        if weights != model.kind:
            raise UsageError(
                f"weights: {weights}: {path} holds the {model.kind} weights alone; say --weights {model.kind}"
            )
        return model, model.weights
    saved = checkpoint.load(path)
    return saved, saved.ema if weights == "ema" else saved.network


def frozen(
    network: UNet, precision: Precision, device: torch.device, kernels: Literal["auto"] | Kernels = "auto"
) -> LabelledNet:
    """The network made ready to be called only: no gradients, weights laid out and cast once; changed in place.

    Its answers are float32 whatever it computes in.
    """
    operations, _ = choose_kernels(kernels, device)
    network.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    if precision != "float32":
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):  # norms stay float32, as in training
                module.to(getattr(torch, precision))
    operations.freeze(network.use(operations))
    if precision == "float32":
        return network

    def call(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        with autocast(precision, device):
            return network(x_t, t, labels).float()  # type: ignore[no-any-return]

    return call


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampling_settings(model: Model, **changes: Any) -> SamplingSection:
    """The checkpoint's sampling settings with `changes` (None: as they are).

    With another sampler, clip, guidance or classes: none, those of the checkpoint's settings that belong to its own
    are left behind. A class may be given by name or number, several as a list; a name comes before a number.
    Raises UsageError for an unknown, idle or impossible setting.
    """
    from pydantic import ValidationError

    changes = {k: v for k, v in changes.items() if v is not None}
    values = model.config.sampling.model_dump() | changes
    for key in PARTICULAR:
        if key not in changes and key not in EFFECTIVE.get(values["sampler"], PARTICULAR):
            values[key] = None
    if values["clip"] != "dynamic" and "clip_quantile" not in changes:
        values["clip_quantile"] = None
    _settle_classes(model, values, changes)
    try:
        settings = SamplingSection.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings together
            raise UsageError(str(first["ctx"]["error"])) from None
        raise UsageError(f"{first['loc'][0]}: found {first['input']!r}: {first['msg'].lower()}") from None
    schedule = model.diffusion.schedule
    if (settings.steps or 1) > schedule.T:
        raise UsageError(f"steps: {settings.steps} is more than the model's T = {schedule.T}")
    try:
        _steps(model.diffusion, settings)
    except ValueError as error:
        raise UsageError(f"spacing: {error}") from None
    if (
        model.diffusion.variance == "learned"
        and settings.sampler == "ancestral"
        and (settings.steps or schedule.T) < schedule.T
    ):
        raise UsageError(
            f"steps: {settings.steps}: this model's variance is learned for t -> t-1 and says nothing of longer steps; "
            f"with the ancestral sampler all T = {schedule.T} are needed"
        )
    return settings


def _settle_classes(model: Model, values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Change the settings about classes in `values`: names to numbers, and none that has no effect."""
    if model.config.network.classes is None:
        if idle := [key for key in ABOUT_CLASSES if key in changes]:
            raise UsageError(
                f"{idle[0]}: {changes[idle[0]]} has no effect: this model was trained without classes "
                "(network.classes is empty). Leave it out"
            )
        return
    values["classes"] = class_numbers(values["classes"], model.data.class_names)
    if values["classes"] == "none" and "guidance" not in changes:
        values["guidance"] = None
    if values["guidance"] in (None, 1) and "guidance_interval" not in changes:
        values["guidance_interval"] = None
    if isinstance(values["guidance_interval"], list):
        values["guidance_interval"] = tuple(values["guidance_interval"])


def states(model: Model, indices: Sequence[int], settings: SamplingSection) -> Iterator[samplers.State]:
    """The sampler's states for the images numbered `indices`, in [-1, 1] and with any padding."""
    net = condition(model.network, model.config, indices, settings, model.device)
    return draw(model.diffusion, net, model.config, indices, settings, model.device)


def draw(
    diffusion: Diffusion,
    net: Net,
    config: Config,
    indices: Sequence[int],
    settings: SamplingSection,
    device: torch.device,
) -> Iterator[samplers.State]:
    """`states` of any net for the images that `config` describes; see `classes.condition` for one with classes."""
    noise = ImageNoise(settings.seed, indices, (config.data.channels, *config.data.size), device)
    x = noise.start().contiguous(memory_format=torch.channels_last)
    steps = _steps(diffusion, settings)
    clip = clip_of(settings)
    if settings.conventions == "diffusers":
        return diffusers_states(settings.sampler, diffusion, net, x, steps, noise=noise, clip=clip, eta=settings.eta)
    own = {key: value for key in PARTICULAR if (value := getattr(settings, key)) is not None}
    return samplers.by_name(settings.sampler, diffusion, net, x, steps, noise=noise, clip=clip, **own)


def network_calls(model: Model, settings: SamplingSection) -> int:
    """How often each image goes through the network."""
    return samplers.network_calls(settings.sampler, model.diffusion.schedule, _steps(model.diffusion, settings))


def _steps(diffusion: Diffusion, settings: SamplingSection) -> Steps:
    spacing, T = settings.spacing or DEFAULT_SPACING, diffusion.schedule.T
    if settings.conventions == "diffusers":
        steps_of = diffusers_ddim_steps if settings.sampler == "ddim" else diffusers_steps
        return steps_of(T, settings.steps or T, spacing)  # type: ignore[arg-type]
    return sampling_steps(diffusion.schedule, settings.steps, spacing)


def clip_of(settings: SamplingSection) -> Clip:
    """How the settings keep an estimate of x_0 in range."""
    if settings.clip == "dynamic":
        return Dynamic() if settings.clip_quantile is None else Dynamic(settings.clip_quantile)
    return settings.clip


def sample(model: Model, count: int = 16, *, start: int = 0, progress: bool = False, **changes: Any) -> np.ndarray:
    """Draw `count` images: numbers start..start+count-1 of the seed's endless sequence.

    Args:
        changes: settings that differ from the checkpoint's (see `config.SamplingSection`): sampler, steps,
            spacing, eta, order, churn, clip, clip_quantile, classes, guidance, guidance_interval, seed, batch_size.
            Image i has the class i mod the number of `classes`, for example 3, "cat", [0, 1], "all" (as when left
            out), "random" or "none".
        progress: show a bar.

    Returns:
        uint8 (count, H, W, C), padding cropped off.
    """
    settings = sampling_settings(model, **changes)
    own = world().share(range(start, start + count))
    return np.stack(collected(array for _, array in _sample_all(model, own, settings, progress=progress)))


@dataclass(frozen=True)
class SampleSet:
    """A folder of samples: grid.png, NNNNN.png, samples.npz and settings.json."""

    folder: Path
    count: int
    made: int
    """Images drawn by this call; the rest were there already."""
    gif: Path | None


def sample_to_folder(
    model: Model,
    folder: Path,
    count: int,
    *,
    start: int = 0,
    settings: SamplingSection,
    gif: bool = False,
    progress: bool = True,
) -> SampleSet:
    """Write images start..start+count-1, skipping those that the folder already has.

    Memory does not grow with `count`. Raises UsageError if the folder holds a set with other settings.
    """
    identity = identity_of(model, settings)
    claim(folder, identity)
    wanted = range(start, start + count)
    missing = [i for i in wanted if not _png(folder, i).exists()]
    made = len(missing)
    wait_for_all()  # until every process has seen what is missing
    gif_path = folder / "reverse-process.gif" if gif else None
    shown = list(wanted[: grid_count(model.config, settings)])
    if gif_path and not gif_path.exists():
        filmed = shown[: min(GIF_LIMIT, settings.batch_size)]
        frames: list[np.ndarray] = []
        watch = _gif_frames(model, frames, settings)
        for i, array in _sample_all(model, filmed, settings, progress=progress, watch=watch):
            save_png(_png(folder, i), array)
        save_gif(gif_path, frames)
        missing = [i for i in missing if i not in set(filmed)]
    for i, array in _sample_all(model, world().share(missing), settings, progress=progress):
        save_png(_png(folder, i), array)
    wait_for_all()
    if not world().first:
        return SampleSet(folder, count, made, gif_path)
    pictures = np.stack([read_png(_png(folder, i)) for i in shown])
    save_png(folder / "grid.png", page(pictures, shown, model.config, settings))
    _write_npz(folder / "samples.npz", (read_png(_png(folder, i)) for i in wanted), count)
    return SampleSet(folder, count, made, gif_path)


def claimable(model: Model, folder: Path, settings: SamplingSection) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3`, ... that no set with other settings occupies."""
    return unclaimed(folder, identity_of(model, settings))


def unclaimed(folder: Path, identity: dict[str, Any]) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3`, ... that no set of another identity occupies."""
    return next(f for f in numbered(folder) if _settings_of(f) in (None, identity))


def identity_of(model: Model, settings: SamplingSection) -> dict[str, Any]:
    """All that decides what image number i looks like."""
    return {
        "checkpoint_sha256": model.sha256,
        "step": model.step,
        "weights": model.weights,
        "precision": model.precision,
        "steps": settings.steps,
        **settings.model_dump(mode="json", exclude={"batch_size", "steps"}, exclude_none=True),
    }


def _settings_of(folder: Path) -> dict[str, Any] | None:
    """The settings of the set that a folder holds; None if it has no picture yet."""
    return files.noted(folder / "settings.json") if any(folder.glob("[0-9]*.png")) else None


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write settings.json into `folder`. Raises UsageError if it holds pictures made with other settings."""
    if _settings_of(folder) is None:
        write_json(folder / "settings.json", identity)
    else:
        files.claim(folder / "settings.json", identity, holds="samples made with other settings")


def _png(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.png"


Watch = Callable[[int, samplers.State], None]
"""Called with the number of each step and the state after it."""


def _sample_all(
    model: Model, indices: Sequence[int], settings: SamplingSection, *, progress: bool, watch: Watch | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Sample `indices` batch by batch: (number, uint8 (H, W, C)) of each."""
    size = settings.batch_size
    steps = settings.steps or model.diffusion.schedule.T
    batches = [indices[i : i + size] for i in range(0, len(indices), size)]
    with progress_bar("sampling", len(batches) * steps, "step", show=progress and bool(batches)) as bar:
        for batch in batches:
            bar.set_postfix_str(f"images {batch[0]}-{batch[-1]}")
            with batch_fits(len(batch)):
                for k, state in enumerate(states(model, batch, settings)):
                    bar.update()
                    if watch:
                        watch(k, state)
            yield from zip(batch, to_arrays(state.x, model.data.crop), strict=True)


def _gif_frames(model: Model, frames: list[np.ndarray], settings: SamplingSection) -> Watch:
    """A watcher that keeps about GIF_FRAMES grids of x_t along the way, small enough for a file."""
    total = settings.steps or model.diffusion.schedule.T
    keep = {round(i * (total - 1) / (GIF_FRAMES - 1)) for i in range(GIF_FRAMES)}

    def watch(k: int, state: samplers.State) -> None:
        if k in keep:
            frames.append(grid(to_arrays(state.x, model.data.crop)))

    return watch


def _write_npz(path: Path, arrays: Iterator[np.ndarray], count: int) -> None:
    """`arr_0`, uint8 (N, H, W, C), written one picture at a time."""
    first = next(arrays)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
    with (
        atomic_write(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        member.write(first.tobytes())
        for array in arrays:
            member.write(array.tobytes())
