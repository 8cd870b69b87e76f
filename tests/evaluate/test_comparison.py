"""Samples beside real images: floors, refusals, keys and provenance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.data import ImageSet, ScanReport, Split
from ddpm.errors import UsageError
from ddpm.evaluate import comparison
from ddpm.evaluate.comparison import compare, distances
from ddpm.evaluate.extractors import Extractor
from ddpm.evaluate.marginals import class_counts, drift
from ddpm.evaluate.reference import Reference, read_reference
from ddpm.images import Crop


def _network(levels: Tensor) -> tuple[Tensor, Tensor]:
    rows = levels.float().mean(3).flatten(1) / 255
    return rows, 20 * rows[:, :3]


def _extractor(network: Callable[[Tensor], tuple[Tensor, Tensor]] = _network, sha256: str = "a") -> Extractor:
    return Extractor("rows", sha256, "none", (1, 6, 6), ("0", "1", "2"), network, torch.device("cpu"))


def _images(seed: int, count: int, crop: Crop | None = None) -> ImageSet:
    rng = np.random.default_rng(seed)
    side = 8 if crop else 6
    packed = rng.integers(0, 256, (count, 1, side, side), dtype=np.uint8)
    return ImageSet(packed, None, None, (), crop, f"fingerprint {seed}", ScanReport(count))


def _reference(seed: int, count: int, split: Split) -> Reference:
    return read_reference(_images(seed, count), "noise", split, _extractor())


@pytest.fixture
def sides() -> tuple[Reference, Reference]:
    return _reference(0, 2400, "train"), _reference(1, 2200, "test")


def _samples(seed: int, count: int) -> np.ndarray:
    return _images(seed, count).images.transpose(0, 2, 3, 1)


def test_samples_of_the_datas_own_distribution_reach_the_floor(sides: tuple[Reference, Reference]) -> None:
    reference, unseen = sides
    found = compare(_samples(2, 2100), reference, _extractor(), unseen=unseen)
    floor = found.floors.unseen
    assert floor is not None
    assert floor.count == 2100  # as many as the samples: FID's bias depends on it
    assert found.floors.halves.count == 1200
    assert found.floors.halves.fid is None
    assert found.distances.fid == pytest.approx(floor.fid, rel=0.5)
    assert abs(found.distances.kid.value) < 4 * found.distances.kid.error
    assert found.copies is not None
    assert found.copies.share < 0.03
    assert not found.few
    darker = compare(_samples(2, 2100) // 2, reference, _extractor(), unseen=unseen)
    assert darker.distances.fid is not None
    assert floor.fid is not None
    assert darker.distances.fid > 20 * floor.fid
    assert darker.distances.kid.value > 20 * darker.distances.kid.error
    assert darker.drift.mean[0] == pytest.approx(-64, abs=1)


def test_few_images_get_no_fid_unless_forced_and_then_a_mark(sides: tuple[Reference, Reference]) -> None:
    found = compare(_samples(2, 100), sides[0], _extractor())
    assert found.distances.fid is None
    assert found.few
    assert found.copies is None
    forced = compare(_samples(2, 100), sides[0], _extractor(), force=True)
    assert forced.distances.fid is not None
    assert forced.few
    assert forced.distances.kid == found.distances.kid


def test_copies_are_caught(sides: tuple[Reference, Reference]) -> None:
    reference, unseen = sides
    found = compare(reference.levels[:50].transpose(0, 2, 3, 1), reference, _extractor(), unseen=unseen)
    assert found.copies is not None
    assert found.copies.share == 1


def test_batch_size_and_order_change_rounding_alone(sides: tuple[Reference, Reference]) -> None:
    samples = _samples(3, 2100)
    one = compare(samples, sides[0], _extractor())
    other = compare(samples[::-1], sides[0], _extractor(), batch_size=17)
    assert other.distances.fid == pytest.approx(one.distances.fid, rel=1e-5)
    assert other.distances.kid.value == pytest.approx(one.distances.kid.value, rel=1e-5, abs=1e-9)
    assert other.classes.counts == one.classes.counts
    assert compare(samples, sides[0], _extractor()).numbers() == one.numbers()


def test_the_key_knows_split_images_crop_and_extractor() -> None:
    plain = read_reference(_images(0, 20), "noise", "train", _extractor()).key
    others = [
        read_reference(_images(0, 20), "noise", "test", _extractor()),  # a swapped split
        read_reference(_images(1, 20), "noise", "train", _extractor()),
        read_reference(_images(0, 20), "mnist", "train", _extractor()),
        read_reference(_images(0, 20), "noise", "train", _extractor(sha256="b")),
        read_reference(_images(0, 20, Crop(1, 1, 6, 6)), "noise", "train", _extractor()),
    ]
    assert len({plain, *(other.key for other in others)}) == 6


def test_a_swapped_reference_gives_another_number_not_a_cached_one(sides: tuple[Reference, Reference]) -> None:
    reference, unseen = sides
    samples = _samples(4, 2100)
    right = compare(samples, reference, _extractor(), unseen=unseen)
    wrong = compare(samples, unseen, _extractor(), unseen=reference)
    assert wrong.distances.fid != right.distances.fid
    assert wrong.floors != right.floors
    with pytest.raises(UsageError, match="the reference itself"):
        compare(samples, reference, _extractor(), unseen=reference)


def test_readings_and_floors_are_read_once_and_damaged_files_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm.files import cache_folder

    first = _reference(7, 30, "train")
    (path,) = (cache_folder() / "features").glob(f"{first.key}.npz")
    calls = []

    def counted(levels: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(levels))
        return _network(levels)

    again = read_reference(_images(7, 30), "noise", "train", _extractor(counted))
    assert not calls
    np.testing.assert_array_equal(again.reading.features, first.reading.features)
    path.write_bytes(path.read_bytes()[:100])
    repaired = read_reference(_images(7, 30), "noise", "train", _extractor(counted))
    assert calls == [30]
    np.testing.assert_array_equal(repaired.reading.features, first.reading.features)
    once = comparison.floors(first, None, 30)
    monkeypatch.setattr(comparison, "distances", None)
    assert comparison.floors(first, None, 30) == once
    monkeypatch.setattr(comparison, "distances", distances)


def test_an_extractor_refuses_pictures_of_another_shape() -> None:
    with pytest.raises(UsageError, match="found pictures of 8x8 pixels, 3 channels .* expected 6x6 pixels, 1 channel"):
        _extractor().read(np.zeros((2, 3, 8, 8), np.uint8))


def test_class_counts_and_drift_by_hand() -> None:
    found = class_counts(np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.3, 0.7, 0]]))
    assert found.counts == (2, 2, 0)
    assert found.entropy == pytest.approx(1)
    assert found.confidence == pytest.approx(0.75)
    assert class_counts(np.eye(3)[[1, 1]]).entropy == 0
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 200, (2, 5, 3, 4, 4), dtype=np.uint8)
    moved = drift(a, b)
    assert moved.mean == pytest.approx(a.mean((0, 2, 3)) - b.mean((0, 2, 3)))
    assert moved.std == pytest.approx(a.std((0, 2, 3)) - b.std((0, 2, 3)))
