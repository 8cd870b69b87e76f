"""`ddpm extractor train` and `ddpm extractor info`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ddpm.commands.arguments import Commands, natural, positive


def add(commands: Commands) -> None:
    extractor = commands.add_parser("extractor", help="the classifier whose features judge digit samples")
    actions = extractor.add_subparsers(metavar="ACTION", required=True)
    train = actions.add_parser("train", help="train it on MNIST: minutes on two CPU cores")
    train.add_argument(
        "--out",
        type=Path,
        default=Path("digits.safetensors"),
        metavar="FILE",
        help="weights to write (default %(default)s)",
    )
    train.add_argument("--data-root", metavar="DIR", help="where MNIST lies (default: DDPM_DATA_ROOT, else a download)")
    train.add_argument("--epochs", type=positive, default=4, metavar="N", help="passes over the images (default 4)")
    train.add_argument("--seed", type=natural, default=0, metavar="S", help="of weights and order (default 0)")
    train.set_defaults(command=_train)
    info = actions.add_parser("info", help="what the shipped extractor, or a file of weights, is")
    info.add_argument("file", type=Path, nargs="?", metavar="FILE")
    info.add_argument("--json", action="store_true", help="print as JSON")
    info.set_defaults(command=_info)


def _train(options: argparse.Namespace) -> None:
    from ddpm.evaluate.extractor_training import train_extractor

    made = train_extractor(options.out, root=options.data_root, epochs=options.epochs, seed=options.seed)
    print(f"written    {made.path}, SHA-256 {made.sha256}")
    print(f"accuracy   {made.accuracy:.2%} of MNIST's test images")


def _info(options: argparse.Namespace) -> None:
    from safetensors import safe_open

    from ddpm.evaluate.extractor import METADATA, load_extractor, shipped

    extractor, path = load_extractor(options.file, device="cpu"), options.file or shipped()
    with safe_open(path, "pt") as file:
        made = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    facts = {
        "name": extractor.name,
        "file": str(path),
        "sha256": extractor.sha256,
        "parameters": sum(p.numel() for p in extractor.network.parameters()),
        "transform": extractor.transform,
        **made,
    }
    if options.json:
        print(json.dumps(facts))
        return
    for key, value in facts.items():
        print(f"{key:12} {f'{value:,}' if isinstance(value, int) else value}")
