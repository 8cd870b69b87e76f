"""`ddpm train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.commands.arguments import Commands, add_device, add_set

if TYPE_CHECKING:
    from ddpm.config import Config


def add(commands: Commands) -> None:
    train = commands.add_parser("train", help="train a model; the same command again continues it")
    train.add_argument("config", metavar="CONFIG", help="a YAML file or a shipped name such as image/mnist/ddpm_cpu")
    add_set(train)
    train.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: output/<path below configs/>)")
    train.add_argument("--fresh", action="store_true", help="start anew in a numbered folder; nothing is overwritten")
    train.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        dest="allow",
        help="let a continued run differ in this setting, e.g. training.learning_rate (repeatable)",
    )
    add_device(train)
    train.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from ddpm.config import load_config
    from ddpm.run import folder_of

    config = load_config(options.config, options.overrides)
    out = options.out or folder_of(options.config)
    train_command(config, out, fresh=options.fresh, allow=options.allow, device=options.device)


def train_command(config: Config, out: Path, *, device: str | None = None, **options: Any) -> None:
    """Train in a process of our own, whose memory may be limited to what there is."""
    from ddpm.device import choose_device, limit_memory
    from ddpm.run import train

    chosen = choose_device(device)
    limit_memory(chosen)
    train(config, out, device=chosen, **options)
