"""`ddpm evaluate`: how good a model is. Each measure is a flag of its own, and several may be asked for at once."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ddpm.choices import SamplerName
from ddpm.commands.arguments import Commands, above_zero, add_device, add_model, model_path, natural, positive
from ddpm.errors import UsageError

if TYPE_CHECKING:
    import torch

    from ddpm.evaluate.nll import Likelihood
    from ddpm.evaluate.report import Bound, Samples
    from ddpm.generate import Model


def add(commands: Commands) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="measure a checkpoint: its samples, the likelihood of unseen images"
    )
    add_model(evaluate)
    source = evaluate.add_mutually_exclusive_group()
    source.add_argument("--samples", type=positive, metavar="N", help="draw N and measure them: FID, KID, ...")
    source.add_argument("--samples-from", type=Path, metavar="PATH", help="measure those of an .npz file or a folder")
    evaluate.add_argument("--extractor", choices=("digits", "inception"), help="whose features count (default digits)")
    evaluate.add_argument("--sampler", choices=get_args(SamplerName), metavar="S", help="default: the checkpoint's")
    evaluate.add_argument("--steps", type=positive, metavar="K", help="of the sampler (default: the checkpoint's)")
    evaluate.add_argument(
        "--class",
        dest="classes",
        choices=("none",),
        help="measure the unconditional model within one with classes (default: samples of all classes in the data's "
        "shares, the likelihood of images whose class is told)",
    )
    evaluate.add_argument("--guidance", type=above_zero, metavar="G", help="of the samples, towards their classes")
    evaluate.add_argument("--force", action="store_true", help="give an FID of fewer than 2,048 images too, marked")
    evaluate.add_argument("--nll", action="store_true", help="the bound on the likelihood, in bits per dimension")
    evaluate.add_argument(
        "--split",
        choices=("test", "held_out", "train"),
        help="images to take (default: the source's test images, else the held-out ones)",
    )
    evaluate.add_argument("--images", type=positive, metavar="N", help="take a fixed draw of N of them (default: all)")
    evaluate.add_argument(
        "--timesteps", type=positive, metavar="K", help="estimate from K of the T timesteps (default: all, exactly)"
    )
    evaluate.add_argument(
        "--decoder",
        choices=("exact", "tanh"),
        help="L_0 computed exactly (default), or with the authors' approximation",
    )
    evaluate.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="moving average or raw (default ema)"
    )
    evaluate.add_argument(
        "--batch-size", type=positive, default=64, metavar="B", help="images at a time; changes no number (default 64)"
    )
    evaluate.add_argument("--seed", type=natural, default=0, metavar="S", help="of all noise (default 0)")
    evaluate.add_argument("--data-root", metavar="DIR", help="where the data lie (default: where they lay in training)")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="default: evaluate/<run> beside the run's folder")
    evaluate.add_argument("--report", type=Path, metavar="FILE", help="one HTML page of all of it, to pass on")
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_device(evaluate)
    evaluate.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from ddpm.device import choose_device, limit_memory
    from ddpm.distributed import joined

    _check(options)
    options.checkpoint = model_path(options)
    chosen = choose_device(options.device)
    limit_memory(chosen)
    with joined(chosen):
        _measure(options, chosen)


def _measure(options: argparse.Namespace, chosen: torch.device) -> None:
    from ddpm.device import describe
    from ddpm.generate import load

    # In float32 wherever it runs: a rounding of the network's would be a part of the figure.
    model = load(options.checkpoint, weights=options.weights, precision="float32", device=chosen)
    if options.classes and not model.config.network.classes:
        raise UsageError("--class: none has no effect: this model was trained without classes. Leave it out")
    if not options.json:
        device = describe(model.device)
        print(f"model      {options.checkpoint}: step {model.step:,}, {model.weights} weights, on {device}")
    figures: dict[str, Any] = {}
    samples = bound = None
    if options.samples or options.samples_from:
        figures["samples"], samples = _samples(model, options)
    if options.nll:
        figures["nll"], bound = _nll(model, options)
    if options.report:
        _report(model, options, samples, bound)
        figures["report"] = str(options.report)
    if options.json:
        print(json.dumps(figures))


def _report(model: Model, options: argparse.Namespace, samples: Samples | None, bound: Bound | None) -> None:
    from ddpm.distributed import by_first
    from ddpm.evaluate.report import page, rows_of_run
    from ddpm.files import write_text

    name = options.pretrained or options.checkpoint.resolve().parent.name
    text = page(
        title=f"{name}, step {model.step:,}",
        model=f"{options.pretrained or options.checkpoint}: {model.weights} weights (SHA-256 {model.sha256[:12]}), "
        f"trained on {model.data.amount} of {model.config.data.source}",
        samples=samples,
        bound=bound,
        run=[] if options.pretrained else rows_of_run(options.checkpoint.resolve().parent),
    )
    by_first(lambda: write_text(options.report, text))
    if not options.json:
        print(f"written    {options.report}")


def _check(options: argparse.Namespace) -> None:
    """Refuse to measure nothing, and settings of what is not measured."""
    measured = options.samples or options.samples_from
    if not (options.nll or measured):
        raise UsageError(
            "evaluate: nothing to measure was named; say --samples N or --samples-from PATH (FID, KID, ...), --nll "
            "(the bound on the likelihood), or both"
        )
    for needed, there, names in (
        ("--nll", options.nll, ("split", "images", "timesteps", "decoder")),
        ("--samples or --samples-from", measured, ("extractor", "force")),
        ("--samples", options.samples, ("sampler", "steps", "guidance")),
        ("--samples or --nll", options.samples or options.nll, ("classes",)),
    ):
        if idle := [name for name in names if not there and getattr(options, name)]:
            name = idle[0].replace("classes", "class")
            raise UsageError(f"--{name}: has no effect without {needed}; leave it out or add that")


def _samples(model: Model, options: argparse.Namespace) -> tuple[dict[str, Any], Samples]:
    from ddpm.distributed import by_first
    from ddpm.evaluate import drawing
    from ddpm.evaluate.evaluation import evaluate_samples
    from ddpm.evaluate.extractor import load_extractor
    from ddpm.evaluate.inception import load_inception
    from ddpm.evaluate.provenance import provenance
    from ddpm.evaluate.reference import sides
    from ddpm.evaluate.report import Samples
    from ddpm.evaluate.summary import summary
    from ddpm.files import write_json
    from ddpm.generate import sampling_settings
    from ddpm.run import folder_beside

    quiet = options.json
    # Asked first: what is wrong with the settings or the files should not wait for the data.
    settings = None
    if options.samples:
        settings = sampling_settings(
            model,
            sampler=options.sampler,
            steps=options.steps,
            classes=options.classes,
            guidance=options.guidance,
            seed=options.seed,
            batch_size=options.batch_size,
        )
    given = drawing.read_samples(options.samples_from) if options.samples_from else None
    if options.extractor == "inception":
        extractor = load_inception(device=model.device, progress=not quiet)
    else:
        extractor = load_extractor(device=model.device)
    reference, unseen = sides(model, extractor, root=options.data_root, progress=not quiet)
    if settings:
        samples = drawing.draw_samples(model, options.samples, settings, reference.labels, progress=not quiet)
    else:
        assert given is not None
        samples = given
    found = evaluate_samples(samples, reference, extractor, unseen=unseen, progress=not quiet)
    origin = provenance(
        samples,
        reference,
        unseen,
        extractor,
        drawn=(options.pretrained or str(options.checkpoint), model, settings) if settings else None,
        samples_from=options.samples_from,
    )
    figures = {**found.numbers(force=options.force), "provenance": asdict(origin)}
    folder = options.out or folder_beside(options.checkpoint, "evaluate")
    path = folder / f"samples-{origin.key}.json"
    by_first(lambda: write_json(path, figures))
    if not quiet:
        print(summary(found, origin, force=options.force))
        print(f"written    {path}")
    return {**figures, "files": [str(path)]}, Samples(samples, found, origin, options.force)


def _nll(model: Any, options: argparse.Namespace) -> tuple[dict[str, Any], Bound]:
    from ddpm.distributed import by_first
    from ddpm.evaluate import nll
    from ddpm.evaluate.report import Bound
    from ddpm.likelihood import strata
    from ddpm.run import folder_beside

    T = model.diffusion.schedule.T
    try:
        parts = strata(T, options.timesteps)
    except ValueError as error:
        raise UsageError(f"--timesteps: {error}; leave it out for all {T}") from None
    split = options.split or nll.evaluated_split(model)
    images = nll.load_split(model, split, root=options.data_root, progress=not options.json)
    index = nll.subset(len(images), options.images)
    if options.images and options.images > len(images):
        raise UsageError(f"--images: {options.images:,} is more than the {len(images):,} images of the split {split}")
    height, width = model.config.data.size
    crop = model.data.crop
    if not options.json:
        padded = f", padded from {crop.height}x{crop.width}" if crop else ""
        print(
            f"data       {model.config.data.source} {split}: {len(index):,} of {len(images):,} images, "
            f"{height}x{width}x{model.config.data.channels}{padded}"
        )
    result = nll.measure_model(
        model,
        images,
        index,
        told=options.classes is None,
        parts=parts,
        decoder=options.decoder or "exact",
        seed=options.seed,
        batch_size=options.batch_size,
    )
    facts = {
        "checkpoint": options.pretrained or str(options.checkpoint),
        "checkpoint_sha256": model.sha256,
        "step": model.step,
        "weights": model.weights,
        "precision": model.precision,
        "data": model.config.data.source,
        "split": split,
        "data_sha256": images.fingerprint,
        "seed": options.seed,
        "decoder": options.decoder or "exact",
        "clip": True,
    }
    folder = options.out or folder_beside(options.checkpoint, "evaluate")
    paths = by_first(lambda: nll.write_tables(folder, f"nll-{split}", result, facts, index))
    if not options.json:
        print(_table(result, crop and f"{crop.height}x{crop.width}", f"{height}x{width}"))
        print(f"written    {', '.join(map(str, paths))}")
    return facts | result.numbers() | {"files": [str(path) for path in paths]}, Bound(result, facts)


def _table(result: Likelihood, picture: str | None, frame: str) -> str:
    from ddpm.evaluate.nll import CONDITIONAL, SCALING

    T, visited = result.parts[-1].stop - 1, len(result.parts)
    sums = {
        "L_T": result.prior,
        f"L_1 .. L_{T - 1}": result.transitions,
        "L_0": result.decoder,
        "total": result.total,
    }
    padded = result.padding != 1
    heads = [f"per dimension ({frame}, padded)", f"per dimension of the picture ({picture})"][: 1 + padded]
    if not padded:
        heads = ["per dimension"]
    lines = [f"{'bits':11}" + "".join(f"{head:>40}" for head in heads)]
    for name, mean in sums.items():
        lines.append(
            f"{name:11}" + "".join(f"{mean.times(factor)!s:>40}" for factor in (1, result.padding)[: 1 + padded])
        )
    lines.append("The total is an upper bound on -log2 p(x); +- is the standard error over the images.")
    if padded:
        lines.append("Per dimension of the picture: all bits, the border's too, shared out over the picture alone.")
    if result.is_estimate:
        lines.append(f"ESTIMATE from {visited:,} of {T:,} timesteps: {SCALING}.")
    if result.told:
        lines.append(f"Classes: {CONDITIONAL[result.told]}.")
    return "\n".join(lines)
