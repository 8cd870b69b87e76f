"""`ddpm edit`: SDEdit (arXiv 2108.01073)."""

from __future__ import annotations

import argparse
import time

from ddpm.commands.arguments import Commands
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


def add(commands: Commands) -> None:
    edit = commands.add_parser("edit", help="noise your own pictures part of the way, and let the model finish them")
    add_pictures(edit, "+")
    edit.add_argument(
        "--strength",
        type=share,
        default=0.5,
        metavar="S",
        help="share of T that is noised: 0 the picture as it is ... 1 nothing left of it (default 0.5)",
    )
    add_shared(edit, "edit", samples=4, each="results of each picture")
    edit.set_defaults(command=_run, name="edit")


def _run(options: argparse.Namespace) -> None:
    from ddpm import edits
    from ddpm.images import save_png

    model = open_model(options)
    pictures = read_pictures(options.pictures, model)
    editor = open_editor(options, model, pictures, options.steps)
    t = editor.time(options.strength)
    calls = len(editor.below(t))
    folder = folder_for(options, "edit", edits.identity(editor, "edit", pictures, t=t))
    what = (
        f"{options.num_samples} results of each picture, from t = {t} of {editor.T} (strength {options.strength:g}), "
        f"{calls} of {len(editor.steps)} ancestral steps"
    )
    announce(options, editor, pictures, what)
    began = time.perf_counter()
    x0 = editor.frames(pictures)
    places = [(p, i) for p in range(len(pictures)) for i in range(options.num_samples)]
    batches = edits.missing_batches(
        editor, folder, places, lambda rows, numbers: editor.edited(x0[rows], numbers, t), calls + 1
    )
    made = edits.draw(editor, folder, batches, what="editing")
    before = editor.arrays(x0)
    for p, array in enumerate(before):
        save_png(folder / edits.before_name(p), array)
    # What the first result started from: the first of its states.
    noised = [editor.arrays(next(editor.edited(x0[p : p + 1], [0], t)).x)[0] for p in range(len(pictures))]
    page = edits.before_and_after(
        folder,
        list(zip(before, noised, strict=True)),
        ["before", f"t = {t}"],
        options.num_samples,
        title="Noised, then denoised",
        note=f"{options.checkpoint.name}, {what.partition(', ')[2]}; t = {t}: what the first result began with",
    )
    save_png(folder / "grid.png", page)
    names = [edits.result_name(*place) for place in places]
    report(options, editor, folder, pictures, names, began, made, strength=options.strength, t=t, network_calls=calls)
