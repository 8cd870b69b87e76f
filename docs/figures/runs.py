"""The trained models that the figures look at, each trained once and kept in `output/figures`."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from ddpm.config import Config, load_config
from ddpm.generate import Model, load
from ddpm.run import train

RUNS = Path("output") / "figures"


def digits_config(*changes: str) -> Config:
    """The demo's model with a tenth of the scans held out and previews on the way."""
    own = ["data.held_out=0.1", "training.save_every=550", "training.preview_every=275", "training.log_every=10"]
    return load_config("image/digits/ddpm_8x8", [*own, *changes])


def trained(name: str, config: Config) -> Path:
    """The last checkpoint of the run called `name`, trained now unless it is there."""
    return train(config, RUNS / name).checkpoint


@cache
def digits() -> Model:
    """The digits model of the lesson: 2,200 steps of 64 scans, about two minutes on two cores."""
    return load(trained("digits", digits_config()), precision="float32")


def given() -> Path | None:
    """A checkpoint named by the variable CHECKPOINT, for the figures that a larger model makes better."""
    name = os.environ.get("CHECKPOINT")
    return Path(name) if name else None
