"""What pixels alone say: closed forms, and what tells noise from pictures."""

from __future__ import annotations

import numpy as np
import pytest

from ddpm.evaluate.pixels import distance, pixels_of


def test_by_hand() -> None:
    images = np.array([[[0, 10], [20, 50]], [[100, 100], [100, 100]]], np.uint8)[..., None]
    found = pixels_of(images)
    assert found.mean == pytest.approx([60])
    assert found.std == pytest.approx([images.std()])
    squares = [20**2, 40**2, 10**2, 30**2] + [0] * 4  # down, then across
    assert found.roughness == pytest.approx([np.mean(squares) / (2 * images.astype(float).var())])
    assert found.error == pytest.approx([np.std([20, 100]) / 2**0.5])


def test_roughness_of_noise_is_one_and_of_an_ascent_in_closed_form() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 20, 20, 3), dtype=np.uint8)
    assert pixels_of(noise).roughness == pytest.approx([1, 1, 1], abs=0.02)
    ascent = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None, None], (2, 64, 1, 1))
    variance = (64**2 - 1) / 12  # of 64 equidistant levels; neighbours differ by 1
    assert pixels_of(ascent).roughness == pytest.approx([1 / (2 * variance)])
    assert pixels_of(np.full((3, 8, 8, 1), 7, np.uint8)).roughness == pytest.approx([0])


def test_distance_tells_what_is_wrong() -> None:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 200, (200, 4, 4, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    data, other = pixels_of(smooth[:100]), pixels_of(smooth[100:])
    assert distance(data, data) == 0
    healthy = distance(other, data)
    assert healthy < 0.1
    for wrong in (smooth[100:] + np.uint8(40), smooth[100:] // 2, rng.integers(0, 200, smooth.shape, dtype=np.uint8)):
        assert distance(pixels_of(wrong), data) > 4 * healthy
    # In standard deviations of the data: a shift by one of all channels, over three differences.
    shifted = data._replace(mean=data.mean + data.std)
    assert distance(shifted, data) == pytest.approx(3**-0.5)
