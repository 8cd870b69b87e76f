"""`ddpm app`: a page to play with."""

from __future__ import annotations

import argparse
from pathlib import Path

from ddpm.commands.arguments import Commands, add_device, positive


def add(commands: Commands) -> None:
    app = commands.add_parser("app", help="a page on this machine to play with models, in the browser")
    app.add_argument(
        "checkpoints",
        type=Path,
        nargs="*",
        metavar="CHECKPOINT",
        help="models on offer (default: the latest of each run in output/), with those that come with ddpm",
    )
    app.add_argument("--port", type=positive, metavar="P", help="default: the first free one from 7860")
    add_device(app)
    app.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from ddpm import checkpoint
    from ddpm.app import launch
    from ddpm.device import choose_device, limit_memory
    from ddpm.play import Playground, found_in

    device = choose_device(options.device)
    limit_memory(device)
    for path in options.checkpoints:
        checkpoint.load(path)  # a wrong file is said here, not on the page
    launch(Playground(options.checkpoints or found_in(Path("output")), device), options.port)
