"""Which images a step sees: a pure function of the position, every image once an epoch."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from ddpm.data import batch_indices, batches
from tests.data.files import quiet, section

DIGITS = section("digits")


@pytest.mark.parametrize(("count", "size"), [(10, 4), (7, 7), (5, 12), (12, 5), (1, 3), (9, 1)])
def test_every_image_once_an_epoch_also_across_batches(count: int, size: int) -> None:
    steps = 3 * count
    seen = np.concatenate([batch_indices(count, size, seed=3, step=step) for step in range(steps)])
    for epoch in range(len(seen) // count):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count)), epoch


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = (batch_indices(50, 50, seed=0, step=step) for step in (0, 1))
    other = batch_indices(50, 50, seed=1, step=0)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, np.arange(50))


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    small = np.concatenate([batch_indices(10, 3, seed=5, step=step) for step in range(10)])
    large = np.concatenate([batch_indices(10, 15, seed=5, step=step) for step in range(2)])
    np.testing.assert_array_equal(small, large)


def test_what_a_seed_means_is_settled() -> None:
    """These numbers are part of what a checkpoint promises: an old run continued sees the same images."""
    assert batch_indices(10, 10, seed=0, step=0).tolist() == ORDER_0
    assert batch_indices(10, 4, seed=2**40 + 1, step=10**6).tolist() == ORDER_1


ORDER_0 = [4, 7, 0, 1, 5, 2, 6, 9, 3, 8]
ORDER_1 = [3, 0, 9, 1]


def test_starting_later_is_skipping() -> None:
    digits = quiet(DIGITS)
    all_ = list(islice(batches(digits, 500, seed=1), 9))
    for step, batch in enumerate(all_):
        np.testing.assert_array_equal(batch.indices, batch_indices(1797, 500, seed=1, step=step))
    for start in (0, 1, 3, 8):  # 1,797 images: batches 3 and 7 straddle epochs
        for a, b in zip(all_[start:], batches(digits, 500, seed=1, start=start), strict=False):
            np.testing.assert_array_equal(a.indices, b.indices)
            np.testing.assert_array_equal(a.images, b.images)
            np.testing.assert_array_equal(a.labels, b.labels)


def test_a_batch_is_a_copy_of_the_images_it_names() -> None:
    digits = quiet(DIGITS.model_copy(update={"held_out": 0.1}))
    batch = next(batches(digits, 32, seed=0))
    assert batch.images.shape == (32, 1, 8, 8)
    assert batch.images.dtype == np.uint8
    assert batch.images.flags.c_contiguous
    assert batch.images.flags.writeable
    assert not np.shares_memory(batch.images, digits.packed)
    np.testing.assert_array_equal(batch.images, digits.images[batch.indices])
    assert digits.labels is not None
    np.testing.assert_array_equal(batch.labels, digits.labels[batch.indices])
