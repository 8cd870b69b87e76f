"""Nearest images against scikit-learn; a planted copy is found, and honest samples are not accused."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from ddpm.evaluate import neighbours
from ddpm.evaluate.neighbours import near_copies, nearest


def _images(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 5, 1)).astype(np.uint8)


@pytest.mark.parametrize("chunk", [7, 100, 4096])
def test_equals_scikit_learn(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    queries, among = _images(1, 9), _images(2, 100)
    found = nearest(queries, among, 4)
    flat = [x.reshape(len(x), -1).astype(float) for x in (among, queries)]
    distances, indices = NearestNeighbors(n_neighbors=4).fit(flat[0]).kneighbors(flat[1])
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances / np.sqrt(30))


def test_copies_have_distance_zero() -> None:
    among = _images(2, 60000 // 100)
    found = nearest(among[[5, 17]], among, 2)
    assert found.indices[:, 0].tolist() == [5, 17]
    assert found.distances[:, 0].tolist() == [0, 0]
    assert (found.distances[:, 1] > 1).all()


def test_near_copies() -> None:
    train, unseen, honest = _images(3, 500), _images(4, 300), _images(5, 200)
    stolen = np.clip(train[:50].astype(int) + 3, 0, 255).astype(np.uint8)
    far = nearest(unseen, train).distances[:, 0]
    assert near_copies(nearest(honest, train).distances[:, 0], far).share < 0.05
    mixed = np.concatenate([honest[:150], stolen])
    assert near_copies(nearest(mixed, train).distances[:, 0], far).share == pytest.approx(0.25, abs=0.03)
    assert near_copies(far, far).share == pytest.approx(0.01)
