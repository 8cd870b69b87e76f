"""`ddpm info`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ddpm.commands.arguments import Commands, add_model, model_path, shown


def add(commands: Commands) -> None:
    info = commands.add_parser("info", help="what a checkpoint holds")
    add_model(info)
    info.add_argument("--json", action="store_true", help="print as JSON")
    info.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from ddpm import checkpoint, model_file
    from ddpm.config import plain, to_yaml
    from ddpm.generate import file_sha256

    path = model_path(options)
    saved: checkpoint.Checkpoint | model_file.ModelFile
    own: dict[str, object]
    if model_file.is_model_file(path):
        saved = model_file.read(path)
        weights, own = saved.weights, {"stored_in": saved.storage, "card": saved.card or None}
    else:
        saved = checkpoint.load(path)
        weights, own = saved.ema, {"precision": saved.precision}
    facts: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "step": saved.step,
        "parameters": sum(value.numel() for value in weights.values()),
        **own,
        "training_images": saved.data.count,
        "data_sha256": saved.data.fingerprint,
        "classes": list(saved.data.class_names),
        "crop": saved.data.crop and [*saved.data.crop],
    }
    if options.json:
        print(json.dumps(facts | {"config": plain(saved.config)}))
        return
    for key, value in facts.items():
        print(f"{key:16} {f'{value:,}' if isinstance(value, int) else shown(value)}")
    print("config")
    print("".join(f"  {line}\n" for line in to_yaml(saved.config).splitlines()), end="")
