"""The models that come with the package: `ddpm sample --pretrained NAME`, `ddpm.pretrained(NAME)`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.errors import DDPMError, UsageError
from ddpm.generate import Model, file_sha256, load

FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Shipped:
    """A model's file and what it is; its card is within."""

    file: str
    """Name in FOLDER; made by `ddpm pretrained pack`."""
    sha256: str
    about: str


MODELS = {
    "mnist": Shipped(
        "mnist.safetensors",
        "36925dd812ad871993676fbf7e49304c225777d1e6617280afdcd35f88a20845",
        "handwritten digits, 28x28, told which",
    ),
}


def pretrained(name: str, **settings: Any) -> Model:
    """A model that comes with the package, ready to sample.

    Args:
        name: "mnist".
        settings: of `load`: precision, device.

    Raises UsageError for an unknown name, DDPMError for a damaged or incomplete package.
    """
    return load(path_of(name), **settings)


def path_of(name: str) -> Path:
    """The file of a model that comes with the package, checked. Raises as `pretrained` does."""
    if name not in MODELS:
        raise UsageError(f"--pretrained: found {name!r}; the models that come with ddpm: {', '.join(MODELS)}")
    path = FOLDER / MODELS[name].file
    if not path.is_file():
        raise DDPMError(f"{path}: the weights of the model {name} are not in this installation of ddpm")
    found = file_sha256(path)
    if found != MODELS[name].sha256:
        raise DDPMError(
            f"{path}: SHA-256 {found}, expected {MODELS[name].sha256}: the package is damaged; install it again"
        )
    return path


def name_of(path: Path) -> str | None:
    """The name of the model whose file a path is; None: it does not come with the package."""
    if path.parent != FOLDER:
        return None
    return next((name for name, shipped in MODELS.items() if shipped.file == path.name), None)
