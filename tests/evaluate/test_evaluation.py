"""Samples beside real images: floors, refusals, keys and provenance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpm.data import ImageSet, ScanReport, Split
from ddpm.errors import UsageError
from ddpm.evaluate import evaluation
from ddpm.evaluate.evaluation import evaluate_samples
from ddpm.evaluate.extractor import DigitNet, Extractor, Features
from ddpm.evaluate.extractor import transform as prepare
from ddpm.evaluate.reference import Reference, read_images, read_reference
from ddpm.images import Crop


class Rows(Extractor):
    """Row means as features: quick, and known."""

    def __call__(self, images: np.ndarray) -> Features:
        rows = images.astype(np.float32).mean((2, 3)).astype(np.float64) / 255
        scores = np.exp(20 * rows[:, :3])
        return Features(rows, scores / scores.sum(1, keepdims=True))


def _extractor(sha256: str = "a", transform: str = "none") -> Extractor:
    return Rows("rows", sha256, transform, DigitNet(), torch.device("cpu"), prepare)


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
    found = evaluate_samples(_samples(2, 2100), reference, _extractor(), unseen=unseen)
    floor, own = found.floors.unseen, found.samples.comparison
    assert floor is not None
    assert floor.count == 2100  # as many as the samples: FID's bias depends on it
    assert found.floors.halves.count == found.floors.halves.reference_count == 1200
    assert own.fid == pytest.approx(floor.comparison.fid, rel=0.7)
    assert abs(own.kid.value) < 5 * own.kid.error
    assert found.copies is not None
    assert found.copies.share < 0.03
    assert not found.samples.few
    darker = evaluate_samples(_samples(2, 2100) // 2, reference, _extractor(), unseen=unseen)
    assert darker.samples.comparison.fid > 20 * floor.comparison.fid
    assert darker.samples.comparison.kid.value > 20 * darker.samples.comparison.kid.error
    assert darker.drift[0].mean == pytest.approx(-64, abs=1)


def test_few_images_get_no_fid_unless_forced_and_then_a_mark(sides: tuple[Reference, Reference]) -> None:
    found = evaluate_samples(_samples(2, 100), sides[0], _extractor())
    plain, forced = (found.numbers(force=force)["samples"] for force in (False, True))
    assert plain["fid"] is None
    assert plain["fid_of_too_few_images"] is True
    assert forced["fid"] == found.samples.comparison.fid > 0
    assert forced["fid_of_too_few_images"] is True
    assert {**plain, "fid": 0} == {**forced, "fid": 0}
    assert found.copies is None
    assert found.numbers(force=False)["floors"]["train_half_against_half"]["fid"] is None
    enough = evaluate_samples(_samples(2, 2048), sides[0], _extractor()).numbers(force=False)["samples"]
    assert enough["fid"] is not None
    assert enough["fid_of_too_few_images"] is False


def test_copies_are_caught(sides: tuple[Reference, Reference]) -> None:
    reference, unseen = sides
    found = evaluate_samples(reference.images[:50], reference, _extractor(), unseen=unseen)
    assert found.copies is not None
    assert found.copies.share == 1


def test_order_changes_rounding_alone(sides: tuple[Reference, Reference]) -> None:
    samples = _samples(3, 2100)
    one, other = (evaluate_samples(x, sides[0], _extractor()).samples.comparison for x in (samples, samples[::-1]))
    assert other.fid == pytest.approx(one.fid, rel=1e-9)
    assert other.overlap == pytest.approx(one.overlap)
    assert other.classes.histogram == one.classes.histogram
    assert other.kid.value == pytest.approx(one.kid.value, abs=1e-12)  # the mean kernel is about 3
    assert other.kid.error == pytest.approx(one.kid.error, rel=1e-9)
    again = evaluate_samples(samples, sides[0], _extractor())
    assert again.samples.comparison == one


def test_large_sets_are_drawn_from_by_pairs_alone(
    sides: tuple[Reference, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = _samples(3, 2100)
    whole = evaluate_samples(samples, sides[0], _extractor()).samples
    monkeypatch.setattr(evaluation, "PAIRED", 500)
    drawn = evaluate_samples(samples, sides[0], _extractor()).samples
    assert (drawn.count, drawn.reference_count) == (2100, 2400)
    assert drawn.comparison.fid == whole.comparison.fid
    assert drawn.comparison.classes == whole.comparison.classes
    assert drawn.comparison.overlap != whole.comparison.overlap


def test_the_key_knows_split_images_crop_and_extractor() -> None:
    plain = read_reference(_images(0, 20), "noise", "train", _extractor()).key
    others = [
        read_reference(_images(0, 20), "noise", "test", _extractor()),  # a swapped split
        read_reference(_images(1, 20), "noise", "train", _extractor()),
        read_reference(_images(0, 20), "mnist", "train", _extractor()),
        read_reference(_images(0, 20), "noise", "train", _extractor(sha256="b")),
        read_reference(_images(0, 20), "noise", "train", _extractor(transform="other")),
        read_reference(_images(0, 20, Crop(1, 1, 6, 6)), "noise", "train", _extractor()),
    ]
    assert len({plain, *(other.key for other in others)}) == 7


def test_a_swapped_reference_gives_another_number_not_a_cached_one(sides: tuple[Reference, Reference]) -> None:
    reference, unseen = sides
    samples = _samples(4, 300)
    right = evaluate_samples(samples, reference, _extractor(), unseen=unseen)
    wrong = evaluate_samples(samples, unseen, _extractor(), unseen=reference)
    assert wrong.samples.comparison.fid != right.samples.comparison.fid
    assert wrong.floors != right.floors
    with pytest.raises(UsageError, match="the reference itself"):
        evaluate_samples(samples, reference, _extractor(), unseen=reference)


def test_features_and_floors_are_made_once_and_damaged_files_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm.files import cache_folder

    first = _reference(7, 30, "train")
    (path,) = (cache_folder() / "features").glob(f"{first.key}.npz")
    own, calls = Rows.__call__, []

    def counted(self: Rows, images: np.ndarray) -> Features:
        calls.append(len(images))
        return own(self, images)

    monkeypatch.setattr(Rows, "__call__", counted)
    again = _reference(7, 30, "train")
    assert not calls
    np.testing.assert_array_equal(again.features.vectors, first.features.vectors)
    path.write_bytes(path.read_bytes()[:100])
    repaired = _reference(7, 30, "train")
    assert calls == [30]
    np.testing.assert_array_equal(repaired.features.vectors, first.features.vectors)
    once = evaluation.floors(first, None, 30)
    monkeypatch.delattr(evaluation, "compare")  # what would measure again
    assert evaluation.floors(first, None, 30) == once
    with pytest.raises(NameError):
        evaluation.floors(first, None, 29)


def test_images_mapped_into_memory_are_read_without_a_warning() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    images.flags.writeable = False  # as those of the data cache
    digits = Extractor("digits", "a", "none", DigitNet().eval(), torch.device("cpu"), prepare)
    assert read_images(images, digits).vectors.shape == (3, 64)


def test_floors_are_of_their_own_unseen_images_and_number() -> None:
    reference, one, other = (_reference(seed, 40, split) for seed, split in ((0, "train"), (1, "test"), (2, "test")))
    found = [evaluation.floors(reference, *which) for which in ((one, 40), (other, 40), (one, 30), (None, 40))]
    unseen = [floor.unseen for floor in found]
    assert unseen[3] is None
    assert len({str(each) for each in unseen}) == 4
    assert len({str(floor.halves) for floor in found}) == 1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((20, 8, 8, 3), np.uint8), "found pictures of 8x8x3, the data have 6x6x1"),
        (np.zeros((10, 6, 6, 1), np.uint8), "samples: 10 images; distances need at least 11"),
    ],
)
def test_samples_that_cannot_be_measured_are_refused(samples: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_samples(samples, _reference(0, 30, "train"), _extractor())
