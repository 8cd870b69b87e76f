"""What the page does, without the page: the same images as the command line, and requests within bounds."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm import checkpoint, generate, play
from ddpm.cli import main
from ddpm.errors import DataError, DDPMError, UsageError
from ddpm.images import read_png
from ddpm.interop.bare import bare_checkpoint
from ddpm.play import Playground, Wish, found_in, save_results
from ddpm.training_loop import build_network
from tests.interop.test_diffusers import lively
from tests.tiny import tiny


def saved(path: Path, **changes: object) -> Path:
    config = tiny(**changes)
    network = build_network(config)
    lively(network)
    facts = checkpoint.DataFacts(10, "f", tuple("0123456789"))
    checkpoint.save(path, bare_checkpoint(network.state_dict(), config, step=5, data=facts))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    saved(folder / "plain.pt")
    saved(folder / "told.pt", network__classes=10)
    return folder


@pytest.fixture(scope="module")
def ground(folder: Path) -> Playground:
    return Playground([folder / "plain.pt", folder / "told.pt"], torch.device("cpu"))


@pytest.fixture
def wish(ground: Playground) -> Wish:
    return Wish(ground.names[0], "ddim", steps=6, seed=3, count=4)


def test_it_draws_what_the_command_line_draws(ground: Playground, wish: Wish, tmp_path: Path) -> None:
    frames = list(ground.draw(wish))
    model = generate.load(wish.model, device="cpu")
    images = generate.sample(model, 4, sampler="ddim", eta=0.0, steps=6, seed=3)
    assert np.array_equal(frames[-1].x, play._sheet(images))
    assert [frame.t for frame in frames][-1] == 0
    assert len(frames) == 6
    assert np.array_equal(frames[-1].x, frames[-1].x0)  # ddim ends in the estimate
    assert not np.array_equal(frames[0].x, frames[0].x0)
    png, gif = save_results(tmp_path, frames)
    assert np.array_equal(read_png(png), frames[-1].x)
    with Image.open(gif) as film:
        assert film.n_frames == 6  # type: ignore[attr-defined]


def test_long_chains_are_thinned(ground: Playground, wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "FRAMES", 4)
    times = [frame.t for frame in ground.draw(replace(wish, steps=20))]
    assert len(times) == 4
    assert times[0] == 19
    assert times[-1] == 0


def test_classes_and_guidance(ground: Playground, wish: Wish) -> None:
    told = replace(wish, model=ground.names[1], classes="3", guidance=2.0)
    *_, last = ground.draw(told)
    model = generate.load(told.model, device="cpu")
    images = generate.sample(model, 4, sampler="ddim", eta=0.0, steps=6, seed=3, classes=3, guidance=2.0)
    assert np.array_equal(last.x, play._sheet(images))
    *_, none = ground.draw(replace(told, classes="none"))  # guidance has no effect then, and is not asked for
    assert not np.array_equal(none.x, last.x)


def test_two_samplers_from_the_same_noise(ground: Playground, wish: Wish) -> None:
    one, two, difference = ground.compare(wish, "ancestral", 0.0)
    *_, drawn = ground.draw(wish)
    assert np.array_equal(one, drawn.x)
    assert difference > 1
    same = ground.compare(wish, "ddim", 0.0)
    assert np.array_equal(same[0], same[1])
    assert same[2] == 0
    assert not np.array_equal(one, two)


def test_a_picture_noised_and_denoised(ground: Playground, wish: Wish, tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(path)
    given = ground.picture(wish.model, path)
    (untouched,) = ground.denoise(replace(wish, count=1), given, 0)
    assert np.array_equal(untouched.x, play._sheet(given.frame.transpose(1, 2, 0)[None]))
    frames = list(ground.denoise(wish, given, 10))
    assert frames[0].t == 10
    assert (frames[0].x0 == play.PAPER).all()  # before the network was asked there is no estimate
    assert frames[-1].t == 0


def test_two_pictures_interpolated(ground: Playground, wish: Wish, tmp_path: Path) -> None:
    for name, level in (("a", 40), ("b", 220)):
        Image.new("L", (8, 8), level).save(tmp_path / f"{name}.png")
    pair = [ground.picture(wish.model, tmp_path / f"{name}.png") for name in "ab"]
    *_, mixed = ground.interpolate(wish, *pair, t=0, between=3)
    h = mixed.x.shape[0] // 2
    levels = [int(mixed.x[h, x, 0]) for x in range(20, mixed.x.shape[1], mixed.x.shape[1] // 5)]
    assert levels == sorted(levels)
    assert levels[0] == 40
    assert levels[-1] == 220
    frames = list(ground.interpolate(wish, *pair, t=15, between=3))
    assert frames[-1].x.shape == mixed.x.shape


def test_drawings(ground: Playground, wish: Wish) -> None:
    canvas = Image.new("RGBA", (280, 280), (0, 0, 0, 0))
    canvas.paste((0, 0, 0, 255), (100, 40, 180, 240))  # a dark bar on nothing
    light = ground.drawing(wish.model, canvas, invert=True).frame
    dark = ground.drawing(wish.model, canvas, invert=False).frame
    assert light.shape == (1, 8, 8)
    assert light[0, 4, 4] > 200 > 50 > light[0, 4, 0]
    assert np.abs(255 - light.astype(int) - dark).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 17}, "images: found 17, expected a whole number from 1 to 16"),
        ({"count": 0}, "images: found 0"),
        ({"steps": 21}, "steps: found 21, expected a whole number from 1 to 20"),
        ({"seed": -1}, "seed: found -1"),
        ({"seed": 2**63}, "seed: found"),
        ({"sampler": "magic"}, "sampler: 'magic': expected ancestral"),
        ({"eta": 7.0}, "eta: found 7.0"),
        ({"model": "/etc/passwd"}, "model: '/etc/passwd' is not on offer here"),
    ],
)
def test_requests_out_of_bounds(ground: Playground, wish: Wish, change: dict[str, object], message: str) -> None:
    with pytest.raises(DDPMError, match=message.split("(")[0]):
        list(ground.draw(replace(wish, **change)))  # type: ignore[arg-type]


def test_other_bounds(ground: Playground, wish: Wish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    given = ground.picture(wish.model, tmp_path / "a.png")
    with pytest.raises(UsageError, match="t: found 21, expected a whole number from 0 to 20"):
        list(ground.denoise(wish, given, 21))
    with pytest.raises(UsageError, match="mixtures: found 10"):
        list(ground.interpolate(wish, given, given, 5, 10))
    monkeypatch.setattr(play, "MOST_CALLS", 23)
    with pytest.raises(UsageError, match="would call the network 24 times, more than this page's 23"):
        list(ground.draw(wish))
    told = replace(wish, model=ground.names[1])
    with pytest.raises(UsageError, match="is no class of this model"):
        list(ground.draw(replace(told, classes="eleven")))
    monkeypatch.setattr(play, "MOST_SIDE", 4)
    with pytest.raises(UsageError, match="8x8 are too large for this page"):
        list(ground.draw(wish))


def test_bad_files(ground: Playground, wish: Wish, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(DataError, match=r"bad\.png: is no image that can be read"):
        ground.picture(wish.model, tmp_path / "bad.png")
    # A small file of a huge picture.
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="decompression bomb"):
        ground.picture(wish.model, tmp_path / "bomb.png")


def test_models_are_kept_for_a_while(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "LOADED", 1)
    ground = Playground([folder / "plain.pt", folder / "told.pt"], torch.device("cpu"))
    first = ground.model(ground.names[0])
    assert ground.model(ground.names[0]) is first
    ground.model(ground.names[1])
    assert ground.model(ground.names[0]) is not first


def test_checkpoints_are_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("output/a/diffusion-3.pt", "output/a/diffusion-12.pt", "output/b/c/diffusion-1.pt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    found = [str(path.relative_to(tmp_path)) for path in found_in(tmp_path / "output")]
    assert found == ["output/a/diffusion-12.pt", "output/b/c/diffusion-1.pt"]
    assert found_in(tmp_path / "absent") == []
    monkeypatch.setattr(play, "pretrained", dict)
    with pytest.raises(UsageError, match="there is no checkpoint; name one, or train one first"):
        Playground([], torch.device("cpu"))


def test_the_command_says_what_is_wrong(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["app", "absent.pt"]) == 1
    assert "no such checkpoint" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", str(folder / "plain.pt"), "--device", "cpu"]) == 1
    assert "ddpm app needs the package gradio: pip install 'ddpm[app]'" in capsys.readouterr().err
