"""A diffusers pipeline's folder, read and written: model_index.json, the U-Net, the scheduler, a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from ddpm.errors import CheckpointError, DDPMError
from ddpm.files import atomic_write, write_json, write_text
from ddpm.interop.diffusers import unet_config, unet_settings, unet_weights_from, unet_weights_to
from ddpm.interop.foreign import Foreign, load_tensors
from ddpm.interop.schedulers import Pipeline, process_of, scheduler_config
from ddpm.interop.strict import one_of, read
from ddpm.schedule import NoiseSchedule

FILES = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
"""The files that are read, in the folder itself or in its unet/ and scheduler/."""

WRITTEN_FOR = "0.42.1"
"""The version of diffusers whose fields are written."""


def is_pipeline(folder: Path) -> bool:
    """Whether a folder looks like a pipeline's, or a U-Net's with its scheduler."""
    return any((folder / place).is_file() for place in ("model_index.json", "config.json", "unet/config.json"))


def read_folder(folder: Path) -> Foreign:
    """The model in a folder as `save_pretrained` writes it, or flat, as the first of them were published.

    Raises CheckpointError naming a file that is absent or damaged, DDPMError naming fields that we cannot follow.
    """
    index_path = folder / "model_index.json"
    pipeline: Pipeline = "DDPMPipeline"
    if index_path.is_file():
        index = read_json(index_path)
        components = {name: one_of(["diffusers", kind]) for name, kind in (("unet", "UNet2DModel"),)}
        components["scheduler"] = one_of(["diffusers", "DDPMScheduler"], ["diffusers", "DDIMScheduler"])
        parts = {name: value for name, value in index.items() if not name.startswith("_")}
        read(
            {"_class_name": index.get("_class_name"), **parts},
            {"_class_name": one_of(*get_args(Pipeline)), **components},
            f"{index_path}",
        )
        pipeline = index["_class_name"]
    settings = unet_settings(read_json(_place(folder, "unet", "config.json")))
    scheduler = read_json(_place(folder, "scheduler", "scheduler_config.json"))
    process = process_of(scheduler, pipeline)
    learned = process.diffusion["variance"] == "learned_range"
    expected = settings["in_channels"] * (2 if learned else 1)
    if settings["out_channels"] != expected:
        raise DDPMError(
            f"{folder}: out_channels: found {settings['out_channels']}, but variance_type "
            f"{process.diffusion['variance']!r} of {settings['in_channels']} channels needs {expected}"
        )
    weights = unet_weights_from(_weights(folder), settings)
    return Foreign(
        f"diffusers' {pipeline}",
        settings,
        {name: value.float() for name, value in weights.items()},
        process.diffusion,
        process.sampling,
    )


def write_folder(
    folder: Path,
    *,
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    diffusion: Mapping[str, Any],
    sampling: Mapping[str, Any],
    schedule: NoiseSchedule,
    card: str,
) -> list[str]:
    """Write a DDPMPipeline, which a DDIMPipeline loads too; returns what of the sampling settings is not in it.

    Args:
        settings: the arguments of `UNet`.
        weights: the state_dict of UNet(**settings).
        diffusion, sampling: sections of the configuration, dumped.
        schedule: of the process.
        card: README.md.

    Raises DDPMError naming every setting that diffusers cannot express, before anything is written.
    """
    from safetensors.torch import save

    unet = unet_config(settings)
    scheduler, lost = scheduler_config(diffusion, sampling, schedule)
    theirs = unet_weights_to(weights, settings)
    content = save({name: value.contiguous() for name, value in theirs.items()}, metadata={"format": "pt"})
    version = {"_diffusers_version": WRITTEN_FOR}
    with atomic_write(folder / "unet" / "diffusion_pytorch_model.safetensors") as file:
        file.write(content)
    write_json(folder / "unet" / "config.json", _sorted(unet | version))
    write_json(folder / "scheduler" / "scheduler_config.json", _sorted(scheduler | version))
    write_text(folder / "README.md", card)
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "DDIMPipeline" if sampling["sampler"] == "ddim" else "DDPMPipeline",
            **version,
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
    )
    return lost


def _sorted(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(config.items()))


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises CheckpointError naming it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found {type(content).__name__}, expected an object of fields")
    return content


def _place(folder: Path, part: str, name: str) -> Path:
    """Where a part's file lies: in its own folder, or flat. Raises CheckpointError."""
    for path in (folder / part / name, folder / name):
        if path.is_file():
            return path
    raise CheckpointError(f"{folder}: has neither {part}/{name} nor {name}, as a folder of a diffusers pipeline has")


def _weights(folder: Path) -> dict[str, Tensor]:
    """The U-Net's weights, from safetensors before pickled ones."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    stem = "diffusion_pytorch_model"
    places = [folder / "unet", folder]
    for place in places:
        path = place / f"{stem}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: cannot be read (damaged or not safetensors): {error}") from error
    for place in places:
        path = place / f"{stem}.bin"
        if path.is_file():
            content = load_tensors(path, "weights")
            if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
                raise CheckpointError(f"{path}: holds no weights by name")
            return content
    raise CheckpointError(
        f"{folder}: has no {stem}.safetensors or {stem}.bin, in unet/ or beside it (weights in several parts, and "
        "variants such as fp16, are not read)"
    )
