"""The house has floors, and imports go down only; names are what they say; importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm

ROOT = Path(ddpm.__file__).parent
FLOORS = [
    {
        "choices",
        "crop",
        "errors",
        "files",
        "interrupts",
        "schedule",
        "gaussian",
        "images",
        "charts",
        "noise",
        "device",
        "progress",
        "shards",
        "ops",
    },
    {"conditioning", "diffusion", "unet", "ema", "timesteps", "faults"},
    {"losses", "samplers", "likelihood"},
    {"data", "config", "checkpoint", "manifest", "model_file", "distributed", "sharding", "interop"},
    {"training_loop", "classes", "generate", "shipped", "edits", "cost", "speed", "evaluate", "paper", "play"},
    {
        "run",
        "kept",
        "previews",
        "monitors",
        "memory",
        "tracking",
        "trackers",
        "commands",
        "cli",
        "lesson",
        "demo",
        "app",
        "__init__",
        "__main__",
    },
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """The rooms of the package that a file imports, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ddpm":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ddpm.")}
    return rooms


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    room = _room(path)
    assert room in FLOOR, f"{room} has no floor: add it to FLOORS where it belongs"
    for other in _imports(path) - {room}:
        assert FLOOR[other] <= FLOOR[room], f"{room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"


def test_floor_mates_do_not_import_each_other_in_circles() -> None:
    edges = {(_room(p), other) for p in FILES for other in _imports(p) if other != _room(p)}
    for a, b in edges:
        assert (b, a) not in edges, f"{a} and {b} import each other"


def test_no_module_carries_the_name_of_a_public_function() -> None:
    rooms = {_room(p) for p in FILES}
    assert not rooms & {name for name in ddpm.__all__ if name[0].islower()}


def test_public_names_exist_and_are_described() -> None:
    for name in ddpm.__all__:
        assert getattr(ddpm, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        _ = ddpm.nothing


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'numpy', 'sklearn', 'PIL', 'pydantic', 'tqdm', 'tensorboard'}"
    code = f"import ddpm, ddpm.cli, sys; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
