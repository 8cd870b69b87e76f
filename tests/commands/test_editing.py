"""`ddpm interpolate`, `inpaint` and `edit`: files, grids, messages, and that result number i is result number i."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm import edits
from ddpm.cli import main
from ddpm.data.given import read_picture
from ddpm.generate import load, sample
from ddpm.images import read_png, save_png, to_arrays
from ddpm.run import train
from tests.tiny import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny(sampling__steps=None, training__learning_rate=1e-2)
    return train(config, tmp_path_factory.mktemp("runs") / "tiny", progress=False).checkpoint


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two pictures of the model's size, a large one in colour, and a mask: the upper half is white."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, shape in (("a", (8, 8, 1)), ("b", (8, 8, 1)), ("large", (30, 20, 3))):
        save_png(tmp_path / f"{name}.png", rng.integers(0, 256, shape, np.uint8))
    mask = np.zeros((8, 8, 1), np.uint8)
    mask[:4] = 255
    save_png(tmp_path / "mask.png", mask)
    return tmp_path


def _run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in (*arguments, "--device", "cpu")])
    except SystemExit as error:
        return int(error.code or 0)


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert _run(*arguments, "--json") == 0
    return dict(json.loads(capsys.readouterr().out))


def _pictures(folder: str | Path) -> dict[str, np.ndarray]:
    return {path.name: read_png(path) for path in Path(folder).glob("[0-9]*.png")}


def _same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Within one grey level: float32 rounds differently in batches of other sizes."""
    assert a.keys() == b.keys()
    for name in a:
        assert np.abs(a[name].astype(int) - b[name]).max() <= 1


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("edit", "a.png", "b.png"), ("--strength", "0.5", "--num-samples", "3")),
        (("inpaint", "a.png", "b.png"), ("--box", "2,2,4,3", "--jump", "4", "--repeats", "2", "--num-samples", "3")),
        (("interpolate", "a.png", "b.png"), ("--strength", "0.5,0.2", "--between", "3", "--num-samples", "2")),
    ],
    ids=["edit", "inpaint", "interpolate"],
)
def test_results_do_not_depend_on_the_batch_nor_on_an_interruption(
    checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], options: tuple[str, ...]
) -> None:
    name, *pictures = command
    whole = _json(capsys, name, checkpoint, *pictures, *options, "--out", "whole", "--batch-size", "64")
    _json(capsys, name, checkpoint, *pictures, *options, "--out", "apart", "--batch-size", "2")
    first = _pictures("whole")
    assert len(first) == whole["made"] == len(whole["results"])
    _same(first, _pictures("apart"))
    assert np.array_equal(read_png(Path("whole/before-01.png")), read_png(here / "a.png"))
    assert read_png(Path("whole/grid.png")).shape[2] == 3
    # What is missing is made again; the rest stays.
    lost = Path(whole["results"][1])
    lost.unlink()
    assert _json(capsys, name, checkpoint, *pictures, *options, "--out", "whole", "--batch-size", "64")["made"] == 1
    _same(first, _pictures("whole"))
    # Another seed: other pictures, in a folder of their own, and never in a named one.
    assert _run(name, checkpoint, *pictures, *options, "--seed", "1", "--out", "whole") == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err
    other = _json(capsys, name, checkpoint, *pictures, *options, "--seed", "1", "--out", "other")
    assert other["seed"] == 1
    assert any(np.abs(first[n].astype(int) - a).max() > 1 for n, a in _pictures("other").items())


def test_the_default_folder_is_beside_the_run_and_is_not_overwritten(
    checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("edit", checkpoint, "a.png", "--num-samples", "1")
    one, two = (Path(_json(capsys, *common, "--strength", s)["folder"]) for s in ("0.5", "0.6"))
    assert one == checkpoint.parent.parent / "edit" / "tiny"
    assert two == one.with_name("tiny-2")


def test_the_pictures_beside_do_not_matter(checkpoint: Path, here: Path) -> None:
    assert _run("edit", checkpoint, "a.png", "b.png", "--num-samples", "2", "--out", "both") == 0
    assert _run("edit", checkpoint, "b.png", "--num-samples", "1", "--out", "one") == 0
    _same({"x": _pictures("one")["01-00000.png"]}, {"x": _pictures("both")["02-00000.png"]})


def test_strength_0_returns_the_picture_and_1_is_sampling(checkpoint: Path, here: Path) -> None:
    assert _run("edit", checkpoint, "a.png", "--strength", "0", "--num-samples", "2", "--out", "0") == 0
    for array in _pictures("0").values():
        assert np.array_equal(array, read_png(here / "a.png"))
    assert _run("edit", checkpoint, "a.png", "--strength", "1", "--num-samples", "2", "--out", "1") == 0
    drawn = sample(load(checkpoint, device="cpu"), 2)
    _same(_pictures("1"), {"01-00000.png": drawn[0], "01-00001.png": drawn[1]})


def test_an_inpainted_picture_keeps_what_is_black_in_the_mask(checkpoint: Path, here: Path) -> None:
    walk = ("--num-samples", "2", "--jump", "5", "--repeats", "2")
    assert _run("inpaint", checkpoint, "a.png", "--mask", "mask.png", *walk, "--out", "m") == 0
    assert _run("inpaint", checkpoint, "a.png", "--box", "0,0,8,4", *walk, "--out", "b") == 0
    original = read_png(here / "a.png")
    for name, array in _pictures("m").items():
        assert np.array_equal(array[4:], original[4:])
        assert (array[:4] != original[:4]).mean() > 0.8
        assert np.array_equal(array, _pictures("b")[name])


def test_an_interpolation_has_the_reconstructions_at_its_ends(checkpoint: Path, here: Path) -> None:
    """Lambda 0 and 1 are what editing each picture with the same noise gives; t = 0 mixes the pixels."""
    assert _run("interpolate", checkpoint, "a.png", "b.png", "--strength", "0.5,0", "--between", "1", "--out", "i") == 0
    row = _pictures("i")
    assert set(row) == {f"00000-t{t}-{k:02d}.png" for t in ("0010", "0000") for k in range(3)}
    assert _run("edit", checkpoint, "a.png", "b.png", "--strength", "0.5", "--num-samples", "1", "--out", "e") == 0
    rec = _pictures("e")
    ends = {"a": row["00000-t0010-00.png"], "b": row["00000-t0010-02.png"]}
    _same(ends, {"a": rec["01-00000.png"], "b": rec["02-00000.png"]})
    a, b = (read_png(here / f"{name}.png").astype(float) for name in "ab")
    assert np.abs(row["00000-t0000-01.png"] - (a + b) / 2).max() <= 0.5


def test_fewer_steps_take_the_posterior_variance(checkpoint: Path, here: Path) -> None:
    model = load(checkpoint, device="cpu")
    picture = read_picture(here / "a.png", model.config.data)
    whole, few = (edits.editor(model, [picture], steps=steps) for steps in (None, 5))
    assert (whole.diffusion.variance, few.diffusion.variance) == ("fixed_large", "fixed_small")


def test_the_noise_at_a_time_is_the_same_wherever_the_chain_begins(checkpoint: Path, here: Path) -> None:
    model = load(checkpoint, device="cpu")
    editor = edits.editor(model, [read_picture(here / "a.png", model.config.data)])
    whole, steps, noise = editor.noise([0]), *editor.part(7, [0])[::2]
    assert len(steps) == 7
    assert torch.equal(noise(0), whole(13))


def test_pictures_of_another_size_are_treated_as_in_training(
    checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The box is in pixels of the file: its lower half is the lower half of what the model sees."""
    assert _run("inpaint", checkpoint, "large.png", "--box", "0,15,20,15", "--repeats", "1", "--out", "x") == 0
    said = capsys.readouterr().out
    assert "large.png: 20 x 30, scaled and cut to 8 x 8, RGB made grey, as in training" in said
    before, after = read_png(Path("x/before-01.png")), _pictures("x")["01-00000.png"]
    assert before.shape == after.shape == (8, 8, 1)
    assert np.array_equal(after[:4], before[:4])
    assert (after[4:] != before[4:]).mean() > 0.8


def test_padding_is_cropped_off_again(tmp_path: Path, here: Path) -> None:
    done = train(tiny(data__resize="pad"), tmp_path / "padded", progress=False)
    save_png(here / "small.png", np.full((6, 4, 1), 200, np.uint8))
    options = ("--num-samples", "1", "--repeats", "1", "--box", "0,0,2,2", "--out", "x")
    assert _run("inpaint", done.checkpoint, "small.png", *options) == 0
    (after,) = _pictures("x").values()
    assert after.shape == (6, 4, 1)
    assert (after[2:] == 200).all()
    # Pictures that lie in their frames differently stay in them.
    assert _run("edit", done.checkpoint, "small.png", "a.png", "--num-samples", "1", "--out", "y") == 0
    assert {array.shape for array in _pictures("y").values()} == {(8, 8, 1)}


def test_a_model_with_classes_is_told_one_or_none(
    tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    config = tiny(network__classes=10, training__label_dropout=0.2, training__learning_rate=1e-2)
    labelled = train(config, tmp_path / "labelled", progress=False).checkpoint
    made = {}
    for name, options in (("none", ()), ("3", ("--class", "3")), ("7,3", ("--class", "7,3"))):
        assert _run("edit", labelled, "a.png", *options, "--num-samples", "2", "--out", name) == 0
        made[name] = _pictures(name)
    _same({"x": made["3"]["01-00001.png"]}, {"x": made["7,3"]["01-00001.png"]})
    assert np.abs(made["none"]["01-00001.png"].astype(int) - made["3"]["01-00001.png"]).max() > 1
    assert _run("edit", labelled, "a.png", "--class", "3", "--guidance", "3", "--num-samples", "2", "--out", "g") == 0
    assert np.abs(_pictures("g")["01-00001.png"].astype(int) - made["3"]["01-00001.png"]).max() > 1
    assert json.loads(Path("g/settings.json").read_text())["guidance"] == 3
    options = ("--class", "3", "--repeats", "1", "--num-samples", "1", "--guidance", "2", "--out", "i")
    assert _run("inpaint", labelled, "a.png", "--box", "0,0,4,4", *options) == 0
    assert _run("interpolate", labelled, "a.png", "b.png", "--class", "3", "--between", "1", "--out", "j") == 0
    capsys.readouterr()
    assert _run("edit", checkpoint, "a.png", "--class", "3", "--out", "x") == 2
    assert "this model was trained without classes" in capsys.readouterr().err
    assert _run("edit", labelled, "a.png", "--guidance", "2", "--out", "y") == 2
    assert "guidance: 2.0 has no effect with classes: none" in capsys.readouterr().err


def test_what_is_said(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("inpaint", checkpoint, "a.png", "--mask", "mask.png", "--out", "x") == 0
    said = capsys.readouterr().out
    assert "model      " in said
    assert "picture    a.png: 8 x 8\n" in said
    # T = 20, j = r = 10: 9 times 10 steps back, before the last step.
    assert "20 ancestral steps, jumps of 10, 10 times: 110 network calls an image" in said
    assert "made       4 images" in said
    assert "written    x: grid.png, before-NN.png, 01-00000.png to 01-00003.png" in said
    assert _run("edit", checkpoint, "a.png", "--steps", "4", "--strength", "0.5", "--out", "y") == 0
    assert "from t = 10 of 20 (strength 0.5), 2 of 4 ancestral steps, variance fixed_small" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("edit", "absent.png"), 1, "absent.png: no such file"),
        (("edit", "."), 1, ".: is a folder; name a picture file"),
        (("edit", "text.png"), 1, "text.png: is no image that can be read"),
        (("edit", "torn.png"), 1, "torn.png: "),
        (("edit", "a.png", "--strength", "1.5"), 2, "expected a number from 0"),
        (("edit", "a.png", "--strength", "nan"), 2, "expected a number from 0"),
        (("edit", "a.png", "--steps", "21"), 2, "more than the model's T = 20"),
        (("edit",), 2, "PICTURE"),
        (("inpaint", "a.png"), 2, "one of the arguments --mask --box is required"),
        (("inpaint", "a.png", "--mask", "mask.png", "--box", "0,0,1,1"), 2, "not allowed with"),
        (("inpaint", "a.png", "--mask", "absent.png"), 1, "absent.png: no such file"),
        (("inpaint", "a.png", "--mask", "large.png"), 1, "the mask has 20 x 30 pixels, but a.png has 8 x 8"),
        (("inpaint", "a.png", "--mask", "black.png"), 1, "leaves nothing to fill"),
        (("inpaint", "a.png", "--mask", "white.png"), 1, "leaves nothing of the picture"),
        (("inpaint", "a.png", "--box", "5,5,4,2"), 2, "does not lie inside a.png, which has 8 x 8 pixels"),
        (("inpaint", "a.png", "--box", "5,5,0,2"), 2, "does not lie inside a.png"),
        (("inpaint", "a.png", "--box", "0,0,8,8"), 2, "leaves nothing of the picture"),
        (("inpaint", "large.png", "--box", "0,0,20,2"), 2, "leaves nothing to fill in what the model sees"),
        (("inpaint", "a.png", "--box", "1,2,3"), 2, "expected four whole numbers"),
        (("inpaint", "a.png", "--box", "-1,2,3,4"), 2, "expected"),
        (("inpaint", "a.png", "--box", "0,0,2,2", "--jump", "20"), 2, "a jump of 20 steps needs"),
        (("inpaint", "a.png", "--box", "0,0,2,2", "--jump", "2", "--repeats", "1"), 2, "no effect with --repeats 1"),
        (("interpolate", "a.png"), 2, "PICTURE"),
        (("interpolate", "a.png", "b.png", "--strength", "0.5,0.51"), 2, "the times 10, 10 of 20"),
    ],
)
def test_mistakes_have_a_code_and_a_reason(
    checkpoint: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    (here / "text.png").write_text("no picture")
    (here / "torn.png").write_bytes((here / "large.png").read_bytes()[:200])
    for name, level in (("black", 0), ("white", 255)):
        save_png(here / f"{name}.png", np.full((8, 8, 1), level, np.uint8))
    command, *rest = arguments
    assert _run(command, checkpoint, *rest, "--out", "x") == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert not (here / "x").exists()


def test_the_grid_shows_the_parts_in_order(checkpoint: Path, here: Path) -> None:
    """From the left: the picture, what the model was given, the results."""
    save_png(here / "dark.png", np.full((8, 8, 1), 10, np.uint8))
    assert _run("inpaint", checkpoint, "dark.png", "--box", "0,0,8,8", "--out", "x") == 2
    mask = np.full((8, 8, 1), 255, np.uint8)
    mask[0] = 0
    save_png(here / "most.png", mask)
    assert _run("inpaint", checkpoint, "dark.png", "--mask", "most.png", "--num-samples", "2", "--out", "x") == 0
    page = read_png(Path("x/grid.png")).astype(int)
    tall = (page < 250).all(2).sum(0) >= 60  # columns of the page that a picture, 64 high, fills
    starts = np.flatnonzero(tall & ~np.roll(tall, 1))
    assert len(starts) >= 2
    rows = np.flatnonzero((page[:, starts[0] + 5] == 10).all(1))
    middle = int(rows.mean())
    assert (page[middle, starts[0] + 30] == 10).all()
    assert (page[middle, starts[1] + 30] == to_arrays(torch.zeros(1, 1, 1, 1)).item()).all()
