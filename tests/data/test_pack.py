"""Decoding by policy, the cache, the splits and the batches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm import data
from ddpm.data import decode, pack
from ddpm.data.batches import batch_indices
from ddpm.errors import DataError
from tests.data.test_sources import everything, load, picture


def _grey(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.arange(width * height, dtype=np.uint8).reshape(height, width) % 200)


def test_pad_is_centred_on_black_and_never_enlarges() -> None:
    frame, crop = decode.decode(_grey(5, 4), size=(8, 8), channels=1, resize="pad")
    assert crop == (2, 1, 4, 5)
    assert np.array_equal(frame[0, 2:6, 1:6], np.asarray(_grey(5, 4)))
    assert frame.sum() == np.asarray(_grey(5, 4)).sum()


def test_pad_shrinks_what_does_not_fit() -> None:
    frame, crop = decode.decode(_grey(40, 20), size=(8, 8), channels=1, resize="pad")
    assert crop == (2, 0, 4, 8)
    assert frame[0, :2].max() == 0
    assert frame[0, 2:6].min() > 0


def test_crop_takes_the_centre_at_the_shortest_side() -> None:
    levels = np.zeros((8, 24), np.uint8)
    levels[:, 8:16] = 200
    frame, crop = decode.decode(Image.fromarray(levels), size=(8, 8), channels=1, resize="crop")
    assert (frame == 200).all()
    assert crop == (0, 0, 8, 8)


def test_stretch_keeps_everything() -> None:
    levels = np.zeros((8, 16), np.uint8)
    levels[:, 8:] = 200
    frame, _ = decode.decode(Image.fromarray(levels), size=(8, 8), channels=1, resize="stretch")
    assert frame[0, :, :3].max() < 30
    assert frame[0, :, 5:].min() > 170


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_shrinking_is_antialiased(resize: str) -> None:
    """A fine chequerboard becomes grey, not stripes."""
    levels = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    frame, _ = decode.decode(Image.fromarray(levels), size=(8, 8), channels=1, resize=resize)  # type: ignore[arg-type]
    assert np.abs(frame.astype(int) - 127).max() < 20


def test_pixel_formats() -> None:
    def level(picture: Image.Image, channels: int = 1) -> list[int]:
        return decode.decode(picture, size=(2, 2), channels=channels, resize="crop")[0][:, 0, 0].tolist()

    assert level(Image.new("RGB", (2, 2), (255, 0, 0))) == [76]  # luminance
    assert level(Image.new("L", (2, 2), 90), 3) == [90, 90, 90]
    assert level(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), 3) == [255, 255, 255]  # transparent: white paper
    assert level(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), 3) == [127, 127, 127]
    assert level(Image.new("LA", (2, 2), (10, 255))) == [10]
    assert level(Image.fromarray(np.full((2, 2), 257 * 40, np.uint16))) == [40]  # scaled, not cut off
    assert level(Image.new("I", (2, 2), 65535)) == [255]
    assert level(Image.new("F", (2, 2), 0.5)) == [128]
    assert level(Image.new("F", (2, 2), 200.0)) == [200]
    assert level(Image.new("1", (2, 2), 1)) == [255]
    assert level(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), 3)[0] > 200
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert level(palette, 3) == [10, 20, 30]
    palette.info["transparency"] = 1
    assert level(palette, 3) == [255, 255, 255]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    levels = np.zeros((8, 8), np.uint8)
    levels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(levels).save(tmp_path / "a.png", exif=exif)
    frame = everything(load(root=str(tmp_path), channels=1))[0, 0]
    assert (frame[:, 7] == 255).all()
    assert frame[:, :7].max() == 0


def test_the_crop_is_kept_only_where_all_share_it(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(6, 6))
    picture(tmp_path / "b.png", size=(6, 6))
    assert load(root=str(tmp_path), resize="pad").crop == (1, 1, 6, 6)
    picture(tmp_path / "c.png", size=(5, 5))
    assert load(root=str(tmp_path), resize="pad").crop is None
    assert load(root=str(tmp_path), resize="crop").crop is None


def _counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    real = decode.decode

    def counted(picture: Image.Image, **options: object) -> object:
        calls.append("decoded")
        return real(picture, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pack.decode, "decode", counted)
    return calls


def test_files_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        picture(tmp_path / f"{'x' * i}.png", size=(9, 9))
    calls = _counting(monkeypatch)
    first = load(root=str(tmp_path))
    again = load(root=str(tmp_path))
    assert len(calls) == 3
    assert np.array_equal(everything(first), everything(again))
    assert first.fingerprint == again.fingerprint
    assert isinstance(again.packed, np.memmap)
    assert not again.packed.flags.writeable
    load(root=str(tmp_path), resize="pad")
    assert len(calls) == 6  # another transform
    os.utime(tmp_path / ".png", ns=(1, 1))
    touched = load(root=str(tmp_path))
    assert len(calls) == 9  # another modification time
    assert touched.fingerprint == first.fingerprint  # but the same content
    picture(tmp_path / "x.png", mode="L", size=(9, 9))
    assert load(root=str(tmp_path)).fingerprint != first.fingerprint


def test_a_torn_pack_is_made_again(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    first = load(root=str(tmp_path / "in"))
    place = Path(first.packed.filename).parent  # type: ignore[attr-defined]
    (place / "facts.json").unlink()
    assert np.array_equal(everything(load(root=str(tmp_path / "in"))), everything(first))


def test_two_processes_pack_once(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / "in" / f"{i}.png", size=(40, 40))
    code = (
        "import sys; from tests.data.test_sources import load; "
        "images = load(root=sys.argv[1]); print(len(images), images.fingerprint)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in")]
    environment = {**os.environ, "DDPM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[2])
        for _ in range(2)
    ]
    printed = [process.communicate()[0].strip() for process in both]
    assert printed[0] == printed[1]
    assert printed[0].startswith("20 ")
    packed = [p for p in (tmp_path / "cache" / "packed").iterdir() if p.is_dir()]
    assert len(packed) == 1


def test_held_out_images_are_apart_and_always_the_same() -> None:
    whole = everything(load(source="digits", channels=1)).reshape(1797, -1)
    train, held = (load(split, source="digits", channels=1, held_out=0.1) for split in ("train", "held_out"))
    assert (len(train), len(held)) == (1617, 180)
    parts = np.concatenate([everything(train), everything(held)]).reshape(1797, -1)
    assert Counter(map(bytes, parts)) == Counter(map(bytes, whole))
    again = load("held_out", source="digits", channels=1, held_out=0.1)
    assert np.array_equal(everything(held), everything(again))
    assert len({train.fingerprint, held.fingerprint, load(source="digits", channels=1).fingerprint}) == 3
    assert held.labels is not None
    assert len(held.labels) == 180


def test_impossible_shares_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.held_out: is 0"):
        load("held_out", source="digits")
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="leaves none"):
        load(root=str(tmp_path), held_out=0.5)


@pytest.mark.parametrize(("count", "size"), [(10, 4), (10, 10), (3, 8), (1, 2), (7, 7)])
def test_every_image_once_an_epoch(count: int, size: int) -> None:
    steps = 5 * count
    order = np.concatenate([batch_indices(count, size, seed=1, step=k) for k in range(steps)])
    epochs = order[: len(order) // count * count].reshape(-1, count)
    assert (np.sort(epochs, 1) == np.arange(count)).all()
    if count > 3:
        assert len({tuple(epoch) for epoch in epochs}) > 1
        assert not np.array_equal(order[:size], batch_indices(count, size, seed=2, step=0))


def test_batches_are_a_function_of_the_step() -> None:
    images = load(source="digits", channels=1)
    straight = data.batches(images, 32, seed=3)
    skipped = [next(straight) for _ in range(70)][60:]
    for step, expected in zip(range(60, 70), skipped, strict=True):
        found = next(data.batches(images, 32, seed=3, start=step))
        assert np.array_equal(found.indices, expected.indices)
        assert np.array_equal(found.images, expected.images)
        assert found.images.flags.c_contiguous
        assert found.labels is not None
        assert images.labels is not None
        assert np.array_equal(found.labels, images.labels[found.indices])


def test_rectangular_frames(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(30, 47))
    assert everything(load(root=str(tmp_path), image_size=[16, 24])).shape == (1, 3, 16, 24)
