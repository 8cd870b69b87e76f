"""`ddpm app`: a page on this machine to play with models (the extra `app`). What it does is in `play`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm.choices import EFFECTIVE
from ddpm.errors import DDPMError, UsageError
from ddpm.play import FRAMES, MOST_BETWEEN, MOST_IMAGES, MOST_STEPS, Frame, Playground, Wish, save_results

HOST = "127.0.0.1"
WAITING = 8
"""Requests that may wait in the queue; more are turned away."""
SESSIONS = 50
"""Visitors whose last chain is remembered."""
UPLOAD = "5mb"
"""Largest file that may be uploaded."""

_ABOUT = """# Denoising diffusion
Noise becomes a picture, step by step. Left: the picture on its way, x_t. Right: what the model takes it for at that
moment, its estimate of x_0."""

_CSS = """
.pixels img { image-rendering: pixelated; padding: 32px 6px 6px; box-sizing: border-box; object-fit: contain; }
.said { min-height: 1.6em; }
footer { display: none !important; }
"""


def build(ground: Playground) -> Any:
    """The page, as a gradio.Blocks. Raises DDPMError if gradio is not installed."""
    gr = _gradio()

    def guarded(work: Callable[..., Any]) -> Callable[..., Any]:
        """Whatever the user can act on becomes a note on the page; a generator stays one."""

        @wraps(work)
        def run(*arguments: Any) -> Iterator[Any]:
            try:
                yield from work(*arguments)
            except DDPMError as error:
                raise gr.Error(str(error), title="This does not work", duration=20) from None

        return run

    def wish(name: str, sampler: str, steps: float, eta: float, classes: str, guidance: float, seed: Any) -> Wish:
        return Wish(name, sampler, _whole(steps, "steps"), eta, classes, guidance, _whole(seed, "seed"))  # type: ignore[arg-type]

    def filmed(frames: Iterator[Frame]) -> Iterator[list[Any]]:
        """Outputs of a chain as it goes: the pictures, the words, and at the end the scrubber and the files."""
        kept: list[Frame] = []
        for frame in frames:
            kept.append(frame)
            yield [*_shown(frame), gr.skip(), gr.skip(), gr.skip(), gr.skip()]
        png, gif = save_results(Path(tempfile.mkdtemp(dir=scratch)), kept)
        scrubber = gr.Slider(maximum=len(kept) - 1, value=len(kept) - 1, interactive=True)
        yield [*_shown(kept[-1]), kept, scrubber, _file(gr, png), _file(gr, gif)]

    @guarded
    def draw(count: float, *chosen: Any) -> Iterator[list[Any]]:
        asked = wish(*chosen)
        yield from filmed(ground.draw(_counted(asked, count)))

    @guarded
    def denoise(source: str, drawn: Any, path: str | None, invert: bool, t: float, count: float, *chosen: Any) -> Any:
        asked = wish(*chosen)
        yield from filmed(
            ground.denoise(_counted(asked, count), _given(ground, asked.model, source, drawn, path, invert), int(t))
        )

    @guarded
    def interpolate(first: str | None, second: str | None, t: float, between: float, *chosen: Any) -> Any:
        asked = wish(*chosen)
        if not first or not second:
            raise UsageError("two pictures are needed: upload both")
        one, two = (ground.picture(asked.model, Path(path)) for path in (first, second))
        yield from filmed(ground.interpolate(asked, one, two, int(t), _whole(between, "mixtures")))

    @guarded
    def compare(other: str, other_eta: float, count: float, *chosen: Any) -> Iterator[list[Any]]:
        asked = _counted(wish(*chosen), count)
        yield [gr.skip(), gr.skip(), f"Drawing with {asked.sampler}, then with {other} ..."]
        one, two, difference = ground.compare(asked, other, other_eta)  # type: ignore[arg-type]
        words = (
            f"**{asked.sampler}** and **{other}**, {asked.steps} steps each, seed {asked.seed}: the same noise. "
            f"Mean difference: {difference:.1f} of 255 grey levels."
        )
        yield [_rgb(one), _rgb(two), words]

    def scrub(kept: Sequence[Frame] | None, place: float) -> list[Any]:
        if not kept:
            return [gr.skip(), gr.skip(), "Draw first; then this moves through time."]
        return _shown(kept[min(int(place), len(kept) - 1)])

    @guarded
    def choose(name: str) -> Iterator[list[Any]]:
        """What the controls can be set to depends on the model."""
        at = _limits(ground, name)
        yield [
            at.words,
            gr.Slider(maximum=at.steps, value=at.usual),
            gr.Dropdown(choices=at.classes, value=at.classes[0], visible=len(at.classes) > 1),
            gr.Slider(visible=len(at.classes) > 1),
            gr.Slider(maximum=at.T, value=at.T // 2),
            gr.Slider(maximum=at.T, value=at.T // 2),
            gr.Checkbox(value=at.grey),
        ]

    at = _limits(ground, ground.names[0])
    told = len(at.classes) > 1
    scratch = tempfile.mkdtemp(prefix="ddpm-app-")
    with gr.Blocks(title="ddpm", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(_ABOUT)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                name = gr.Dropdown(_labelled(ground.names), value=ground.names[0], label="Model", elem_id="model")
            with gr.Column(scale=2, min_width=200):
                facts = gr.Markdown(at.words, elem_id="facts")
        with gr.Row():
            sampler = gr.Dropdown(list(EFFECTIVE), value="ddim", label="Sampler", elem_id="sampler", min_width=140)
            steps = gr.Slider(1, at.steps, at.usual, step=1, label="Steps", elem_id="steps", min_width=200)
            eta = gr.Slider(0, 1, 0, step=0.05, label="eta", elem_id="eta", min_width=200)
            seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed", min_width=110)
        with gr.Row():
            classes = gr.Dropdown(
                at.classes, value=at.classes[0], label="Class", elem_id="class", min_width=140, visible=told,
                allow_custom_value=True,
            )  # fmt: skip
            guidance = gr.Slider(
                1, 8, 1, step=0.25, label="Guidance (1: off)", elem_id="guidance", min_width=200, visible=told
            )
        chosen = [name, sampler, steps, eta, classes, guidance, seed]
        sampler.change(lambda s: gr.Slider(visible="eta" in EFFECTIVE[s]), sampler, eta, api_visibility="private")

        def film(key: str, button: Any, stop: Any, work: Callable[..., Any], inputs: list[Any]) -> None:
            """The two pictures, the scrubber and the files of a chain, filled by a button."""
            kept = gr.State(None)
            with gr.Row():
                now = _picture(gr, "x_t: on its way", f"{key}-x")
                estimate = _picture(gr, "Estimate of x_0", f"{key}-x0")
            said = gr.Markdown("", elem_id=f"{key}-said", elem_classes="said")
            place = gr.Slider(
                0, FRAMES - 1, 0, step=1, label="Through time: noise ... picture", elem_id=f"{key}-scrub",
                interactive=False,
            )  # fmt: skip
            with gr.Row():
                png = gr.DownloadButton("Sheet (PNG)", interactive=False, elem_id=f"{key}-png", min_width=140)
                gif = gr.DownloadButton("Animation (GIF)", interactive=False, elem_id=f"{key}-gif", min_width=140)
            running = button.click(
                work, inputs, [now, estimate, said, kept, place, png, gif], show_progress="hidden", api_name=key
            )
            stop.click(None, cancels=[running])
            place.input(
                scrub, [kept, place], [now, estimate, said], show_progress="hidden", queue=False,
                api_visibility="private",
            )  # fmt: skip

        with gr.Tab("Draw"):
            with gr.Row():
                count = _count(gr, "draw-count")
                go, stop = _buttons(gr, "draw", "Draw")
            film("draw", go, stop, draw, [count, *chosen])
        with gr.Tab("Compare"):
            with gr.Row():
                other = gr.Dropdown(list(EFFECTIVE), value="ancestral", label="Other sampler", elem_id="other")
                other_eta = gr.Slider(0, 1, 0, step=0.05, label="Its eta (ddim alone)", min_width=200)
                compared = _count(gr, "compare-count")
                go, stop = _buttons(gr, "compare", "Compare")
            with gr.Row():
                one = _picture(gr, "The sampler chosen above", "compare-one")
                two = _picture(gr, "The other", "compare-two")
            words = gr.Markdown("Both start from the same noise.", elem_id="compare-said")
            running = go.click(
                compare, [other, other_eta, compared, *chosen], [one, two, words], show_progress="hidden",
                api_name="compare",
            )  # fmt: skip
            stop.click(None, cancels=[running])
        with gr.Tab("Edit"):
            with gr.Row():
                with gr.Column(min_width=300):
                    drawn = gr.Sketchpad(
                        label="Draw", type="pil", canvas_size=(280, 280), fixed_canvas=True, layers=False,
                        brush=gr.Brush(default_size=22, colors=["#000000"], color_mode="fixed"), height=400,
                        elem_id="drawing",
                    )  # fmt: skip
                with gr.Column(min_width=300):
                    file = _upload(gr, "or upload", "upload")
                    source = gr.Radio(["drawing", "upload"], value="drawing", label="Use", elem_id="source")
                    invert = gr.Checkbox(at.grey, label="A drawing is made light on dark")
            with gr.Row():
                when = gr.Slider(0, at.T, at.T // 2, step=1, label="Noised to t", elem_id="when", min_width=200)
                denoised = _count(gr, "denoise-count")
                go, stop = _buttons(gr, "denoise", "Noise and denoise")
            film("denoise", go, stop, denoise, [source, drawn, file, invert, when, denoised, *chosen])
        with gr.Tab("Mix"):
            with gr.Row():
                first = _upload(gr, "From", "first")
                second = _upload(gr, "To", "second")
            with gr.Row():
                mixed = gr.Slider(0, at.T, at.T // 2, step=1, label="Mixed at t", elem_id="mixed", min_width=200)
                between = gr.Slider(
                    1, MOST_BETWEEN, 5, step=1, label="Mixtures between", elem_id="between", min_width=200
                )
                go, stop = _buttons(gr, "interpolate", "Interpolate")
            film("interpolate", go, stop, interpolate, [first, second, mixed, between, *chosen])

        settled = [facts, steps, classes, guidance, when, mixed, invert]
        name.change(choose, name, settled, show_progress="hidden", api_visibility="private")
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


class Limits(NamedTuple):
    """What a model's controls run over."""

    words: str
    T: int
    steps: int
    """The most that the page takes."""
    usual: int
    classes: list[str]
    """The first is what is chosen; one alone: the model knows none."""
    grey: bool


def _limits(ground: Playground, name: str) -> Limits:
    model = ground.model(name)
    T, grey = model.diffusion.schedule.T, model.config.data.channels == 1
    h, w = model.config.data.size
    classes = ["all", "none", *model.data.class_names] if model.config.network.classes is not None else ["none"]
    words = f"{h} x {w}, {'grey' if grey else 'colour'}, T = {T}, {model.step:,} training steps"
    steps = min(T, MOST_STEPS)
    return Limits(words, T, steps, min(steps, 50), classes, grey)


def launch(ground: Playground, port: int | None, *, wait: bool = True) -> str:
    """Serve the page on this machine alone; returns its address, at once if not `wait`.

    Args:
        port: None: the first free one from 7860.
    """
    gr = _gradio()
    page = build(ground)
    theme = gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )  # no font is fetched from elsewhere
    _, address, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        max_file_size=UPLOAD,
        state_session_capacity=SESSIONS,
        prevent_thread_lock=True,
        show_error=True,
        enable_monitoring=False,
        ssr_mode=False,
        theme=theme,
        css=_CSS,
    )
    print(f"app        {address} (Ctrl+C ends it)", flush=True)
    if wait:
        page.block_thread()
    return str(address)


def _labelled(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names by their last two parts, where these tell them apart: a path is longer than the page is wide."""
    short = ["/".join(Path(name).parts[-2:]) for name in names]
    return [(tail if short.count(tail) == 1 else name, name) for tail, name in zip(short, names, strict=True)]


def _gradio() -> Any:
    import os
    import warnings

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its dependencies' own
            import gradio
    except ImportError:
        raise DDPMError("ddpm app needs the package gradio: pip install 'ddpm[app]'") from None
    return gradio


def _picture(gr: Any, label: str, key: str) -> Any:
    return gr.Image(
        label=label, interactive=False, format="png", height=360, elem_id=key, elem_classes="pixels", min_width=260,
        buttons=["download", "fullscreen"],
    )  # fmt: skip


def _upload(gr: Any, label: str, key: str) -> Any:
    """A picture of the visitor's, as a path: `play` opens it, with errors that can be read, and gradio does not."""

    class Upload(gr.Image):  # type: ignore[misc]
        is_template = True  # shown as a gr.Image

        def preprocess(self, payload: Any) -> str | None:
            return None if payload is None else payload.path

    return Upload(label=label, type="filepath", sources=["upload"], height=260, elem_id=key)


def _count(gr: Any, key: str) -> Any:
    return gr.Slider(1, MOST_IMAGES, 4, step=1, label="Images", elem_id=key, min_width=160)


def _buttons(gr: Any, key: str, label: str) -> tuple[Any, Any]:
    go = gr.Button(label, variant="primary", elem_id=f"{key}-go", min_width=120)
    return go, gr.Button("Stop", elem_id=f"{key}-stop", min_width=80, scale=0)


def _file(gr: Any, path: Path) -> Any:
    return gr.DownloadButton(value=str(path), interactive=True)


def _shown(frame: Frame) -> list[Any]:
    end = ": the picture" if frame.t == 0 else ""
    return [_rgb(frame.x), _rgb(frame.x0), f"**t = {frame.t:.4g}{end}**"]


def _rgb(array: np.ndarray) -> np.ndarray:
    return array.repeat(3, 2) if array.shape[2] == 1 else array


def _counted(wish: Wish, count: float) -> Wish:
    from dataclasses import replace

    return replace(wish, count=_whole(count, "images"))


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != int(value):
        raise UsageError(f"{what}: found {value!r}, expected a whole number")
    return int(value)


def _given(ground: Playground, name: str, source: str, drawn: Any, path: str | None, invert: bool) -> Any:
    if source == "upload":
        if not path:
            raise UsageError("there is no picture yet: upload one, or use the drawing")
        return ground.picture(name, Path(path))
    composite = (drawn or {}).get("composite")
    if composite is None or not np.asarray(composite.convert("RGBA"))[..., 3].any():
        raise UsageError("there is no drawing yet: draw something, or use an upload")
    return ground.drawing(name, composite, invert=invert)
