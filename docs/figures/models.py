"""Chapters 1, 3, 4 and 6 to 10: what the trained digits model does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ddpm import data, samplers
from ddpm.data import ImageSet
from ddpm.diffusion import Diffusion
from ddpm.evaluate.digits import judge
from ddpm.evaluate.nll import Likelihood, measure
from ddpm.generate import Model, load, sample
from ddpm.images import read_png, to_arrays, unpacked
from ddpm.likelihood import rmse_of_levels, strata
from ddpm.noise import ImageNoise, Purpose, rng
from ddpm.paper.sheet import sheet
from ddpm.schedule import spaced_steps
from docs.figures.draw import Drawn, charts, label
from docs.figures.runs import RUNS, digits, digits_config, given

JUDGED = 100
"""Samples of which a share is told."""


def reverse() -> Drawn:
    """Four samples of the model named by CHECKPOINT (or the digits model) on their way out of the noise."""
    path = given()
    model = load(path, precision="float32") if path else digits()
    T, shape = model.diffusion.schedule.T, (model.config.data.channels, *model.config.data.size)
    wanted = [round(T * share) for share in (1, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0)]
    noise = ImageNoise(0, range(4), shape, model.device)
    columns = [to_arrays(noise.start(), model.data.crop)]
    steps = spaced_steps(T)
    for state in samplers.ancestral(model.diffusion, model.network, noise.start(), steps, noise=noise):
        if int(state.t) in wanted:
            columns.append(to_arrays(state.x, model.data.crop))
    page = sheet(
        [[(column[i], "") for column in columns] for i in range(4)],
        title="Algorithm 2: four samples on their way out of the noise",
        columns=[f"t = {t}" for t in wanted],
        note=_words(model),
    )
    return Drawn(page, {"model": _words(model)})


@cache
def _likelihood() -> Likelihood:
    """The bound on 96 held-out scans, from 100 of the 1,000 timesteps."""
    return measure(digits().diffusion, digits().network, _held_out().take(np.arange(96)), parts=strata(1000, 100))


def _held_out() -> ImageSet:
    return data.load(digits_config().data, "held_out", progress=False)


def terms() -> Drawn:
    """L_{t-1} along time."""
    found = _likelihood()
    t = [part.start + (len(part) - 1) / 2 for part in found.parts]
    lengths = np.array([len(part) for part in found.parts])
    each = found.bound.bits[:, :-1].mean(0).numpy() / lengths

    def panel(axes: Any) -> None:
        axes.plot(t, each, marker="o", markersize=3, linewidth=1.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        label(axes, "one term of the bound", "t (the first is L_0)", "L_{t-1}, bits per dimension")

    numbers = {
        "L_T": found.prior.value,
        "L_1 to L_999": [found.transitions.value, found.transitions.error],
        "L_0": [found.decoder.value, found.decoder.error],
        "total": [found.total.value, found.total.error],
        "share of t <= 100 in the sum without L_0": float(
            found.bound.bits.mean(0).numpy()[1:-1][np.array(t[1:]) <= 100].sum() / found.transitions.value
        ),
    }
    note = f"96 held-out scans, 100 of the 1,000 timesteps; {_words(digits())}"
    return Drawn(charts(panel, note=note, width=6.4), numbers)


def errors() -> Drawn:
    """The squared error of epsilon along time, and of the x_0 that it amounts to."""
    found = _likelihood()
    t = np.array([part.start + (len(part) - 1) / 2 for part in found.parts])
    eps, x0 = found.bound.eps_mse.mean(0).numpy(), found.bound.x0_mse.mean(0).numpy()

    def panel(axes: Any) -> None:
        axes.plot(t, eps, label="epsilon: what L_simple averages", linewidth=1.8)
        axes.plot(t, x0, label="x_0: what one sees", linewidth=1.8)
        axes.set_yscale("log")
        label(axes, "mean squared error", "t", "error")

    at = {str(k): [round(float(np.interp(k, t, v)), 4) for v in (eps, x0)] for k in (10, 100, 500, 900)}
    note = f"96 held-out scans, estimates of x_0 clipped; {_words(digits())}"
    return Drawn(charts(panel, note=note, width=6.4), {"epsilon and x_0 at t": at})


def training() -> Drawn:
    """The run's loss, and the previews that it drew on the way."""
    digits()
    rows = [json.loads(line) for line in (RUNS / "digits" / "metrics.jsonl").read_text().splitlines()]
    loss = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    held = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]

    def panel(axes: Any) -> None:
        axes.plot(*zip(*loss, strict=True), label="training, ten steps each", linewidth=0.9)
        axes.plot(*zip(*held, strict=True), label="validation, EMA weights", linewidth=1.8, marker="o", markersize=3.5)
        axes.set_yscale("log")
        label(axes, "loss", "step", "L_simple")

    numbers = {
        "validation": {str(step): round(value, 4) for step, value in held},
        "training, mean of the last 200 steps": round(float(np.mean([v for _, v in loss[-20:]])), 4),
        "training, first 10 steps": round(loss[0][1], 4),
    }
    return Drawn(charts(panel, note=_words(digits()), width=7.6), numbers)


def previews() -> Drawn:
    """The run's own preview grids."""
    digits()
    steps = [275, 550, 1100, 2200]
    grids = [read_png(RUNS / "digits" / "samples" / f"step-{step}.png") for step in steps]
    page = sheet(
        [[(picture, "") for picture in grids]],
        title="The same sixteen noises after more and more training",
        columns=[f"step {step:,}" for step in steps],
        note=f"The previews of the run, 50 steps each, EMA weights; {_words(digits())}",
    )
    return Drawn(page, {"steps": steps})


def variance() -> Drawn:
    """The two variances of Section 3.2, with all steps and with few."""
    model = digits()
    sets = {
        (name, count): _draw(Diffusion(schedule=model.diffusion.schedule, variance=name), model, count)
        for count in (1000, 10)
        for name in ("fixed_small", "fixed_large")
    }
    scans = data.load(digits_config().data, "train", progress=False).images
    black = (scans == 0).all((0, 1))  # pixels on which nobody has ever written
    grey = [float(images[:, black, 0].mean()) for images in sets.values()]
    shares = _sure(list(sets.values()))
    found = {f"{name}, {count:,} steps": (s, g) for (name, count), s, g in zip(sets, shares, grey, strict=True)}
    page = sheet(
        [[(image, "") for image in images[:12]] for images in sets.values()],
        title="The same noise, the same network, two variances",
        rows=[words.replace(", ", "\n") for words in found],
        note=f"{JUDGED} samples each, of which the first are shown. {_words(model)}",
    )
    numbers = {
        words: {"surely a digit": share, "mean level where all scans are black": round(level, 2)}
        for words, (share, level) in found.items()
    }
    return Drawn(page, {"black pixels": int(black.sum()), **numbers})


FEW = (5, 10, 20, 50, 100)
SOLVERS = ("ancestral", "ddim", "dpm_solver", "heun")


@cache
def _by_calls() -> dict[tuple[str, int], tuple[int, np.ndarray]]:
    """Samples of each solver and number of network calls: (calls, images)."""
    found = {}
    for name in SOLVERS:
        for calls in FEW:
            steps = (calls + 1) // 2 if name == "heun" else calls
            found[name, calls] = calls, sample(digits(), JUDGED, sampler=name, steps=steps, batch_size=JUDGED)
    return found


def steps() -> Drawn:
    """The share of sure digits against network calls."""
    sets = _by_calls()
    shares = dict(zip(sets, _sure([images for _, images in sets.values()]), strict=True))

    def panel(axes: Any) -> None:
        for name in SOLVERS:
            axes.plot(FEW, [100 * shares[name, k] for k in FEW], marker="o", markersize=4, label=name, linewidth=1.6)
        axes.set_xscale("log")
        axes.set_xticks(FEW, [str(k) for k in FEW])
        axes.set_ylim(0, 100)
        label(axes, "samples that are surely a digit", "network calls an image", "percent")

    note = f"{JUDGED} samples each, so that a share of one half has a standard error of 5 points; {_words(digits())}"
    numbers = {name: {str(k): shares[name, k] for k in FEW} for name in SOLVERS}
    return Drawn(charts(panel, note=note, width=6.8), numbers)


def few() -> Drawn:
    """One noise, four solvers, five budgets."""
    sets = _by_calls()
    cells = [[(sets[name, k][1][i], "") for k in FEW for i in (0, 1)] for name in SOLVERS]
    heads = [f"{k} calls" if i == 0 else "" for k in FEW for i in (0, 1)]
    page = sheet(
        cells,
        title="Images number 0 and 1 by each solver",
        rows=list(SOLVERS),
        columns=heads,
        note=_words(digits()),
    )
    return Drawn(page, {"budgets": list(FEW)})


def rate() -> Drawn:
    """Rate and distortion (Figure 5)."""
    found = _likelihood()
    t = np.array([part.start + (len(part) - 1) / 2 for part in found.parts])
    bits = found.bound.rate.mean(0).numpy()
    distortion = rmse_of_levels(found.bound.x0_mse.mean(0)).numpy()

    def against_time(axes: Any) -> None:
        axes.plot(1000 - t, bits, linewidth=1.8)
        label(axes, "bits to tell x_t", "reverse steps done, T - t", "bits per dimension")

    def error(axes: Any) -> None:
        axes.plot(1000 - t, distortion, color="#c8501e", linewidth=1.8)
        label(axes, "distortion of the estimate", "reverse steps done, T - t", "RMSE, of 255")

    def plane(axes: Any) -> None:
        axes.plot(bits, distortion, marker="o", markersize=3, linewidth=1.2)
        label(axes, "each t as a point", "rate, bits per dimension", "distortion, RMSE of 255")

    numbers = {
        "rate": [found.rate.value, found.rate.error],
        "L_0": [found.decoder.value, found.decoder.error],
        "at t": {
            str(k): [round(float(np.interp(k, t, bits)), 4), round(float(np.interp(k, t, distortion)), 2)]
            for k in (1, 10, 50, 100, 300, 500, 900)
        },
    }
    note = f"96 held-out scans, 100 of the 1,000 timesteps; {_words(digits())}"
    return Drawn(charts(against_time, error, plane, note=note, width=3.6, height=3.3), numbers)


def bias() -> Drawn:
    """FID and KID of real scans against other real scans, by their number."""
    from ddpm.evaluate.distances import fid, kid
    from ddpm.evaluate.extractor import load_extractor

    scans = data.load(digits_config("data.held_out=0").data, "train", progress=False)
    vectors = load_extractor()(unpacked(scans.images)).vectors
    counts, draws = (50, 100, 200, 400, 800), 8
    fids: dict[int, list[float]] = {}
    kids: dict[int, list[float]] = {}
    for count in counts:
        for draw in range(draws):
            order = rng(0, Purpose.SUBSET, draw).permutation(len(vectors))
            some, others = vectors[order[:count]], vectors[order[897:]]
            fids.setdefault(count, []).append(fid(some, others))
            kids.setdefault(count, []).append(kid(some, others).value)

    def panel(values: dict[int, list[float]], title: str) -> Any:
        def draw(axes: Any) -> None:
            for n in range(draws):
                axes.plot(counts, [values[c][n] for c in counts], color="#1f5fa8", alpha=0.25, linewidth=0.8)
            axes.plot(counts, [np.mean(values[c]) for c in counts], linewidth=2, marker="o", markersize=4)
            axes.set_xscale("log")
            axes.set_xticks(counts, [str(c) for c in counts])
            axes.minorticks_off()
            label(axes, title, "scans compared", title.split()[0])

        return draw

    numbers = {
        name: {str(c): [round(float(np.mean(v[c])), 3), round(float(np.std(v[c])), 3)] for c in counts}
        for name, v in (("FID, mean and deviation", fids), ("KID, mean and deviation", kids))
    }
    note = (
        "Scans of scikit-learn's digits against 900 others, eight draws (thin) and their mean; the features of the "
        "package's digit extractor. Both sides are real: the true distance is 0."
    )
    return Drawn(charts(panel(fids, "FID of real images"), panel(kids, "KID of real images"), note=note), numbers)


def _draw(diffusion: Diffusion, model: Model, count: int) -> np.ndarray:
    """JUDGED samples by Algorithm 2 in `count` steps."""
    noise = ImageNoise(0, range(JUDGED), (model.config.data.channels, *model.config.data.size), model.device)
    steps = spaced_steps(diffusion.schedule.T, count, "linspace")  # its last step, 1 -> 0, leaves noise standing
    *_, last = samplers.ancestral(diffusion, model.network, noise.start(), steps, noise=noise)
    return to_arrays(last.x, model.data.crop)


def _sure(sets: Sequence[np.ndarray]) -> list[float]:
    """The share of each set that the demo's classifier takes for some digit, surely."""
    scans = data.load(digits_config().data, "train", progress=False)
    assert scans.labels is not None
    return [judge(images, scans.images, scans.labels).sure for images in sets]


def _words(model: Model) -> str:
    source = Path(model.config.data.source).name
    return f"Model: {source}, {model.step:,} steps, {model.weights.upper()} weights, seed 0, not selected."


FIGURES = {
    "01-reverse": reverse,
    "03-terms": terms,
    "04-errors": errors,
    "06-training": training,
    "06-previews": previews,
    "07-variance": variance,
    "08-steps": steps,
    "08-few": few,
    "09-rate": rate,
    "10-bias": bias,
}
