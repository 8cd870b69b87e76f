"""`ddpm paper NAME`: the paper's tables and figures.

A table or figure is one file, `ddpm/paper/<module>.py`, with one function

    def make(source: Path, out: Path, *, <its options>) -> Made

and one entry in ENTRIES below. `source` is the checkpoint's path, or the configuration's as given
(`ddpm.config.load_config` finds it). Of the options in OPTIONS, each entry names those that its
`make` takes; the command has no others, so none is without effect. An option that is not given is
not passed: its default is `make`'s own. An entry that `trains` is also passed `train`, which is
`ddpm.run.train`: the floor of `paper` lies below it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ddpm.commands.arguments import Commands, add_device, add_set, natural, positive


@dataclass(frozen=True)
class Entry:
    """A table or figure, described without importing it."""

    takes: Literal["checkpoint", "config"]
    about: str
    options: tuple[str, ...]
    """Keys of OPTIONS."""
    module: str | None = None
    """File in `ddpm/paper/`; None: named as the entry is."""
    trains: bool = False


_MODEL = ("seed", "quick", "device")

ENTRIES = {
    "table2": Entry(
        "config",
        "Table 2: trains each row of the ablation (parameterisation, objective, variance) and compares them",
        ("overrides", "steps", "images", "samples", "seed", "quick", "device"),
        trains=True,
    ),
    "table1": Entry(
        "checkpoint",
        "Table 1: IS, FID and likelihood, with the paper's rows beside",
        ("images", "timesteps", "samples", "steps", "data_root", *_MODEL),
    ),
    "fig5": Entry(
        "checkpoint",
        "Figure 5: rate and distortion against reverse-process time",
        ("images", "timesteps", "data_root", *_MODEL),
    ),
    "table4": Entry(
        "checkpoint",
        "Table 4: rate and distortion, in the paper's columns",
        ("images", "timesteps", "data_root", *_MODEL),
    ),
    "fig6": Entry("checkpoint", "Figure 6: estimates of x_0 along the reverse process", ("samples", "steps", *_MODEL)),
    "fig7": Entry("checkpoint", "Figure 7: samples that share x_t, for several t", ("samples", "steps", *_MODEL)),
    "fig8": Entry(
        "checkpoint",
        "Figure 8: pairs of real images interpolated in latent space",
        ("images", "steps", "data_root", *_MODEL),
    ),
    "fig9": Entry(
        "checkpoint",
        "Figure 9: one pair interpolated after fewer and fewer noising steps",
        ("steps", "data_root", *_MODEL),
    ),
    "fig10": Entry(
        "checkpoint",
        "Figure 10: quality of the estimates of x_0 against time",
        ("samples", "steps", "data_root", *_MODEL),
    ),
    "neighbours": Entry(
        "checkpoint",
        "Figures 12 and 15: nearest training images of samples, and the share of near-copies",
        ("samples", "steps", "data_root", *_MODEL),
    ),
    "forward": Entry(
        "config",
        "Figure 2's forward half: images along the noising chain, with their signal-to-noise ratios",
        ("overrides", "images", "seed", "data_root"),
    ),
}


def _option(flag: str, **settings: Any) -> Callable[[argparse.ArgumentParser], object]:
    return lambda parser: parser.add_argument(flag, **settings)


OPTIONS: dict[str, Callable[[argparse.ArgumentParser], object]] = {
    "overrides": add_set,
    "steps": _option("--steps", type=positive, metavar="N", help="training steps of each row; sampling steps"),
    "timesteps": _option(
        "--timesteps", type=positive, metavar="K", help="estimate from about K of the T timesteps (default: all)"
    ),
    "data_root": _option("--data-root", metavar="DIR", help="where the data lie (default: where they lay in training)"),
    "images": _option("--images", type=positive, metavar="N", help="images to evaluate on"),
    "samples": _option("--samples", type=positive, metavar="N", help="images to sample"),
    "seed": _option("--seed", type=natural, metavar="S", help="everything random is a function of this"),
    "quick": _option("--quick", action="store_true", help="fewer images and steps: minutes on two CPU cores"),
    "device": add_device,
}


def add(commands: Commands) -> None:
    paper = commands.add_parser("paper", help="make a table or figure of the paper")
    names = paper.add_subparsers(metavar="NAME", required=True)
    for name, entry in ENTRIES.items():
        parser = names.add_parser(name, help=entry.about, description=entry.about)
        parser.add_argument("source", type=Path, metavar=entry.takes.upper())
        parser.add_argument("--out", type=Path, metavar="DIR", help="default: paper/NAME in the run's folder")
        parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
        for option in entry.options:
            OPTIONS[option](parser)
        parser.set_defaults(command=_run, name=name)


def _run(options: argparse.Namespace) -> None:
    from importlib import import_module

    entry = ENTRIES[options.name]
    values = {key: getattr(options, key) for key in entry.options}
    given = {key: value for key, value in values.items() if value is not None and value is not False and value != []}
    if "device" in entry.options:
        from ddpm.device import choose_device, limit_memory

        given["device"] = choose_device(options.device)
        limit_memory(given["device"])
    if entry.trains:
        from ddpm.run import train

        given["train"] = train
    out = options.out or _default_folder(entry, options.source) / "paper" / options.name
    made = import_module(f"ddpm.paper.{entry.module or options.name}").make(options.source, out, **given)
    if options.json:
        print(json.dumps({"files": [str(path) for path in made.files], **made.numbers}))
        return
    print(made.text)
    print("written    " + ", ".join(str(path) for path in made.files))


def _default_folder(entry: Entry, source: Path) -> Path:
    """The run's own folder."""
    if entry.takes == "checkpoint":
        return source.parent
    from ddpm.run import folder_of

    return folder_of(source)
