"""Samples, features and likelihoods are the same set of numbers for any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from ddpm import data
from ddpm.evaluate import nll
from ddpm.evaluate.extractor import load_extractor
from ddpm.evaluate.reference import read_images
from ddpm.generate import load, sample, sample_to_folder, sampling_settings
from ddpm.images import read_png
from ddpm.run import train
from tests.distributed.processes import together
from tests.tiny import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return train(tiny(), folder / "run", progress=False, device="cpu").checkpoint


class Found(NamedTuple):
    images: np.ndarray
    features: np.ndarray
    bits: np.ndarray


def _measure(checkpoint: Path, count: int, folder: Path) -> Found:
    model = load(checkpoint, device="cpu")
    settings = sampling_settings(model, batch_size=3)
    images = sample(model, count, batch_size=3)
    sample_to_folder(model, folder, count, settings=settings, progress=False)
    extractor = load_extractor(device=torch.device("cpu"))._replace(batch=2)
    held_out = data.load(model.config.data, "held_out", progress=False).take(np.arange(5))
    likelihood = nll.measure(model.diffusion, model.network, held_out, batch_size=2, progress=False)
    return Found(images, read_images(images, extractor).vectors, likelihood.bound.bits.numpy())


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("count", [2, 7])
def test_the_set_is_the_same(checkpoint: Path, tmp_path: Path, processes: int, count: int) -> None:
    alone = _measure(checkpoint, count, tmp_path / "alone")
    for found in together(processes, _measure, checkpoint, count, tmp_path / "shared"):
        assert found.images.shape == alone.images.shape
        assert np.abs(found.images.astype(int) - alone.images).max() <= 1
        if np.array_equal(found.images, alone.images):  # batches of another shape may move a pixel by one level
            np.testing.assert_allclose(found.features, alone.features, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found.bits, alone.bits)
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert names == {path.name for path in (tmp_path / "shared").iterdir()}
    assert len(names) == count + 3
    for name in names - {"settings.json", "samples.npz"}:
        shared, own = (read_png(tmp_path / folder / name).astype(int) for folder in ("shared", "alone"))
        assert np.abs(shared - own).max() <= 1
    stored = np.load(tmp_path / "shared" / "samples.npz")["arr_0"]
    assert np.abs(stored.astype(int) - alone.images).max() <= 1
