"""Models from elsewhere as checkpoints of ours: to sample, evaluate, and fine-tune from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.checkpoint import FORMAT, Checkpoint, check_weights
from ddpm.config import Config, parse_config, parse_override
from ddpm.errors import CheckpointError, UsageError
from ddpm.interop import improved, xdiffusion
from ddpm.interop.bare import bare_checkpoint, read_bare
from ddpm.interop.folder import is_pipeline, read_folder
from ddpm.interop.foreign import Foreign, load_tensors
from ddpm.interop.hub import BARE
from ddpm.interop.strict import shapes, unet_arguments


class Adopted(NamedTuple):
    """A checkpoint, and where it is from."""

    checkpoint: Checkpoint
    kind: str
    """Whose format it was."""
    assumed: Mapping[str, Any]
    """Settings that the source does not say and nobody gave: by dotted key, what was taken."""


def adopt(path: Path, overrides: Sequence[str] = ()) -> Adopted:
    """Read a foreign file or folder.

    Args:
        path: a folder of a diffusers pipeline, a checkpoint of xdiffusion, weights of improved-diffusion, or a
            safetensors file of ours.
        overrides: settings as "section.key=value": of the data, of training and of sampling; of the network and the
            process those that the source does not say.

    Raises:
        CheckpointError: absent, damaged, or none of these.
        UsageError: a setting that contradicts the source, or one that must be given.
        DDPMError: the model has what ours cannot express; each such field is named.
    """
    values = dict(parse_override(override) for override in overrides)
    if path.is_dir():
        if (path / BARE).is_file():
            return _own(read_bare(path / BARE), values, path / BARE)
        if not is_pipeline(path):
            raise CheckpointError(f"{path}: is no folder of a diffusers pipeline: it has no model_index.json")
        return _adopted(read_folder(path), values, path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        return _own(read_bare(path), values, path)
    content = load_tensors(path, "a checkpoint")
    if xdiffusion.is_checkpoint(content):
        return _adopted(xdiffusion.read_checkpoint(content), values, path)
    if improved.is_state_dict(content):
        return _adopted(_read_improved(content, values, path), values, path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        raise UsageError(f"{path}: is a checkpoint of ddpm already; there is nothing to import")
    found = sorted(map(str, content))[:6] if isinstance(content, dict) else type(content).__name__
    raise CheckpointError(
        f"{path}: is neither a checkpoint of xdiffusion nor weights of improved-diffusion: found {found}"
    )


def _read_improved(content: Mapping[str, Any], values: dict[str, Any], path: Path) -> Foreign:
    """The network, with what its weights are silent about: given, or as improved-diffusion's scripts have it."""
    side = values.get("data.image_size")
    size = (side, side) if isinstance(side, int) else tuple(side) if isinstance(side, list) else ()
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise UsageError(
            f"{path}: weights of improved-diffusion do not say how large the images are: give "
            "--set data.image_size=N. Give also what its flags said, where they differ from its defaults: "
            f"{', '.join(key for key in improved.UNSAID[1:])}"
        )
    heads = values.get("network.heads", improved.HEADS)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise UsageError(f"--set network.heads: found {heads!r}, expected a whole number, 1 or more")
    T = values.get("diffusion.timesteps", 1000)
    assumed: dict[str, Any] = {"network.heads": heads, "diffusion.timesteps": T, "diffusion.schedule": "linear"}
    if isinstance(T, int) and T > 0 and T != 1000:
        assumed["network.time_scale"] = 1000 / T  # its rescale_timesteps
        if values.get("diffusion.schedule", "linear") == "linear":  # which it scales as well
            assumed |= {"diffusion.beta_start": 1e-4 * 1000 / T, "diffusion.beta_end": min(0.02 * 1000 / T, 0.999)}
    foreign = improved.read_weights(content, size=size, heads=heads)
    open_keys = (*foreign.unsaid, "diffusion.beta_start", "diffusion.beta_end")
    return foreign._replace(
        assumed={key: value for key, value in assumed.items() if key not in values}, unsaid=open_keys
    )


def _adopted(foreign: Foreign, given: Mapping[str, Any], path: Path) -> Adopted:
    config = config_of(foreign, given, path)
    weights = dict(foreign.weights)
    check_weights(weights, shapes(unet_arguments(config)), str(path))
    checkpoint = bare_checkpoint(weights, config, step=foreign.step)
    return Adopted(checkpoint, foreign.kind, foreign.assumed)


def config_of(foreign: Foreign, given: Mapping[str, Any], path: Path) -> Config:
    """The configuration of a foreign model: what it says, then what was given or assumed.

    Raises UsageError for a setting that contradicts it, ConfigError for values that ours has no room for.
    """
    height, width = foreign.settings["size"]
    network = {k: v for k, v in foreign.settings.items() if k not in ("in_channels", "out_channels", "size")}
    values: dict[str, dict[str, Any]] = {
        # Nothing is known of the images it was trained on: they are the user's to name.
        "data": {
            "source": "folder",
            "image_size": height if height == width else (height, width),
            "channels": foreign.settings["in_channels"],
        },
        "diffusion": dict(foreign.diffusion),
        "network": network,
        "training": {"steps": max(1, foreign.step)},
        "sampling": dict(foreign.sampling),
    }
    if foreign.diffusion.get("variance") == "learned_range":
        values["training"]["loss"] = "hybrid"
    said = {f"{section}.{key}" for section in ("diffusion", "network") for key in values[section]}
    said |= {"data.image_size", "data.channels"}
    for key, value in {**foreign.assumed, **given}.items():
        section, _, name = key.partition(".")
        if key in said and key not in foreign.unsaid and values[section][name] != value:
            raise UsageError(f"--set {key}: {path} says {values[section][name]!r}; it cannot be changed")
        if section in ("diffusion", "network") and key not in said and key not in foreign.unsaid:
            raise UsageError(f"--set {key}: is settled by {path}; leave it out")
        values.setdefault(section, {})[name] = value
    if "training.steps" not in given and "training.epochs" in given:
        del values["training"]["steps"]
    return parse_config(values, source=f"{path} (as a configuration)")


def _own(checkpoint: Checkpoint, given: Mapping[str, Any], path: Path) -> Adopted:
    if given:
        raise UsageError(f"--set: {path} holds its whole configuration; leave {', '.join(given)} out")
    return Adopted(checkpoint, "ddpm's safetensors", {})
