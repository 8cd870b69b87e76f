"""Pixels: every format to grey or RGB on purpose, every size to the frame by a stated policy."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm.data import decode
from tests.data.files import noise


def grey(picture: Image.Image) -> np.ndarray:
    return np.asarray(decode.to_mode(picture, "L"))


def rgb(picture: Image.Image) -> np.ndarray:
    return np.asarray(decode.to_mode(picture, "RGB"))


def reopened(picture: Image.Image, kind: str, **options: Any) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return decode.open_picture(io.BytesIO(file.getvalue()))


def test_grey_is_replicated_and_colour_becomes_luminance() -> None:
    levels, colours = noise(4, 5), noise(4, 5, 3)
    np.testing.assert_array_equal(rgb(Image.fromarray(levels)), levels[..., None].repeat(3, 2))
    luminance = colours @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(grey(Image.fromarray(colours)), luminance, atol=0.51)
    np.testing.assert_array_equal(rgb(Image.fromarray(colours)), colours)


def test_transparency_is_laid_on_white() -> None:
    colours, alpha = noise(4, 4, 3), noise(4, 4, 1)
    expected = (colours * (alpha / 255.0) + 255 * (1 - alpha / 255.0)).round()
    rgba = Image.fromarray(np.concatenate([colours, alpha], 2))
    np.testing.assert_allclose(rgb(rgba), expected, atol=1)
    la = Image.merge("LA", [Image.fromarray(colours[..., 0]), Image.fromarray(alpha[..., 0])])
    np.testing.assert_allclose(grey(la), expected[..., 0], atol=1)


def test_palettes_with_and_without_transparency() -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]])
    np.testing.assert_array_equal(rgb(reopened(picture, "PNG")), expected)
    expected[:, 1] = 255
    for transparency in (1, bytes([255, 0, 255])):
        np.testing.assert_array_equal(rgb(reopened(picture, "PNG", transparency=transparency)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    picture = reopened(Image.fromarray(levels), kind)
    np.testing.assert_array_equal(grey(picture), np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(grey(picture.convert("I")), np.arange(256).reshape(16, 16))
    assert grey(Image.fromarray(np.array([[128, 129, 65406, 65407]], np.uint16))).tolist() == [[0, 1, 254, 255]]


def test_one_bit_floats_and_ink() -> None:
    assert grey(Image.fromarray(np.array([[True, False]]))).tolist() == [[255, 0]]
    assert grey(Image.fromarray(np.array([[0, 0.5, 1]], np.float32))).tolist() == [[0, 128, 255]]
    assert grey(Image.fromarray(np.array([[0, 0.6, 254.4]], np.float32))).tolist() == [[0, 1, 254]]
    assert rgb(Image.new("CMYK", (1, 1), (255, 0, 0, 0))).tolist() == [[[0, 255, 255]]]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1, 5]], np.int32),
        np.array([[65536]], np.int32),
        np.array([[np.nan]], np.float32),
        np.array([[np.inf]], np.float32),
        np.array([[-0.1]], np.float32),
    ],
)
def test_levels_out_of_range_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"has levels from .* expected 0 to"):
        grey(Image.fromarray(values))


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_orientation_of_cameras_is_applied(orientation: int, turn: int) -> None:
    levels, exif = noise(4, 6), Image.Exif()
    exif[0x0112] = orientation
    picture = reopened(Image.fromarray(levels), "PNG", exif=exif)
    expected = np.rot90(levels, turn)
    frame, _ = decode.decode(picture, size=expected.shape, channels=1, resize="crop")  # type: ignore[arg-type]
    np.testing.assert_array_equal(frame[0], expected)


def fit(pixels: np.ndarray, size: tuple[int, int], resize: decode.Resize) -> tuple[np.ndarray, tuple[int, ...]]:
    picture, crop = decode.fit(Image.fromarray(pixels), size, resize)
    return np.asarray(picture), crop


def test_what_fits_is_untouched() -> None:
    pixels = noise(6, 9)
    for resize in ("crop", "stretch", "pad"):
        found, crop = fit(pixels, (6, 9), resize)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, pixels)
        assert crop == (0, 0, 6, 9)


@pytest.mark.parametrize("shape", [(28, 28), (27, 30), (1, 1), (32, 5), (28, 28, 3)])
def test_pad_centres_on_black_and_never_enlarges(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    found, crop = fit(pixels, (32, 33), "pad")
    top, left, height, width = (32 - shape[0]) // 2, (33 - shape[1]) // 2, *shape[:2]
    assert crop == (top, left, height, width)
    expected = np.zeros((32, 33, *shape[2:]), np.uint8)
    expected[top : top + height, left : left + width] = pixels
    np.testing.assert_array_equal(found, expected)


def test_pad_shrinks_what_does_not_fit() -> None:
    pixels = noise(20, 64)
    found, crop = fit(pixels, (32, 32), "pad")
    assert crop == (11, 0, 10, 32)
    expected = Image.fromarray(pixels).resize((32, 10), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found[11:21], np.asarray(expected))
    assert not found[:11].any()
    assert not found[21:].any()


@pytest.mark.parametrize(("shape", "rows", "columns"), [((8, 13), (0, 8), (2, 10)), ((13, 8), (2, 10), (0, 8))])
def test_crop_cuts_the_centre_without_blurring(
    shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """Half a pixel off, each pixel would be a mean of two."""
    pixels = noise(*shape)
    found, crop = fit(pixels, (8, 8), "crop")
    np.testing.assert_array_equal(found, pixels[slice(*rows), slice(*columns)])
    assert crop == (0, 0, 8, 8)


@pytest.mark.parametrize(("shape", "size"), [((64, 96), (32, 32)), ((30, 47), (16, 24)), ((9, 31), (18, 20))])
def test_crop_is_shortest_side_to_size_then_centre(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """Against the plain way, which resizes all of the picture; its cut edges see what lies beyond them."""
    pixels = np.add.outer(np.arange(shape[0]) * 2, np.arange(shape[1])).astype(np.uint8)
    found, _ = fit(pixels, size, "crop")
    scale = max(size[0] / shape[0], size[1] / shape[1])
    width, height = round(shape[1] * scale), round(shape[0] * scale)
    left, top = (width - size[1]) // 2, (height - size[0]) // 2
    whole = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((left, top, left + size[1], top + size[0])))
    np.testing.assert_allclose(found[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1)


def test_stretch_is_pillows_resize() -> None:
    pixels = noise(28, 20, 3)
    expected = Image.fromarray(pixels).resize((32, 48), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fit(pixels, (48, 32), "stretch")[0], np.asarray(expected))


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_shrinking_is_antialiased(resize: decode.Resize) -> None:
    """Without a filter over all of the pixels a fine chequerboard would come out black or white."""
    pixels = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    assert abs(fit(pixels, (16, 16), resize)[0][2:-2, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("shape", [(1, 10_000), (10_000, 1), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_extreme_shapes(shape: tuple[int, int], resize: decode.Resize) -> None:
    assert fit(np.full(shape, 255, np.uint8), (8, 12), resize)[0].max() >= 250


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_are_channels_first(channels: int) -> None:
    pixels = noise(30, 47, 3)
    frame, _ = decode.decode(Image.fromarray(pixels), size=(30, 47), channels=channels, resize="crop")
    assert frame.shape == (channels, 30, 47)
    assert frame.dtype == np.uint8
    if channels == 3:
        np.testing.assert_array_equal(frame, pixels.transpose(2, 0, 1))


def test_programs_are_not_run_for_pictures() -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    with pytest.raises(ValueError, match="is no image that can be read"):
        reopened(Image.new("RGB", (8, 8)), "EPS")
