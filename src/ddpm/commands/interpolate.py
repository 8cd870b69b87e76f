"""`ddpm interpolate`: two pictures mixed in latent space, as in the paper's Figures 8 and 9."""

from __future__ import annotations

import argparse
import time
from functools import partial

from ddpm.commands.arguments import Commands, positive
from ddpm.commands.pictures import (
    add_pictures,
    add_shared,
    announce,
    folder_for,
    open_editor,
    open_model,
    read_pictures,
    report,
    share,
)
from ddpm.errors import UsageError


def add(commands: Commands) -> None:
    interpolate = commands.add_parser("interpolate", help="mix two of your own pictures in latent space")
    add_pictures(interpolate, 2)
    interpolate.add_argument(
        "--strength",
        type=_shares,
        default=(0.75, 0.5, 0.25),
        metavar="S,...",
        help="shares of T that are noised before mixing: 0 mixes the pixels (default 0.75,0.5,0.25)",
    )
    interpolate.add_argument(
        "--between", type=positive, default=9, metavar="M", help="mixtures between the two pictures (default 9)"
    )
    add_shared(interpolate, "interpolate", samples=1, each="draws of the noise, each a row")
    interpolate.set_defaults(command=_run, name="interpolate")


def _shares(text: str) -> tuple[float, ...]:
    return tuple(share(part) for part in text.split(","))


def _run(options: argparse.Namespace) -> None:
    from ddpm import edits
    from ddpm.images import read_png, save_png
    from ddpm.paper.sheet import sheet

    model = open_model(options)
    pictures = read_pictures(options.pictures, model)
    editor = open_editor(options, model, pictures, options.steps)
    times = [editor.time(strength) for strength in options.strength]
    at = ", ".join(map(str, times))
    if len(set(times)) < len(times):
        raise UsageError(f"--strength: gives the times {at} of {editor.T}; each may be there once")
    lambdas = [k / (options.between + 1) for k in range(options.between + 2)]
    folder = folder_for(
        options, "interpolate", edits.identity(editor, "interpolate", pictures, between=options.between)
    )
    what = f"{options.between} mixtures at t = {at} (T = {editor.T}), {len(editor.steps)} ancestral steps"
    announce(options, editor, pictures, what)
    began = time.perf_counter()
    x0 = editor.frames(pictures)
    rows = [(t, number) for t in times for number in range(options.num_samples)]
    batches = []
    for t, number in rows:
        absent = [k for k in range(len(lambdas)) if not (folder / _name(number, t, k)).exists()]
        for part in edits.chunks(absent, editor.settings.batch_size):
            states = partial(editor.interpolated, x0[:1], x0[1:], number, t, [lambdas[k] for k in part])
            batches.append(edits.Batch([_name(number, t, k) for k in part], states, len(editor.below(t)) + 1))
    made = edits.draw(editor, folder, batches, what="interpolating")
    before = editor.arrays(x0)
    for p, array in enumerate(before):
        save_png(folder / edits.before_name(p), array)
    several = options.num_samples > 1
    page = sheet(
        [
            [
                (before[0], ""),
                *((read_png(folder / _name(number, t, k)), "") for k in range(len(lambdas))),
                (before[1], ""),
            ]
            for t, number in rows
        ],
        title="Interpolation in latent space",
        rows=[f"t = {t}" + (f"\ndraw {number}" if several else "") for t, number in rows],
        columns=["before", "rec.", *(f"{x:.2g}" for x in lambdas[1:-1]), "rec.", "before"],
        note=(
            f"{options.checkpoint.name}, {len(editor.steps)} ancestral steps; rec.: a picture noised to t and "
            "denoised, with nothing mixed in; numbers: share of the picture on the right. "
            "Both pictures get the same noise"
        ),
    )
    save_png(folder / "grid.png", page)
    names = [_name(number, t, k) for t, number in rows for k in range(len(lambdas))]
    report(options, editor, folder, pictures, names, began, made, times=times, lambdas=lambdas)


def _name(number: int, t: int, k: int) -> str:
    return f"{number:05d}-t{t:04d}-{k:02d}.png"
