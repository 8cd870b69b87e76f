"""Chapter 11: what goes wrong, made to go wrong on purpose."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache

import numpy as np
import torch

from ddpm import data, ema, samplers
from ddpm.data import ImageSet
from ddpm.device import choose_device
from ddpm.evaluate.neighbours import near_copies, nearest
from ddpm.images import to_arrays, unpacked
from ddpm.noise import ImageNoise
from ddpm.paper.sheet import sheet
from ddpm.schedule import pairs, spaced_steps
from ddpm.training_loop import build_diffusion, new_state, training_steps
from docs.figures.draw import Drawn
from docs.figures.runs import digits, digits_config

SHOWN = 12
STEPS = 100


def faults() -> Drawn:
    """Rows of samples: a good model, and faults that each have one cause."""
    model, schedule = digits(), digits().diffusion.schedule
    slow, quick = _averages()
    late = pairs([t for t in range(1, 101)])  # 100 steps, but from t = 100: the classic mistake
    small = dataclasses.replace(model.diffusion, variance="fixed_small")
    large = dataclasses.replace(model.diffusion, variance="fixed_large")
    every = spaced_steps(schedule.T, STEPS, "linspace")
    rows = {
        "good": _draw(small, model.network, every),
        "EMA 0.9999\nafter 150 steps": _draw(small, slow, every),
        "the same run,\nEMA warmed up": _draw(small, quick, every),
        "noise put\nin at t = 100": _draw(small, model.network, late),
        "beta as variance\nof 10 steps": _draw(large, model.network, spaced_steps(schedule.T, 10, "linspace")),
    }
    page = sheet(
        [[(image, "") for image in images] for images in rows.values()],
        title="Faults and how they look",
        rows=list(rows),
        note="The digits model and a run of 150 steps of the same configuration; seed 0, not selected.",
    )
    contrast = {name.replace("\n", " "): round(float(images.std()), 1) for name, images in rows.items()}
    return Drawn(page, {"standard deviation of the levels": contrast})


@cache
def _averages() -> tuple[torch.nn.Module, torch.nn.Module]:
    """The averages of one short run: with a decay of 0.9999 from the first step, and with ours."""
    config = digits_config("training.steps=150", "training.ema_decay=0.9999")
    state = new_state(config, device=choose_device("cpu"))
    slow = copy.deepcopy(state.ema)
    for _ in training_steps(config, state, data.load(config.data, "train", progress=False)):
        ema.update(slow, state.network, 0.9999)
    return slow, state.ema


def copies() -> Drawn:
    """A model of twenty scans beside a model of 1,617: samples, each with the nearest scan it was trained on."""
    config = digits_config("training.steps=900", "training.batch_size=20")
    whole, unseen = (data.load(config.data, split, progress=False) for split in ("train", "held_out"))
    few = dataclasses.replace(whole, index=np.sort(_index(whole)[:20]), labels=None)
    state = new_state(config, device=choose_device("cpu"))
    for _ in training_steps(config, state, few):
        pass
    small = build_diffusion(config)
    every = spaced_steps(small.schedule.T, STEPS, "linspace")
    cells, rows, shares = [], [], {}
    for name, images, drawn in (
        ("20 scans", few, _draw(small, state.ema, every, 60)),
        ("1,617 scans", whole, _draw(digits().diffusion, digits().network, every, 60)),
    ):
        known = unpacked(images.images)
        found = nearest(drawn, known)
        rare = near_copies(found.distances[:, 0], nearest(unpacked(unseen.images), known).distances[:, 0])
        shares[name] = {"near-copies": round(rare.share, 3), "median distance": round(_median(found.distances), 1)}
        cells += [
            [(image, "") for image in drawn[:SHOWN]],
            [(image, "") for image in known[found.indices[:SHOWN, 0]]],
        ]
        rows += [f"trained on\n{name}", "nearest scan"]
    page = sheet(
        cells,
        title="Memorising: samples, and below each the nearest scan of the training",
        rows=rows,
        note="900 steps of 20 scans; 2,200 steps of 64 out of 1,617. Seed 0, not selected; distances and shares of 60 "
        "samples are in the JSON beside this picture.",
    )
    return Drawn(page, shares)


def colour() -> Drawn:
    """Grey scans trained as RGB: colours come first and go with training."""
    changes = ["data.channels=3", "network.channels=16", "training.batch_size=32", "training.steps=600"]
    config = digits_config(*changes, "training.ema_decay=0.99")
    state, images = new_state(config, device=choose_device("cpu")), data.load(config.data, "train", progress=False)
    small, every = build_diffusion(config), spaced_steps(1000, STEPS, "linspace")
    rows, tints = {}, {}
    for step in training_steps(config, state, images):
        if step.step in (100, 200, 600):
            drawn = _draw(small, state.ema, every, channels=3)
            rows[f"step {step.step}"] = drawn
            mean = drawn.reshape(len(drawn), -1, 3).mean(1)
            tints[f"step {step.step}"] = round(float((mean.max(1) - mean.min(1)).mean()), 1)
    page = sheet(
        [[(image, "") for image in images] for images in rows.values()],
        title="A colour model of grey scans",
        rows=list(rows),
        note="The digits model with three channels and half its features, batch 32, seed 0, not selected.",
    )
    return Drawn(page, {"largest less smallest channel mean, of 255, averaged over the samples": tints})


def _draw(diffusion, net, steps, count: int = SHOWN, channels: int = 1) -> np.ndarray:  # type: ignore[no-untyped-def]
    noise = ImageNoise(0, range(count), (channels, 8, 8))
    *_, last = samplers.ancestral(diffusion, net, noise.start(), steps, noise=noise)
    return to_arrays(last.x)


def _index(images: ImageSet) -> np.ndarray:
    return np.arange(len(images)) if images.index is None else images.index


def _median(values: np.ndarray) -> float:
    return float(np.median(values[:, 0]))


FIGURES = {"11-faults": faults, "11-copies": copies, "11-colour": colour}
