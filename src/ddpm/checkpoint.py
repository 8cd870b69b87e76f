"""A checkpoint: one `.pt` file of tensors and plain types, whole or absent.

It loads with `weights_only=True` (nothing in it can run code) and holds its configuration, so that
sampling needs the file alone.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, get_args

import torch
from torch import Tensor

from ddpm import manifest
from ddpm.config import Config, parse_config, plain
from ddpm.data.records import Position
from ddpm.device import Precision
from ddpm.errors import CheckpointError, DamagedError
from ddpm.faults import Faults
from ddpm.files import atomic_write
from ddpm.images import Crop
from ddpm.ops.select import Kernels

FORMAT = "ddpm-checkpoint"
VERSION = 2
READABLE = (1, 2)


@dataclass(frozen=True)
class DataFacts:
    """What sampling and evaluation must know of the training data."""

    count: int | None
    """Training images; None for a stream, which are not counted."""
    fingerprint: str
    """SHA-256 of the training images and labels; of a stream: of the names of its shards."""
    class_names: tuple[str, ...] = ()
    crop: Crop | None = None
    """Where the picture lies in the padded frame, if the data were padded."""

    @property
    def amount(self) -> str:
        """How many, in words."""
        return "a stream of images" if self.count is None else f"{self.count:,} images"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on from `step`."""

    step: int
    config: Config
    data: DataFacts
    precision: Precision
    """What training.precision resolved to when the run first started."""
    kernels: Kernels
    """What training.kernels resolved to then."""
    compiled: bool
    """What training.compile resolved to then."""
    network: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    """The optimiser's `state`: moments and counts of each parameter. Its other settings are the configuration's."""
    scaler: Mapping[str, Any]
    """State dict of float16's loss scaler; empty for other precisions."""
    loss_window: tuple[float, int]
    """Sum and number of the losses since the last row of metrics."""
    loss_history: Mapping[str, Tensor] = field(default_factory=dict)
    """What importance sampling of the timesteps goes by; empty where they are drawn uniformly."""
    faults: Faults = field(default_factory=Faults)
    """Steps skipped, and rollbacks."""
    stream: tuple[Position, ...] = ()
    """Where each of the processes had come to, if the images are streamed."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint: temporary file, flush, rename. Raises WriteError if the disk refuses."""
    data = asdict(checkpoint.data)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "step": checkpoint.step,
        "config": plain(checkpoint.config),
        "data": data
        | {"class_names": list(data["class_names"]), "crop": checkpoint.data.crop and [*checkpoint.data.crop]},
        "precision": checkpoint.precision,
        "kernels": checkpoint.kernels,
        "compiled": checkpoint.compiled,
        "network": bare(checkpoint.network),
        "ema": bare(checkpoint.ema),
        "optimizer": dict(checkpoint.optimizer),
        "scaler": dict(checkpoint.scaler),
        "loss_window": [*checkpoint.loss_window],
        "loss_history": dict(checkpoint.loss_history),
        "faults": asdict(checkpoint.faults),
    }
    if checkpoint.stream:
        content["stream"] = [[*position] for position in checkpoint.stream]
    with atomic_write(path) as file:
        noting = _Noting(file)
        try:
            torch.save(content, noting)  # type: ignore[arg-type]
        except RuntimeError:
            # Whatever stops its writer reaches us as torch's own confusion about where the file is.
            if noting.error is None:
                raise
            raise noting.error from None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Where it is entered in its folder's manifest its SHA-256 is compared, elsewhere the checksums inside the file are.

    Raises:
        DamagedError: the file is empty, truncated, altered, or another program's.
        CheckpointError: no such file, unreadable, or from a newer version.
        ConfigError: its configuration is not one of this version's.
    """
    if not path.is_file():
        raise CheckpointError(_absent(path))
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DamagedError(f"{path}: is not a checkpoint of ddpm (no format mark {FORMAT!r} in it)")
    version = content.get("version")
    if version not in READABLE:
        raise CheckpointError(f"{path}: has format version {version!r}; this ddpm reads versions up to {VERSION}")
    values = {"stream": [], **(_SINCE_VERSION_2 if version == 1 else {}), **content}
    for name, sound in _SOUND.items():
        if name not in values or not sound(values[name]):
            raise DamagedError(f"{path}: lacks or misstates {name!r}")
    data = values["data"]
    return Checkpoint(
        step=values["step"],
        config=parse_config(values["config"], source=f"{path} (its configuration)"),
        data=DataFacts(
            data["count"], data["fingerprint"], tuple(data["class_names"]), data["crop"] and Crop(*data["crop"])
        ),
        precision=values["precision"],
        kernels=values["kernels"],
        compiled=values["compiled"],
        network=values["network"],
        ema=values["ema"],
        optimizer=values["optimizer"],
        scaler=values["scaler"],
        loss_window=(values["loss_window"][0], values["loss_window"][1]),
        loss_history=values["loss_history"],
        faults=Faults(**values["faults"]),
        stream=tuple(Position(*position) for position in values["stream"]),
    )


def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the network's own names, without what torch.compile and DistributedDataParallel put into them."""
    return {bare_name(name): value for name, value in weights.items()}


def bare_name(name: str) -> str:
    """A weight's name without the marks of the wrappers around its network."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raises CheckpointError naming what is missing, unknown or of another shape."""
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = [
        f"  {name}: found {found.get(name, 'none')}, expected {expected.get(name, 'none')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        more = [f"  and {len(wrong) - 8} more"] if len(wrong) > 8 else []
        raise CheckpointError("\n".join([f"{source}: the weights do not fit the network", *wrong[:8], *more]))


def _read(path: Path) -> Any:
    """What a file holds: tensors and plain types, checked before anything is unpickled."""
    try:
        with path.open("rb") as file:
            if not manifest.verify(path):
                _check_archive(file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's remarks on files that are refused anyway
                return torch.load(file, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is None:  # of the content, not of the disk
            raise DamagedError(_unreadable(path, error)) from error
        reason = getattr(error, "strerror", None) or "out of memory"
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    except Exception as error:  # a damaged file can raise anything
        raise DamagedError(_unreadable(path, error)) from error


def _check_archive(file: IO[bytes]) -> None:
    """Raise ValueError unless every member is stored as it is, within the file, and has its checksum.

    torch checks no checksums, and would unpack a compressed member of any size.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("a member is compressed, which no checkpoint is")
            # MS-DOS's mark of a folder: torch's reader would take such a member for empty, whatever it holds.
            if any(member.external_attr & 0x10 for member in members):
                raise ValueError("a member is marked as a folder, which no checkpoint has")
            if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
                raise ValueError("its members are larger than the file")
            if broken := archive.testzip():
                raise ValueError(f"the checksum of {broken} is wrong")
    except zipfile.BadZipFile as error:
        raise ValueError(f"is no whole archive ({error})") from error
    finally:
        file.seek(0)


def _unreadable(path: Path, error: BaseException) -> str:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return f"{path}: cannot be read as a checkpoint (damaged, or not plain tensors): {reason}"


class _Noting:
    """A file that keeps the error of a write."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.error: BaseException | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _weights(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) and v.layout is torch.strided for k, v in value.items()
    )


def _facts(value: object) -> bool:
    match value:
        case {"count": count, "fingerprint": str(), "class_names": list(names), "crop": crop, **rest}:
            sound = crop is None or (isinstance(crop, list) and len(crop) == 4 and all(map(_natural, crop)))
            return (
                not rest
                and (count is None or _natural(count))
                and sound
                and all(isinstance(name, str) for name in names)
            )
    return False


def _window(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], float) and _natural(value[1])


def _faults(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == asdict(Faults()).keys() and all(map(_natural, value.values()))


def _positions(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list) and len(each) == 2 and all(map(_natural, each)) for each in value
    )


_SOUND: Mapping[str, Callable[[Any], bool]] = {
    "step": _natural,
    "config": lambda value: isinstance(value, dict),
    "data": _facts,
    "precision": lambda value: value in get_args(Precision),
    "kernels": lambda value: value in get_args(Kernels),
    "compiled": lambda value: isinstance(value, bool),
    "network": _weights,
    "ema": _weights,
    "optimizer": lambda value: isinstance(value, dict),
    "scaler": lambda value: isinstance(value, dict),
    "loss_window": _window,
    "loss_history": _weights,
    "faults": _faults,
    "stream": _positions,
}
"""What each item of a checkpoint must be."""

_SINCE_VERSION_2: Mapping[str, Any] = {
    "kernels": "plain",
    "compiled": False,
    "loss_history": {},
    "faults": asdict(Faults()),
}
"""What the items that version 1 could lack stood for then."""


def path_at(folder: Path, step: int) -> Path:
    """The file of the checkpoint at `step`."""
    return folder / f"diffusion-{step}.pt"


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest step first."""
    return sorted((path for path in folder.glob("diffusion-*.pt") if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step that the name of a run's checkpoint says."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


_NAME = re.compile(r"diffusion-(0|[1-9][0-9]{0,17})\.pt")


def _absent(path: Path) -> str:
    if path.is_dir():
        found = all_in(path)
        hint = f"; its latest checkpoint is {found[-1]}" if found else " without checkpoints in it"
        return f"{path}: is a folder, not a checkpoint{hint}"
    found = all_in(path.parent) if path.parent.is_dir() else []
    hint = f" There are: {', '.join(p.name for p in found)}" if found else " Train one with: ddpm train CONFIG"
    return f"{path}: no such checkpoint.{hint}"
