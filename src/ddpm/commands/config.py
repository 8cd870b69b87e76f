"""`ddpm config`."""

from __future__ import annotations

import argparse
import json

from ddpm.commands.arguments import Commands, add_set, duration, shown


def add(commands: Commands) -> None:
    config = commands.add_parser("config", help="show resolved settings, parameters and cost; trains nothing")
    config.add_argument("config", metavar="CONFIG")
    add_set(config)
    config.add_argument("--json", action="store_true", help="print as JSON")
    config.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from ddpm.config import flatten, load_config_with_origins, plain
    from ddpm.cost import cost_of
    from ddpm.run import folder_of

    loaded = load_config_with_origins(options.config, options.overrides)
    cost = cost_of(loaded.config)
    if options.json:
        print(json.dumps({"config": plain(loaded.config), "origins": dict(loaded.origins), **cost._asdict()}))
        return
    print(f"{loaded.path}")
    settings = flatten(loaded.config)
    width = max(map(len, settings))
    for key, value in settings.items():
        print(f"  {key:{width}}  {shown(value):24}  {loaded.origins.get(key, 'default')}")
    print(f"run folder            {folder_of(options.config)}")
    print(f"parameters            {cost.parameters:,}")
    print(f"one network call      {cost.gflop_per_image:.3f} GFLOP an image")
    if cost.train_pflop is not None:
        times = ", ".join(f"{duration(cost.train_pflop * 1e15 / speed)} on {name}" for name, speed in _SPEEDS)
        print(f"training              {cost.images:,} images, {cost.train_pflop:.3g} PFLOP: about {times}")


# Operations a second that a training step of such networks reaches; the first measured on a Xeon without AMX.
_SPEEDS = (("two CPU cores", 1.5e11), ("a GPU that gives 30 TFLOP/s", 3e13))
