"""`ddpm sample`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, get_args

from ddpm.choices import SamplerName, Spacing
from ddpm.commands.arguments import (
    Commands,
    above_zero,
    add_device,
    add_model,
    add_precision,
    interval,
    model_path,
    natural,
    number,
    positive,
)

_SAMPLERS = f"{', '.join(get_args(SamplerName))} (default: the checkpoint's)"
_SPACINGS = f"of the timesteps: {', '.join(get_args(Spacing))} (default: the checkpoint's)"


def add(commands: Commands) -> None:
    sample = commands.add_parser("sample", help="draw images from a checkpoint; again: completes an interrupted set")
    add_model(sample)
    sample.add_argument(
        "--num-samples",
        type=positive,
        metavar="N",
        help="images (default 16; with --class all as many as grid.png shows)",
    )
    sample.add_argument("--start-index", type=natural, default=0, metavar="I", help="number of the first image")
    sample.add_argument("--weights", choices=("ema", "raw"), default="ema", help="moving average or raw (default ema)")
    sample.add_argument("--sampler", choices=get_args(SamplerName), metavar="S", help=_SAMPLERS)
    sample.add_argument("--steps", type=positive, metavar="K", help="steps of the sampler (default: the checkpoint's)")
    sample.add_argument("--spacing", choices=get_args(Spacing), metavar="P", help=_SPACINGS)
    sample.add_argument("--eta", type=number, metavar="E", help="ddim: 0 without noise (default) ... 1 ancestral")
    sample.add_argument("--order", type=int, choices=(1, 2, 3), help="dpm_solver, dpm_solver_sde, unipc (default 2)")
    sample.add_argument("--churn", type=number, metavar="C", help="heun, euler: noise on the way (default 0)")
    sample.add_argument("--clip", choices=("static", "dynamic", "off"), help="of the estimates of x_0 (default static)")
    sample.add_argument(
        "--class",
        dest="classes",
        metavar="C",
        help="a class's name or number, or several with commas, for the images in turn; all (default): each class "
        "in turn, a row of the grid for each; random: drawn from the seed; none: drawn without a class",
    )
    sample.add_argument(
        "--guidance", type=above_zero, metavar="G", help="towards the class: 1 is off (default), 2 strong"
    )
    sample.add_argument(
        "--guidance-interval",
        type=interval,
        metavar="LO,HI",
        help="guided where LO < t/T <= HI (default 0,1: everywhere)",
    )
    sample.add_argument("--seed", type=natural, metavar="S", help="image I depends on S and I alone")
    sample.add_argument("--batch-size", type=positive, metavar="B", help="images at a time")
    sample.add_argument("--out", type=Path, metavar="DIR", help="default: sample/<run> beside the run's folder")
    sample.add_argument("--gif", action="store_true", help="also animate the reverse process")
    sample.add_argument("--json", action="store_true", help="print a summary as JSON")
    add_precision(sample)
    add_device(sample)
    sample.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    sample_command(
        model_path(options),
        count=options.num_samples,
        start=options.start_index,
        weights=options.weights,
        precision=options.precision,
        out=options.out,
        gif=options.gif,
        as_json=options.json,
        device=options.device,
        sampler=options.sampler,
        steps=options.steps,
        spacing=options.spacing,
        eta=options.eta,
        order=options.order,
        churn=options.churn,
        clip=options.clip and {"static": True, "dynamic": "dynamic", "off": False}[options.clip],
        classes=options.classes,
        guidance=options.guidance,
        guidance_interval=options.guidance_interval,
        seed=options.seed,
        batch_size=options.batch_size,
    )


def sample_command(
    path: Path,
    *,
    count: int | None = None,
    start: int = 0,
    weights: Any = "ema",
    precision: Any = "auto",
    out: Path | None = None,
    default_out: Path | None = None,
    gif: bool = False,
    as_json: bool = False,
    device: str | None = None,
    **changes: Any,
) -> None:
    """Sample a checkpoint into a folder and say where everything is.

    `count` is 16 by default, with classes: all as many as the grid shows. `out` is the folder itself; `default_out` is
    numbered if it holds a set made with other settings.
    """
    from ddpm.classes import grid_count
    from ddpm.device import choose_device, describe, limit_memory
    from ddpm.distributed import by_first, joined
    from ddpm.generate import claimable, load, network_calls, sample_to_folder, sampling_settings
    from ddpm.run import sample_folder_of

    chosen = choose_device(device)
    limit_memory(chosen)
    with joined(chosen):
        model = load(path, weights=weights, precision=precision, device=chosen)
        settings = sampling_settings(model, **changes)
        count = count or (grid_count(model.config) if changes.get("classes") == "all" else 16)
        folder = out or by_first(lambda: claimable(model, default_out or sample_folder_of(path), settings))
        steps = settings.steps or model.diffusion.schedule.T
        calls = network_calls(model, settings)
        if not as_json:
            spent = "" if calls == steps else f" ({calls} network calls an image)"
            where = f"{describe(model.device)}, {model.precision}"
            print(f"model      {path}: step {model.step:,}, {weights} weights, on {where}")
            print(
                f"sampling   {count} images from number {start}, {settings.sampler}, {steps} steps{spent}, "
                f"seed {settings.seed}"
            )
            if settings.classes is not None:
                print(f"classes    {_classes(model, settings)}")
        began = time.perf_counter()
        made = sample_to_folder(model, folder, count, start=start, settings=settings, gif=gif)
        seconds = time.perf_counter() - began
        if as_json:
            summary = {
                "folder": str(folder),
                "grid": str(folder / "grid.png"),
                "samples": str(folder / "samples.npz"),
                "gif": str(made.gif) if made.gif else None,
                "count": count,
                "start_index": start,
                "made": made.made,
                "seconds": round(seconds, 3),
                "weights": weights,
                "precision": model.precision,
                "step": model.step,
                "sampler": settings.sampler,
                "steps": steps,
                "network_calls": calls,
                "seed": settings.seed,
            }
            if settings.classes is not None:
                summary |= {"classes": settings.classes, "guidance": settings.guidance or 1.0}
            if settings.guidance_interval is not None:
                summary["guidance_interval"] = settings.guidance_interval
            print(json.dumps(summary))
            return
        print(f"made       {made.made} images in {seconds:.1f} s ({count - made.made} were there already)")
        print(f"written    {folder}: grid.png, numbered PNGs, samples.npz" + (f", {made.gif.name}" if made.gif else ""))


def _classes(model: Any, settings: Any) -> str:
    chosen = settings.classes
    words = chosen if isinstance(chosen, str) else ", ".join(model.data.class_names[k] for k in chosen)
    if not settings.guided:
        return f"{words}, not guided"
    low, high = settings.guidance_interval or (0, 1)
    where = f" where {low:g} < t/T <= {high:g}" if settings.guidance_interval else ""
    return f"{words}, guidance {settings.guidance:g}{where} (each call with the images twice)"
