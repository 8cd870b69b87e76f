"""Given pictures interpolated, inpainted and edited by a trained model, into a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm import samplers
from ddpm.choices import DEFAULT_SPACING
from ddpm.classes import condition
from ddpm.config import SamplingSection
from ddpm.data.given import Given
from ddpm.data.scan import common_crop
from ddpm.device import batch_fits
from ddpm.diffusion import Diffusion, Net
from ddpm.errors import UsageError
from ddpm.generate import Model, clip_of, identity_of, sampling_settings
from ddpm.images import Crop, read_png, save_png, to_arrays, to_model
from ddpm.noise import ImageNoise
from ddpm.paper.sheet import Cell, sheet
from ddpm.progress import progress_bar
from ddpm.samplers import State, steps_below
from ddpm.schedule import Steps, sampling_steps

REPAINT_STEPS = 250
"""Steps of RePaint where the checkpoint names none: the paper's (arXiv 2201.09865, Section 5.1)."""
REPAINT_JUMP, REPAINT_REPEATS = 10, 10
"""Its j and r there."""

ROW = 8
"""Results in a row of the grid."""
GRID_LIMIT = 32
"""Results of a picture in the grid; all are in files of their own."""
HOLE = 0.0
"""Grey, of [-1, 1], that stands in the grid for what is to be filled."""


@dataclass(frozen=True)
class Editor:
    """A model with the settings of its chain: ancestral steps, the noise of result number i keyed by (seed, i).

    A result does not depend on the batch, nor on which pictures are edited beside it.
    """

    model: Model
    settings: SamplingSection
    crop: Crop | None
    """Where all the given pictures lie in their frames; None: the whole frames."""

    @property
    def T(self) -> int:
        return self.model.diffusion.schedule.T

    @property
    def steps(self) -> Steps:
        """From T down to 0."""
        settings, schedule = self.settings, self.model.diffusion.schedule
        return sampling_steps(schedule, settings.steps, settings.spacing or DEFAULT_SPACING)

    @property
    def diffusion(self) -> Diffusion:
        """The model's process, its variance made fit for the steps."""
        return self.model.diffusion.for_steps(len(self.steps))

    def network(self, numbers: Sequence[int]) -> Net:
        """What is called for the results of these numbers."""
        model = self.model
        return condition(model.network, model.config, numbers, self.settings, model.device)

    def noise(self, numbers: Sequence[int]) -> ImageNoise:
        data = self.model.config.data
        return ImageNoise(self.settings.seed, numbers, (data.channels, *data.size), self.model.device)

    def time(self, strength: float) -> int:
        """The t that is this share of T."""
        return round(strength * self.T)

    def frames(self, pictures: Sequence[Given]) -> Tensor:
        """(B, C, H, W) in [-1, 1]."""
        levels = torch.from_numpy(np.stack([picture.frame for picture in pictures])).to(self.model.device)
        return to_model(levels).contiguous(memory_format=torch.channels_last)

    def arrays(self, x: Tensor) -> np.ndarray:
        """uint8 (B, H, W, C), padding cropped off."""
        return to_arrays(x, self.crop)

    def edited(self, x0: Tensor, numbers: Sequence[int], t: int) -> Iterator[State]:
        """`samplers.edit` from time t; at T it draws what sampling draws."""
        steps, noise, step_noise = self.part(t, numbers)
        return samplers.edit(
            self.diffusion, self.network(numbers), x0, steps, eps=noise.start(), noise=step_noise, clip=self._clip
        )

    def interpolated(self, x0: Tensor, other: Tensor, number: int, t: int, shares: Sequence[float]) -> Iterator[State]:
        """`samplers.interpolate` of one pair, (1, C, H, W) each, by the same noise."""
        steps, noise, step_noise = self.part(t, [number])
        return samplers.interpolate(
            self.diffusion,
            self.network([number] * len(shares)),
            x0,
            other,
            shares,
            steps,
            eps=noise.start(),
            noise=step_noise,
            clip=self._clip,
        )

    def inpainted(self, x0: Tensor, known: Tensor, numbers: Sequence[int], walk: Steps) -> Iterator[State]:
        """`samplers.inpaint` along a walk of RePaint."""
        noise = self.noise(numbers)
        x = noise.start().contiguous(memory_format=torch.channels_last)
        net = self.network(numbers)
        return samplers.inpaint(self.diffusion, net, x, walk, x0=x0, known=known, noise=noise, clip=self._clip)

    @property
    def _clip(self) -> Any:
        return clip_of(self.settings)

    def below(self, t: int) -> Steps:
        """The steps from time t on."""
        return steps_below(self.steps, t)

    def part(self, t: int, numbers: Sequence[int]) -> tuple[Steps, ImageNoise, samplers.Noise]:
        """The steps from t on, and their noise: that of a step's place in the whole chain, wherever it begins."""
        steps, noise = self.below(t), self.noise(numbers)
        skipped = len(self.steps) - len(steps)
        return steps, noise, lambda k: noise(k + skipped)


def editor(model: Model, pictures: Sequence[Given], *, steps: int | None = None, **changes: Any) -> Editor:
    """An editor for these pictures.

    Args:
        changes: settings that differ from the checkpoint's: seed, batch_size, classes (None: without a class),
            guidance.

    Raises UsageError for an impossible setting.
    """
    if model.config.network.classes is not None and changes.get("classes") is None:
        changes["classes"] = "none"
    settings = sampling_settings(model, sampler="ancestral", steps=steps, **changes)
    return Editor(model, settings, common_crop({p.crop for p in pictures}, model.config.data.size))


def repaint_steps(model: Model) -> int | None:
    """The number of RePaint's steps where none is asked for: the checkpoint's, else REPAINT_STEPS, at most T."""
    T, own = model.diffusion.schedule.T, model.config.sampling.steps
    return own if own or model.diffusion.variance == "learned" else min(REPAINT_STEPS, T)


def repaint_walk(editor: Editor, jump: int | None, repeats: int | None) -> tuple[Steps, int, int]:
    """The walk of RePaint on the editor's steps, its jump and its repeats.

    Args:
        jump: None: REPAINT_JUMP, or as far as few steps allow.
        repeats: None: REPAINT_REPEATS.

    Raises UsageError for a jump that is too long, or has no effect.
    """
    count = len(editor.steps)
    if repeats == 1 and jump is not None:
        raise UsageError(f"--jump: {jump} has no effect with --repeats 1, which never goes back. Remove one of them")
    jump = min(REPAINT_JUMP, max(1, count - 1)) if jump is None else jump
    repeats = (REPAINT_REPEATS if count > 1 else 1) if repeats is None else repeats
    try:
        return samplers.repaint_walk(editor.steps, jump=jump, repeats=repeats), jump, repeats
    except ValueError as error:
        raise UsageError(f"--jump: {error}. Raise --steps, or lower --jump") from None


class Batch(NamedTuple):
    """Results that are drawn together."""

    names: Sequence[str]
    """Files that they are written to."""
    states: Callable[[], Iterator[State]]
    length: int
    """How many states there are."""


def identity(editor: Editor, command: str, pictures: Sequence[Given], **particular: Any) -> dict[str, Any]:
    """All that decides what the files of a folder look like (see `generate.claim`)."""
    return {
        "command": command,
        **identity_of(editor.model, editor.settings),
        "pictures": [digest(picture.frame) for picture in pictures],
        **particular,
    }


def digest(array: np.ndarray) -> str:
    """A short hash of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def draw(editor: Editor, folder: Path, batches: Sequence[Batch], *, what: str) -> int:
    """Draw the batches and write each result as it is done; returns how many."""
    made = 0
    with progress_bar(what, sum(batch.length for batch in batches), "step", show=bool(batches)) as bar:
        for batch in batches:
            with batch_fits(len(batch.names)):
                for state in batch.states():
                    bar.update()
                    x = state.x
            for name, array in zip(batch.names, editor.arrays(x), strict=True):
                save_png(folder / name, array)
                made += 1
    return made


def missing_batches(
    editor: Editor,
    folder: Path,
    places: Sequence[tuple[int, int]],
    states: Callable[[list[int], list[int]], Iterator[State]],
    length: int,
) -> list[Batch]:
    """Batches of those results, (place of the picture, number), that a folder does not have yet.

    Args:
        states: of the pictures at these places and the results of these numbers.
        length: how many there are.
    """
    absent = [place for place in places if not (folder / result_name(*place)).exists()]
    return [
        Batch(
            [result_name(*place) for place in part],
            partial(states, [p for p, _ in part], [i for _, i in part]),
            length,
        )
        for part in chunks(absent, editor.settings.batch_size)
    ]


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Parts of `size` items, the last one perhaps shorter."""
    return (items[i : i + size] for i in range(0, len(items), size))


def result_name(picture: int, number: int) -> str:
    """The file of result `number` of the picture at place `picture`, counted from 0."""
    return f"{picture + 1:02d}-{number:05d}.png"


def before_name(picture: int) -> str:
    """The file of a picture as the model sees it."""
    return f"before-{picture + 1:02d}.png"


def before_and_after(
    folder: Path, before: Sequence[Sequence[np.ndarray]], heads: Sequence[str], count: int, *, title: str, note: str
) -> np.ndarray:
    """The grid of `edit` and `inpaint`: a row for each picture, what it was on the left, what became of it beside.

    Args:
        before: for each picture, the columns before the results, uint8 (H, W, C).
        heads: names of these columns.
        count: results of each picture.
    """
    shown = min(count, GRID_LIMIT)
    columns = min(shown, ROW)
    rows: list[list[Cell]] = []
    for p, firsts in enumerate(before):
        left: list[Cell] = [(array, "") for array in firsts]
        for numbers in chunks(range(shown), ROW):
            results: list[Cell] = [(read_png(folder / result_name(p, i)), "") for i in numbers]
            rows.append([*left, *results, *[None] * (columns - len(results))])
            left = [None] * len(firsts)
    after = ["after", *[""] * (columns - 1)]
    return sheet(rows, title=title, columns=[*heads, *after], note=note)
