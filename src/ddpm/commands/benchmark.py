"""`ddpm benchmark` and `ddpm benchmark samplers`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ddpm.choices import DEFAULT_SPACING, SamplerName, Spacing
from ddpm.commands.arguments import (
    Commands,
    above_zero,
    add_device,
    add_precision,
    add_set,
    duration,
    natural,
    positive,
)
from ddpm.errors import DDPMError, UsageError

if TYPE_CHECKING:
    from ddpm.speed import Rate


_CONFIG, _MOST = "image/mnist/ddpm_cpu", 128


def add(commands: Commands) -> None:
    benchmark = commands.add_parser("benchmark", help="how fast this machine trains and samples a configuration")
    benchmark.add_argument("--config", metavar="CONFIG", help=f"default: {_CONFIG}")
    add_set(benchmark)
    benchmark.add_argument("--most", type=positive, metavar="B", help="largest batch tried (default 128)")
    benchmark.add_argument("--json", action="store_true", help="print as JSON")
    add_device(benchmark)
    benchmark.set_defaults(command=_run)
    samplers = benchmark.add_subparsers(metavar="samplers CHECKPOINT").add_parser(
        "samplers", help="quality against network calls, for every sampler; again: goes on"
    )
    samplers.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    samplers.add_argument("--images", type=positive, default=512, metavar="N", help="samples a cell (default 512)")
    samplers.add_argument(
        "--calls", type=_numbers, metavar="K,K,...", help="budgets (default 5,8,10,15,20,50,100,1000)"
    )
    samplers.add_argument(
        "--samplers", type=_one_of(SamplerName), metavar="S,S,...", help="default: all; of " + _names(SamplerName)
    )
    spacings = f"default: {DEFAULT_SPACING}; of {_names(Spacing)}"
    samplers.add_argument("--spacings", type=_one_of(Spacing), metavar="P,P,...", help=spacings)
    samplers.add_argument(
        "--guidance", type=above_zero, metavar="G", help="of a model with classes: 1 is off (default: the checkpoint's)"
    )
    samplers.add_argument("--seed", type=natural, default=0, metavar="S", help="of all noise (default 0)")
    samplers.add_argument("--data-root", metavar="DIR", help="where the data lie (default: where they lay in training)")
    samplers.add_argument("--out", type=Path, metavar="DIR", help="default: benchmark/<run> beside the run's folder")
    add_precision(samplers)
    add_device(samplers)
    samplers.set_defaults(command=_samplers)


def _names(kind: Any) -> str:
    return ", ".join(get_args(kind))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def _one_of(kind: Any) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        if unknown := [part for part in text.split(",") if part not in get_args(kind)]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected some of {_names(kind)}")
        return tuple(text.split(","))

    return names


def _samplers(options: argparse.Namespace) -> None:
    from ddpm.device import choose_device, limit_memory
    from ddpm.evaluate.extractor import load_extractor
    from ddpm.evaluate.sampler_benchmark import markdown, run
    from ddpm.generate import load
    from ddpm.run import folder_beside

    if options.config or options.overrides or options.most:
        raise UsageError("benchmark samplers: --config, --set and --most have no effect here; remove them")
    device = choose_device(options.device)
    limit_memory(device)
    model = load(options.checkpoint, precision=options.precision, device=device)
    out = options.out or folder_beside(options.checkpoint, "benchmark")
    given = {"budgets": options.calls, "samplers": options.samplers, "spacings": options.spacings}
    table = run(
        model,
        load_extractor(device=device),
        out,
        images=options.images,
        guidance=options.guidance,
        seed=options.seed,
        data_root=options.data_root,
        **{key: value for key, value in given.items() if value},
    )
    print(markdown(table), end="")
    print(f"written    {out}: results.json, table.md, curves.png")


def _run(options: argparse.Namespace) -> None:
    from ddpm.config import load_config
    from ddpm.cost import cost_of
    from ddpm.device import choose_device, choose_precision, describe, limit_memory
    from ddpm.ops.select import choose_kernels
    from ddpm.progress import progress_bar
    from ddpm.speed import best, peak_gflops, rates

    name, most = options.config or _CONFIG, options.most or _MOST
    config, device = load_config(name, options.overrides), choose_device(options.device)
    limit_memory(device)
    precision = choose_precision(config.training.precision, device)
    _, kernels = choose_kernels(config.training.kernels, device)
    cost, peak = cost_of(config), peak_gflops(precision, device)
    measured: dict[str, list[Rate]] = {"train": [], "sample": []}
    with progress_bar("measuring", 2 * most.bit_length(), "batch size", show=not options.json) as bar:
        for work, found in measured.items():
            for rate in rates(config, work, device, most=most):  # type: ignore[arg-type]
                found.append(rate)
                bar.update()
    if not all(measured.values()):
        raise DDPMError(f"{name}: not even one image fits {describe(device)}")
    chosen = {work: best(found) for work, found in measured.items()}
    at_config = min(measured["train"], key=lambda r: abs(r.batch - config.training.batch_size))
    calls = config.sampling.steps or config.diffusion.timesteps
    calls *= 2 if config.sampling.guided else 1  # one call of twice the images
    estimate = {
        "train_s": None if cost.images is None else cost.images / at_config.images_per_s,
        "sample_64_s": 64 * calls / chosen["sample"].images_per_s,
    }
    if options.json:
        facts: dict[str, Any] = {
            "device": describe(device),
            "precision": precision,
            "kernels": kernels,
            "peak_gflop_per_s": peak,
            "rates": [r._asdict() for found in measured.values() for r in found],
            "best_batch": {work: rate.batch for work, rate in chosen.items()},
            **estimate,
        }
        print(json.dumps(facts))
        return
    print(f"device     {describe(device)}, {precision}, {kernels}; matrix products reach {peak:,.0f} GFLOP/s")
    print(f"network    {name}: {cost.parameters:,} parameters, {cost.gflop_per_image:.3f} GFLOP a call")
    for work, words in (("train", "a training step"), ("sample", "a network call in sampling")):
        print(f"\n{words}\n{'batch':>7}{'images/s':>11}{'GFLOP/s':>10}{'of peak':>9}")
        for rate in measured[work]:
            mark = "  <- best" if rate is chosen[work] else ""
            share = rate.gflop_per_s / peak
            print(f"{rate.batch:>7}{rate.images_per_s:>11,.1f}{rate.gflop_per_s:>10,.0f}{share:>9.0%}{mark}")
    print(
        "\nOperations are counted as a direct convolution's; Winograd's needs fewer, so that the share may pass 100 %."
    )
    if estimate["train_s"] is not None:
        size = config.training.batch_size
        print(f"training   about {duration(estimate['train_s'])}: {cost.images:,} images in batches of {size}")
    seconds = duration(estimate["sample_64_s"] or 0)
    print(f"sampling   about {seconds} for 64 images of {calls:,} network calls each")
