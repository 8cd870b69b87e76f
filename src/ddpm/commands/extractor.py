"""`ddpm extractor train|info`: the small digit classifier in whose features samples are compared."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddpm.commands.arguments import Commands, add_device, natural, positive

NEEDED = 0.99
"""Accuracy on the test images below which an extractor is not to be trusted."""


def add(commands: Commands) -> None:
    extractor = commands.add_parser("extractor", help="the digit extractor that distances are measured with")
    actions = extractor.add_subparsers(metavar="ACTION", required=True)
    train = actions.add_parser("train", help="train one on MNIST (a few minutes on two CPU cores)")
    train.add_argument("--data-root", metavar="DIR", help="where MNIST lies (default: DDPM_DATA_ROOT, else a download)")
    train.add_argument("--out", type=Path, default=Path("digits.safetensors"), metavar="FILE")
    train.add_argument("--epochs", type=positive, metavar="N", help="default 4")
    train.add_argument("--seed", type=natural, metavar="S", help="of weights, order and shifts (default 0)")
    train.add_argument("--json", action="store_true", help="print as JSON")
    add_device(train)
    train.set_defaults(command=_train)
    info = actions.add_parser("info", help="recipe, test accuracy and hash of one")
    info.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: the one that ships with ddpm")
    info.add_argument("--json", action="store_true", help="print as JSON")
    info.set_defaults(command=_info)


def _train(options: argparse.Namespace) -> None:
    from ddpm.device import choose_device, limit_memory
    from ddpm.evaluate.extractors import digits, training

    device = choose_device(options.device)
    limit_memory(device)
    changes = {"epochs": options.epochs, "seed": options.seed}
    recipe = training.Recipe(**{key: value for key, value in changes.items() if value is not None})
    quiet = options.json
    images, test = (training.mnist(s, options.data_root, progress=not quiet) for s in ("train", "test"))
    network, facts = training.train(images, test, recipe, device, progress=not quiet)
    digits.save(options.out, network, facts)
    _show(options.out, as_json=quiet)


def _info(options: argparse.Namespace) -> None:
    from ddpm.evaluate.extractors.digits import SHIPPED

    _show(options.file or SHIPPED, as_json=options.json)


def _show(path: Path, *, as_json: bool) -> None:
    from ddpm.evaluate.extractors.digits import FEATURES, TRANSFORM, read_file

    _, facts, sha256 = read_file(path)
    shown: dict[str, Any] = {"file": str(path), "sha256": sha256, "bytes": path.stat().st_size, "features": FEATURES}
    shown |= {"transform": TRANSFORM, **asdict(facts)}
    if as_json:
        print(json.dumps(shown))
        return
    for name, value in shown.items():
        print(f"{name:14}{value:.2%}" if name == "accuracy" else f"{name:14}{value}")
    if facts.accuracy < NEEDED:
        print(f"Below {NEEDED:.0%}: too weak to judge samples by; train it for longer (--epochs).")
