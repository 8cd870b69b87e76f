"""`ddpm inpaint`: RePaint (arXiv 2201.09865)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.commands.arguments import Commands, natural, positive
from ddpm.commands.pictures import (
    add_pictures,
    add_shared,
    announce,
    folder_for,
    open_editor,
    open_model,
    read_pictures,
    report,
)

if TYPE_CHECKING:
    import numpy as np

    from ddpm.config import DataSection
    from ddpm.data.given import Given


def add(commands: Commands) -> None:
    inpaint = commands.add_parser("inpaint", help="fill in a part of your own pictures")
    add_pictures(inpaint, "+")
    hole = inpaint.add_mutually_exclusive_group(required=True)
    hole.add_argument("--mask", type=Path, metavar="FILE", help="image of the picture's size; what is white is filled")
    hole.add_argument("--box", type=_box, metavar="X,Y,W,H", help="or a rectangle, from the upper left, in pixels")
    inpaint.add_argument(
        "--jump",
        type=positive,
        metavar="J",
        help="steps gone back at a time (default 10, or fewer if need be)",
    )
    inpaint.add_argument(
        "--repeats", type=positive, metavar="R", help="how often each stretch is come down (default 10; 1: never back)"
    )
    add_shared(inpaint, "inpaint", samples=4, each="results of each picture")
    inpaint.set_defaults(command=_run, name="inpaint")


def _box(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4:
        raise argparse.ArgumentTypeError(f"{text!r}: expected four whole numbers: x,y,width,height")
    return tuple(natural(part) for part in parts)


def _run(options: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from ddpm import edits
    from ddpm.images import save_png

    model = open_model(options)
    pictures = read_pictures(options.pictures, model)
    masks = np.stack([_mask(options, picture, model.config.data) for picture in pictures])
    steps = options.steps or edits.repaint_steps(model)
    editor = open_editor(options, model, pictures, steps)
    walk, jump, repeats = edits.repaint_walk(editor, options.jump, options.repeats)
    calls = sum(t > s for t, s in walk)
    masks_digest = edits.digest(masks)
    folder = folder_for(
        options, "inpaint", edits.identity(editor, "inpaint", pictures, masks=masks_digest, jump=jump, repeats=repeats)
    )
    back = f"jumps of {jump}, {repeats} times" if repeats > 1 else "never going back"
    what = (
        f"{options.num_samples} results of each picture, {len(editor.steps)} ancestral steps, {back}: "
        f"{calls:,} network calls an image"
    )
    announce(options, editor, pictures, what)
    began = time.perf_counter()
    x0, known = editor.frames(pictures), torch.from_numpy(masks).to(model.device)
    places = [(p, i) for p in range(len(pictures)) for i in range(options.num_samples)]
    batches = edits.missing_batches(
        editor, folder, places, lambda rows, numbers: editor.inpainted(x0[rows], known[rows], numbers, walk), len(walk)
    )
    made = edits.draw(editor, folder, batches, what="inpainting")
    before, given = editor.arrays(x0), editor.arrays(torch.where(known, x0, edits.HOLE))
    for p, array in enumerate(before):
        save_png(folder / edits.before_name(p), array)
    page = edits.before_and_after(
        folder,
        list(zip(before, given, strict=True)),
        ["before", "given"],
        options.num_samples,
        title="Filled in",
        note=f"{options.checkpoint.name}, {what.partition(', ')[2]}; grey in 'given': what is filled in",
    )
    save_png(folder / "grid.png", page)
    names = [edits.result_name(*place) for place in places]
    report(options, editor, folder, pictures, names, began, made, jump=jump, repeats=repeats, network_calls=calls)


def _mask(options: argparse.Namespace, picture: Given, data: DataSection) -> np.ndarray:
    from ddpm.data.given import Box, box_mask, read_mask

    if options.box:
        return box_mask(Box(*options.box), picture, data)
    return read_mask(options.mask, picture, data)
