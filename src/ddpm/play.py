"""What the page to play with does, without the page: bounded requests in, pictures out step by step."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ddpm import checkpoint, edits, generate, shipped
from ddpm.choices import EFFECTIVE, SamplerName
from ddpm.config import SamplingSection
from ddpm.data.decode import decode
from ddpm.data.given import Given, read_picture
from ddpm.device import batch_fits
from ddpm.errors import UsageError
from ddpm.generate import Model
from ddpm.images import PAPER, grid, save_gif, save_png, to_arrays
from ddpm.samplers import State

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_IMAGES = 16
MOST_STEPS = 1000
MOST_SIDE = 256
MOST_CALLS = 16_000
"""Network calls of one request, each for one image."""
MOST_BETWEEN = 9
"""Mixtures between two pictures."""
FRAMES = 40
"""Moments of a chain that are kept to be looked at again."""
SHEET = 320
"""Height in pixels that a sheet of pictures has at least, without its gaps."""
LOADED = 3
"""Models in memory at a time."""


class Frame(NamedTuple):
    """The pictures at one moment, uint8 (H, W, C) each."""

    t: float
    x: np.ndarray
    """x_t, or a sheet of them."""
    x0: np.ndarray
    """The estimate of x_0 at that moment, on a sheet of the same form."""


@dataclass(frozen=True)
class Wish:
    """How to draw. None: as the checkpoint says."""

    model: str
    sampler: SamplerName = "ancestral"
    steps: int = 50
    eta: float = 0.0
    """Of ddim alone."""
    classes: str = "all"
    """Of a model with classes: a name, all, none."""
    guidance: float = 1.0
    """Of a model with classes."""
    seed: int = 0
    count: int = 4


def pretrained() -> Mapping[str, Callable[[], Path]]:
    """Models that come with the package, by name: what gives the file of each. The one place to add them."""
    there = [name for name, model in shipped.MODELS.items() if (shipped.FOLDER / model.file).is_file()]
    return {f"pretrained: {name}": partial(shipped.path_of, name) for name in there}


def found_in(folder: Path) -> list[Path]:
    """The latest checkpoint of each run below a folder, by path."""
    if not folder.is_dir():
        return []
    runs = sorted({path.parent for path in folder.rglob("diffusion-*.pt")})
    return [saved[-1] for run in runs if (saved := checkpoint.all_in(run))]


class Playground:
    """Models by name, and what can be done with them. Safe to call from several threads; one draws at a time."""

    def __init__(self, paths: Sequence[Path], device: torch.device):
        """
        Args:
            paths: checkpoints; the models that come with the package are added.

        Raises UsageError if there is no model at all.
        """
        self._places: dict[str, Callable[[], Path]] = {str(path): partial(Path, path) for path in paths}
        self._places |= pretrained()
        if not self._places:
            raise UsageError("app: there is no checkpoint; name one, or train one first: ddpm train CONFIG")
        self._device = device
        self._loaded: dict[str, Model] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def model(self, name: str) -> Model:
        """A model by its name, loaded once and kept for a while.

        Raises UsageError for an unknown name or a model too large for the page, DDPMError for a damaged file.
        """
        with self._lock:
            if name not in self._places:
                raise UsageError(f"model: {name!r} is not on offer here; expected {', '.join(self._places)}")
            model = self._loaded.pop(name, None) or generate.load(self._places[name](), device=self._device)
            if max(model.config.data.size) > MOST_SIDE:
                h, w = model.config.data.size
                raise UsageError(f"model: its images of {h}x{w} are too large for this page (at most {MOST_SIDE})")
            self._loaded[name] = model  # the latest last
            for old in list(self._loaded)[:-LOADED]:
                del self._loaded[old]
            return model

    def draw(self, wish: Wish) -> Iterator[Frame]:
        """The reverse process, about FRAMES moments of it, the end included. Raises UsageError and DDPMError."""
        model = self.model(wish.model)
        settings = self._settings(model, wish)
        yield from self._watched(model, settings, range(wish.count))

    def compare(self, wish: Wish, other: SamplerName, eta: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Two samplers from the same noise: their sheets, and the mean difference in grey levels."""
        model = self.model(wish.model)
        results = []
        for each in (wish, replace(wish, sampler=other, eta=eta)):
            settings = self._settings(model, each)
            with batch_fits(wish.count):
                *_, last = generate.states(model, range(wish.count), settings)
            results.append(to_arrays(last.x, model.data.crop))
        difference = float(np.abs(results[0].astype(int) - results[1].astype(int)).mean())
        return _sheet(results[0]), _sheet(results[1]), difference

    def denoise(self, wish: Wish, given: Given, t: int) -> Iterator[Frame]:
        """A picture noised to time t, then denoised `count` times. The first frame is what is noised."""
        model = self.model(wish.model)
        editor = self._editor(model, wish, [given], t)
        x0 = editor.frames([given]).repeat(wish.count, 1, 1, 1)
        with batch_fits(wish.count):
            yield from self._kept(editor.edited(x0, range(wish.count), t), len(editor.below(t)) + 1, editor.arrays)

    def interpolate(self, wish: Wish, given: Given, other: Given, t: int, between: int) -> Iterator[Frame]:
        """Two pictures mixed at time t, from the one to the other. Raises UsageError."""
        _bounded("mixtures", between, 1, MOST_BETWEEN)
        model = self.model(wish.model)
        shares = [k / (between + 1) for k in range(between + 2)]
        editor = self._editor(model, replace(wish, count=len(shares)), [given, other], t)
        x0 = editor.frames([given, other])
        states = editor.interpolated(x0[:1], x0[1:], 0, t, shares)
        row = partial(grid, columns=len(shares))
        with batch_fits(len(shares)):
            yield from self._kept(states, len(editor.below(t)) + 1, editor.arrays, row)

    def picture(self, name: str, path: Path) -> Given:
        """An uploaded file as the model sees it. Raises DataError if it is no picture."""
        return read_picture(path, self.model(name).config.data)

    def drawing(self, name: str, drawn: Image, *, invert: bool) -> Given:
        """A drawing, dark on light, as the model sees it.

        Args:
            invert: light on dark, as the digits of MNIST are.
        """
        from PIL import Image as Pillow
        from PIL import ImageOps

        config = self.model(name).config.data
        flat = Pillow.alpha_composite(Pillow.new("RGBA", drawn.size, "white"), drawn.convert("RGBA")).convert("RGB")
        if invert:
            flat = ImageOps.invert(flat)
        frame, crop = decode(flat, size=config.size, channels=config.channels, resize=config.resize)
        return Given(Path("drawing"), frame, crop, drawn.size, "drawn here")

    def _settings(self, model: Model, wish: Wish) -> SamplingSection:
        T = model.diffusion.schedule.T
        _bounded("images", wish.count, 1, MOST_IMAGES)
        _bounded("steps", wish.steps, 1, min(T, MOST_STEPS))
        _bounded("seed", wish.seed, 0, 2**63 - 1)
        if wish.sampler not in EFFECTIVE:
            raise UsageError(f"sampler: {wish.sampler!r}: expected {', '.join(EFFECTIVE)}")
        changes: dict[str, Any] = {"sampler": wish.sampler, "steps": wish.steps, "seed": wish.seed}
        if "eta" in EFFECTIVE[wish.sampler]:
            changes["eta"] = wish.eta
        settings = generate.sampling_settings(model, **changes, **self._classes(model, wish))
        self._afford(model, settings, wish.count)
        return settings

    def _classes(self, model: Model, wish: Wish) -> dict[str, Any]:
        """What the wish says of classes, for a model that has them."""
        if model.config.network.classes is None:
            return {}
        guided = wish.classes != "none" and wish.guidance != 1
        return {"classes": wish.classes, "guidance": wish.guidance if guided else None}

    def _afford(self, model: Model, settings: SamplingSection, count: int) -> None:
        calls = generate.network_calls(model, settings) * count * (2 if settings.guided else 1)
        if calls > MOST_CALLS:
            raise UsageError(
                f"this would call the network {calls:,} times, more than this page's {MOST_CALLS:,}: "
                "lower the number of steps or of images"
            )

    def _editor(self, model: Model, wish: Wish, pictures: Sequence[Given], t: int) -> edits.Editor:
        T = model.diffusion.schedule.T
        _bounded("images", wish.count, 1, MOST_IMAGES)
        _bounded("steps", wish.steps, 1, min(T, MOST_STEPS))
        _bounded("seed", wish.seed, 0, 2**63 - 1)
        _bounded("t", t, 0, T)
        editor = edits.editor(model, pictures, steps=wish.steps, seed=wish.seed, **self._classes(model, wish))
        self._afford(model, editor.settings, wish.count)
        return editor

    def _watched(self, model: Model, settings: SamplingSection, numbers: Sequence[int]) -> Iterator[Frame]:
        total = settings.steps or model.diffusion.schedule.T
        with batch_fits(len(numbers)):
            states = generate.states(model, numbers, settings)
            yield from self._kept(states, total, lambda x: to_arrays(x, model.data.crop))

    @staticmethod
    def _kept(
        states: Iterator[State],
        total: int,
        arrays: Callable[[Any], np.ndarray],
        sheet: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Iterator[Frame]:
        """Of `total` states the first, the last, and evenly spaced ones between."""
        keep = {round(i * (total - 1) / (FRAMES - 1)) for i in range(FRAMES)}
        sheet = sheet or _sheet
        for k, state in enumerate(states):
            if k in keep:
                x = sheet(arrays(state.x))
                x0 = np.full_like(x, PAPER) if state.x0 is None else sheet(arrays(state.x0))
                yield Frame(state.t, x, x0)


def save_results(folder: Path, frames: Sequence[Frame]) -> tuple[Path, Path]:
    """Write the last sheet as PNG and the whole chain as GIF; returns the files."""
    png, gif = folder / "grid.png", folder / "reverse-process.gif"
    save_png(png, frames[-1].x)
    save_gif(gif, [frame.x for frame in frames])
    return png, gif


def _sheet(arrays: np.ndarray) -> np.ndarray:
    """A square of pictures, about as large as the page shows it."""
    return grid(arrays, height=SHEET // math.ceil(math.sqrt(len(arrays))))


def _bounded(what: str, value: int, low: int, high: int) -> None:
    """Raises UsageError outside low..high: the page's own controls keep to it, but whoever calls it need not."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{what}: found {value!r}, expected a whole number from {low} to {high}")
