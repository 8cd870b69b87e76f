"""`ddpm info`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ddpm.commands.arguments import Commands, shown


def add(commands: Commands) -> None:
    info = commands.add_parser("info", help="what a checkpoint holds")
    info.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    info.add_argument("--json", action="store_true", help="print as JSON")
    info.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from ddpm import checkpoint
    from ddpm.config import plain, to_yaml
    from ddpm.generate import file_sha256

    saved = checkpoint.load(options.checkpoint)
    facts = {
        "file": str(options.checkpoint),
        "bytes": options.checkpoint.stat().st_size,
        "sha256": file_sha256(options.checkpoint),
        "step": saved.step,
        "parameters": sum(value.numel() for value in saved.ema.values()),
        "precision": saved.precision,
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
