"""`ddpm benchmark samplers CHECKPOINT`: quality against network calls."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

from ddpm.choices import SamplerName
from ddpm.commands.arguments import Commands, natural, positive
from ddpm.errors import DDPMError, UsageError


def add(commands: Commands) -> None:
    samplers = commands.add_parser(
        "samplers", help="FID and KID against network calls for every sampler; again: completes an interrupted table"
    )
    samplers.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    samplers.add_argument("--images", type=positive, default=2048, metavar="N", help="a cell (default 2048)")
    samplers.add_argument("--calls", type=_list_of_calls, metavar="K,K,...", help="default 5,8,10,15,20,50,100,1000")
    samplers.add_argument("--samplers", type=_list_of_samplers, metavar="S,S,...", help="default: all")
    samplers.add_argument("--extractor", choices=("digits",), default="digits", help="default digits")
    samplers.add_argument("--weights", choices=("ema", "raw"), default="ema", help="default ema")
    samplers.add_argument("--seed", type=natural, default=0, metavar="S", help="of the noise, one for all (default 0)")
    samplers.add_argument("--batch-size", type=positive, metavar="B", help="images at a time")
    samplers.add_argument("--data-root", metavar="DIR", help="where the data lie (default: where they lay in training)")
    samplers.add_argument("--force", action="store_true", help="give FIDs of fewer than 2,048 images too, marked")
    samplers.add_argument("--out", type=Path, metavar="DIR", help="default: benchmark/<run> beside the run's folder")
    # Not given here, `ddpm benchmark --json samplers ...` keeps its value.
    samplers.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print as JSON")
    samplers.add_argument("--device", default=argparse.SUPPRESS, help="auto, cpu, cuda, cuda:1 or mps")
    samplers.set_defaults(command=_run)


def _list_of_calls(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _list_of_samplers(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in get_args(SamplerName)]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected some of {', '.join(get_args(SamplerName))}")
    return names


def _run(options: argparse.Namespace) -> None:
    from ddpm.device import choose_device, describe, limit_memory
    from ddpm.evaluate import extractors, sampler_benchmark
    from ddpm.evaluate.comparison import plain
    from ddpm.evaluate.curves import curves
    from ddpm.evaluate.sides import sides
    from ddpm.generate import load
    from ddpm.images import save_png
    from ddpm.run import folder_beside

    if options.config or options.overrides or options.most:
        raise UsageError("benchmark samplers: --config, --set and --most have no effect on it; it measures a checkpoint")
    device, quiet = choose_device(options.device), options.json
    limit_memory(device)
    model = load(options.checkpoint, weights=options.weights, device=device)
    plans, skipped = sampler_benchmark.settings_of(
        model,
        options.samplers or get_args(SamplerName),
        options.calls or sampler_benchmark.CALLS,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    if not plans:
        raise UsageError(f"benchmark samplers: nothing to measure: {'; '.join(f'{s.sampler}: {s.reason}' for s in skipped)}")
    extractor = extractors.by_name(options.extractor, device)
    reference, unseen = sides(model, extractor, root=options.data_root, progress=not quiet)
    if not quiet:
        print(f"model      {options.checkpoint}: step {model.step:,}, {model.weights} weights, on {describe(device)}")
        print(f"cells      {len(plans)} of {options.images:,} images each, against {len(reference):,} training images")
    folder = options.out or folder_beside(options.checkpoint, "benchmark")
    limits = sampler_benchmark.limits_for(reference, unseen, options.images)
    cells = list(
        sampler_benchmark.benchmark(
            model, str(options.checkpoint), plans, options.images, reference, unseen, extractor, folder, progress=not quiet
        )
    )
    paths = sampler_benchmark.write(folder, cells, limits, skipped, force=options.force)
    enough = options.force or not any(cell.few for cell in cells)
    note = f"{options.images:,} images a point, {extractor.name} features, {model.weights} weights, seed {options.seed}."
    missing = None
    try:
        save_png(folder / "samplers.png", curves(cells, limits, fid=enough, note=note))
        paths.append(folder / "samplers.png")
    except DDPMError as error:
        missing = str(error)
    if quiet:
        print(json.dumps(plain({"files": [str(p) for p in paths], "cells": [vars(cell) for cell in cells]})))
        return
    print(sampler_benchmark.table(cells, limits, skipped, force=options.force))
    print(f"written    {', '.join(map(str, paths))}" + (f"\nno picture: {missing}" if missing else ""))
