"""A trained network alone: one safetensors file that holds its weights and all that sampling must know.

It cannot be trained on, for which a checkpoint is, but it is small, and nothing in it can run code. The tensors are
named as in the network's state dict. The metadata, texts all: `format` ("ddpm"), `config` (the whole configuration,
JSON), `weights` (ema or raw), `step`, `data` (JSON of `checkpoint.DataFacts`) and `card` (the model card, Markdown).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ddpm.checkpoint import Checkpoint, DataFacts
from ddpm.config import Config, parse_config, plain
from ddpm.errors import CheckpointError
from ddpm.files import atomic_write
from ddpm.images import Crop

SUFFIX = ".safetensors"
FORMAT = "ddpm"

Kind = Literal["ema", "raw"]
_KINDS: Mapping[str, Kind] = {"ema": "ema", "raw": "raw"}
Storage = Literal["float32", "float16", "bfloat16"]
"""What weights are stored in: 2.6 million of them take 10 MB, or 5 in one of the others."""


@dataclass(frozen=True)
class ModelFile:
    """What such a file holds."""

    config: Config
    data: DataFacts
    step: int
    """Training steps behind the weights."""
    weights: Mapping[str, Tensor]
    """float32, whatever they are stored in."""
    storage: str
    """What they are stored in."""
    card: str
    kind: Kind = "ema"
    """Which weights they are: the moving average or the raw ones."""


def is_model_file(path: Path) -> bool:
    """Whether a path is one by its name; otherwise it is taken for a checkpoint."""
    return path.suffix == SUFFIX


def without_paths(config: Config) -> Config:
    """A configuration that says nothing of the machine it was trained on."""
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": None}),
            "training": config.training.model_copy(update={"init_from": None}),
        }
    )


def from_checkpoint(saved: Checkpoint, *, storage: Storage, card: str = "", kind: Kind = "ema") -> ModelFile:
    """The weights of a checkpoint, rounded as they will be stored."""
    held = getattr(torch, storage)
    values = saved.ema if kind == "ema" else saved.network
    weights = {name: value.to(held).float() for name, value in values.items()}
    return ModelFile(without_paths(saved.config), saved.data, saved.step, weights, storage, card, kind)


def write(path: Path, model: ModelFile) -> None:
    """Write the file; the same model gives the same bytes."""
    from safetensors.torch import save

    kind = getattr(torch, model.storage)
    metadata = {
        "format": FORMAT,
        "config": json.dumps(plain(model.config)),
        "weights": model.kind,
        "step": str(model.step),
        "data": json.dumps(asdict(model.data)),
        "card": model.card,
    }
    tensors = {name: value.to(kind).contiguous() for name, value in model.weights.items()}
    with atomic_write(path) as file:
        file.write(_in_order(save(tensors, metadata)))


def _in_order(content: bytes) -> bytes:
    """The file with its metadata in order: the library's own varies from one process to the next."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of eight bytes
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def read(path: Path) -> ModelFile:
    """Read a file onto the CPU. Raises CheckpointError naming it: absent, damaged, or no model of ddpm."""
    metadata, stored = opened(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is not a model of ddpm (its metadata say format {metadata.get('format')!r}, expected {FORMAT!r})"
            "; a diffusers model is imported as a folder, with its config.json and scheduler_config.json"
        )
    try:
        config = parse_config(json.loads(metadata["config"]), source=f"{path} (its configuration)")
        said = metadata.get("data")
        # Files of other makers may say nothing of the data; the classes then go by their numbers.
        unsaid = DataFacts(0, "", tuple(map(str, range(config.network.classes or 0))))
        data = unsaid if said is None else data_facts(said)
        step, which = int(metadata["step"]), _KINDS[metadata.get("weights", "ema")]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its metadata lack or misstate {error}") from error
    storage = sorted({str(value.dtype).removeprefix("torch.") for value in stored.values()})
    weights = {name: value.float() for name, value in stored.items()}
    return ModelFile(config, data, step, weights, ", ".join(storage), metadata.get("card", ""), which)


def opened(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of any safetensors file, on the CPU. Raises CheckpointError naming it: absent, damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: cannot be read as a safetensors file (damaged or not safetensors): {reason}"
        ) from error


def data_facts(text: str) -> DataFacts:
    """The facts of the data, from their JSON. Raises ValueError, KeyError or TypeError if it is none."""
    said = json.loads(text)
    crop = said["crop"] and Crop(*said["crop"])
    return DataFacts(said["count"], said["fingerprint"], tuple(said["class_names"]), crop)
