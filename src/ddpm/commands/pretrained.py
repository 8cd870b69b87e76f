"""`ddpm pretrained list | card | pack`: the models that come with the package, and how one is made."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddpm.commands.arguments import Commands

UNMEASURED = "to be measured"
"""What a model card says in the place of a figure."""
LIMIT = 12_000_000
"""Bytes of a model that comes with the package, at most."""


def add(commands: Commands) -> None:
    pretrained = commands.add_parser("pretrained", help="the models that come with ddpm")
    actions = pretrained.add_subparsers(metavar="ACTION", required=True)
    names = actions.add_parser("list", help="their names")
    names.set_defaults(command=_list)
    card = actions.add_parser("card", help="the model card of one: data, recipe, figures, licence, limits")
    card.add_argument("name", metavar="NAME")
    card.set_defaults(command=_card)
    pack = actions.add_parser("pack", help="a checkpoint's EMA weights alone, small, with configuration and model card")
    pack.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="or a file that was packed before")
    pack.add_argument("--card", type=Path, required=True, metavar="FILE", help="the model card, Markdown")
    pack.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    pack.add_argument(
        "--storage",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="what the weights are stored in (default float16)",
    )
    pack.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="sampling.KEY=VALUE",
        dest="overrides",
        help="how it samples unless told otherwise (repeatable; default of sampling.classes: random)",
    )
    pack.set_defaults(command=_pack)


def _list(options: argparse.Namespace) -> None:
    from ddpm.shipped import FOLDER, MODELS

    for name, shipped in MODELS.items():
        there = "" if (FOLDER / shipped.file).is_file() else " (its weights are not in this installation)"
        print(f"{name:12} {shipped.about}{there}")


def _card(options: argparse.Namespace) -> None:
    from ddpm import model_file
    from ddpm.shipped import path_of

    print(model_file.read(path_of(options.name)).card.rstrip())


def _pack(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from ddpm import checkpoint, model_file
    from ddpm.errors import UsageError
    from ddpm.generate import file_sha256

    if not model_file.is_model_file(options.out):
        raise UsageError(f"--out: {options.out}: expected a name that ends in {model_file.SUFFIX}")
    try:
        card = options.card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--card: {options.card}: cannot be read: {error}") from error
    if model_file.is_model_file(options.checkpoint):
        made = replace(model_file.read(options.checkpoint), storage=options.storage, card=card)
    else:
        made = model_file.from_checkpoint(checkpoint.load(options.checkpoint), storage=options.storage, card=card)
    made = replace(made, config=_sampled(made.config, options.overrides))
    model_file.write(options.out, made)
    size = options.out.stat().st_size
    print(f"written    {options.out}: {size:,} bytes, {made.storage}, step {made.step:,}")
    print(f"SHA-256    {file_sha256(options.out)}")
    if unmeasured := card.count(UNMEASURED):
        places = "1 place" if unmeasured == 1 else f"{unmeasured} places"
        print(f"unfinished the card says '{UNMEASURED}' in {places}")
    if size > LIMIT:
        print(f"too large to come with the package, whose models have at most {LIMIT:,} bytes")


def _sampled(config: Any, overrides: list[str]) -> Any:
    """The configuration with other sampling settings, all else as it was trained."""
    from ddpm.config import override_values, parse_config, plain
    from ddpm.errors import UsageError

    if strange := [each for each in overrides if not each.startswith("sampling.")]:
        raise UsageError(f"--set {strange[0]}: the model is trained; what can be set is sampling.KEY=VALUE")
    values = plain(config)
    if config.network.classes and config.sampling.classes is None:
        values["sampling"]["classes"] = "random"
    override_values(values, overrides)
    return parse_config(values, source="--set")
