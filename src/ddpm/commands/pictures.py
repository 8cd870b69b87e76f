"""What the commands that work on the user's own pictures share: their arguments, and what they say."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.commands.arguments import above_zero, add_device, add_precision, natural, positive

if TYPE_CHECKING:
    from ddpm.data.given import Given
    from ddpm.edits import Editor
    from ddpm.generate import Model


def add_pictures(parser: argparse.ArgumentParser, count: int | Literal["+"]) -> None:
    """The checkpoint and the pictures."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument(
        "pictures",
        type=Path,
        nargs=count,
        metavar="PICTURE",
        help="image files, sized as in training if need be",
    )


def add_shared(parser: argparse.ArgumentParser, command: str, *, samples: int, each: str) -> None:
    """The options that all of these commands have."""
    parser.add_argument(
        "--num-samples", type=positive, default=samples, metavar="N", help=f"{each} (default {samples})"
    )
    parser.add_argument(
        "--steps", type=positive, metavar="K", help="steps from T to 0, of which those below the start are taken"
    )
    parser.add_argument("--seed", type=natural, metavar="S", help="result I depends on S, I and the picture alone")
    parser.add_argument("--class", dest="classes", metavar="C", help="of results, in turn (default: without a class)")
    parser.add_argument("--guidance", type=above_zero, metavar="G", help="towards the class: 1 is off (default)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="moving average or raw (default ema)")
    parser.add_argument("--batch-size", type=positive, metavar="B", help="images at a time; changes no image")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: {command}/<run> beside the run's folder")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    add_precision(parser)
    add_device(parser)


def share(text: str) -> float:
    """Type of a strength: a share of T."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a number from 0 (the picture as it is) to 1 (nothing left of it)"
        )
    return value


def open_model(options: argparse.Namespace) -> Model:
    """The checkpoint's model on the device asked for."""
    from ddpm.device import choose_device, limit_memory
    from ddpm.generate import load

    chosen = choose_device(options.device)
    limit_memory(chosen)
    return load(options.checkpoint, weights=options.weights, precision=options.precision, device=chosen)


def open_editor(options: argparse.Namespace, model: Model, pictures: Sequence[Given], steps: int | None) -> Editor:
    """An editor with the settings that were given."""
    from ddpm import edits

    return edits.editor(
        model,
        pictures,
        steps=steps,
        seed=options.seed,
        batch_size=options.batch_size,
        classes=options.classes,
        guidance=options.guidance,
    )


def read_pictures(paths: Sequence[Path], model: Model) -> list[Given]:
    """The files as the model sees them."""
    from ddpm.data.given import read_picture

    return [read_picture(path, model.config.data) for path in paths]


def folder_for(options: argparse.Namespace, command: str, identity: dict[str, Any]) -> Path:
    """The folder that was named, or the next free one beside the run's; claimed for results of this identity."""
    from ddpm.generate import claim, unclaimed
    from ddpm.run import folder_beside

    folder: Path = options.out or unclaimed(folder_beside(options.checkpoint, command), identity)
    claim(folder, identity)
    return folder


def announce(options: argparse.Namespace, editor: Editor, pictures: Sequence[Given], what: str) -> None:
    """Say, before the work begins, what is about to happen."""
    from ddpm.device import describe

    if options.json:
        return
    model = editor.model
    where = f"{describe(model.device)}, {model.precision}"
    print(f"model      {options.checkpoint}: step {model.step:,}, {model.weights} weights, on {where}")
    for picture in pictures:
        print(f"picture    {picture.path}: {picture.done}")
    print(f"sampling   {what}, variance {editor.diffusion.variance}, seed {editor.settings.seed}")


def report(
    options: argparse.Namespace,
    editor: Editor,
    folder: Path,
    pictures: Sequence[Given],
    results: Sequence[str],
    began: float,
    made: int,
    **facts: Any,
) -> None:
    """Say where everything is: the last lines, or the JSON.

    Args:
        results: names of the files, those that were there already too.
        began: `time.perf_counter()` at the start.
        made: how many of them are new.
        facts: of the command alone.
    """
    seconds = time.perf_counter() - began
    if options.json:
        model = editor.model
        summary = {
            "folder": str(folder),
            "grid": str(folder / "grid.png"),
            "pictures": [{"path": str(p.path), "size": [*p.size], "treatment": p.done} for p in pictures],
            "results": [str(folder / name) for name in results],
            "made": made,
            "seconds": round(seconds, 3),
            "weights": model.weights,
            "precision": model.precision,
            "step": model.step,
            "steps": len(editor.steps),
            "variance": editor.diffusion.variance,
            "seed": editor.settings.seed,
            **facts,
        }
        print(json.dumps(summary))
        return
    print(f"made       {made} images in {seconds:.1f} s ({len(results) - made} were there already)")
    print(f"written    {folder}: grid.png, before-NN.png, {results[0]} to {results[-1]}")
