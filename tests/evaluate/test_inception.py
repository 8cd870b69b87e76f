"""The Inception extractor against torch-fidelity's recorded answers; its weights file under suspicion."""

from __future__ import annotations

import functools
import hashlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.errors import CheckpointError, DataError
from ddpm.evaluate import inception
from ddpm.evaluate.inception import SIDE, InceptionV3, load_inception, load_weights, transform


def made_up(network: InceptionV3) -> dict[str, Tensor]:
    """Weights that are nobody's, the same with every version of torch, and that keep the activations' size."""
    generator = np.random.Generator(np.random.Philox(0))
    weights: dict[str, Tensor] = {}
    for name, old in network.state_dict().items():
        drawn = torch.from_numpy(generator.uniform(-1, 1, tuple(old.shape)).astype(np.float32))
        if name.endswith("num_batches_tracked"):
            weights[name] = old
        elif old.ndim > 1:
            weights[name] = drawn * (6 / old[0].numel()) ** 0.5
        else:
            weights[name] = 1 + drawn / 4 if name.endswith(("bn.weight", "running_var")) else drawn / 4
    return weights


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    network = InceptionV3().eval().requires_grad_(False)
    network.load_state_dict(made_up(network))
    return network


# What torch-fidelity 0.4.0's network answers with the weights of `made_up`; every 256th and every 144th number.
FEATURES = [1.271532, 2.684469, 0.239568, 0.207602, 2.374979, 2.053801, 0.225564, 0.110318]
LOGITS = [1.67957, 1.69423, -2.06742, -2.03132, -6.47126, -2.09498, 2.00601]
NAMES = "7151cff94593b8e836fb1f91b5ae5a52927bb5290e150458690d9d5ea0523e95"
"""SHA-256 of its lines "name shape"."""


def test_the_names_and_shapes_of_the_weights(network: InceptionV3) -> None:
    lines = [f"{name} {tuple(value.shape)}" for name, value in network.state_dict().items()]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == NAMES


def test_answers_are_torch_fidelitys(network: InceptionV3) -> None:
    picture = np.random.Generator(np.random.Philox(1)).integers(0, 256, (1, 37, 30, 3), dtype=np.uint8)
    features, logits = network(transform(picture))
    assert features.shape == (1, 2048)
    assert logits.shape == (1, 1008)
    np.testing.assert_allclose(features[0, ::256].numpy(), FEATURES, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[0, ::144].numpy(), LOGITS, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (2, 32, 32, 3), (1, 400, 317, 3)])
def test_resizing_is_tensorflows(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    found = transform(images).numpy()
    assert found.shape == (shape[0], 3, SIDE, SIDE)
    wide = images.astype(np.float64)
    for y, x in ((0, 0), (1, 298), (150, 77), (298, 298)):
        # Corners at 0, not at half a pixel; beyond the last pixel it repeats.
        v, u = y * shape[1] / SIDE, x * shape[2] / SIDE
        top, left = int(v), int(u)
        low, right = min(top + 1, shape[1] - 1), min(left + 1, shape[2] - 1)
        a, b = v - top, u - left
        upper = (1 - b) * wide[:, top, left] + b * wide[:, top, right]
        lower = (1 - b) * wide[:, low, left] + b * wide[:, low, right]
        expected = np.broadcast_to(((1 - a) * upper + a * lower - 128) / 128, (shape[0], 3))
        np.testing.assert_allclose(found[:, :, y, x], expected, atol=1e-4)  # float32 places: 2^-15 pixels


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: InceptionV3) -> Path:
    """A file of made-up weights that passes for the real one, and a server that offers its folder."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    file = folder / inception.NAME
    torch.save(network.state_dict(), file)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return file


def _offer(monkeypatch: pytest.MonkeyPatch, folder: Path) -> ThreadingHTTPServer:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    monkeypatch.setattr(inception, "URLS", (f"http://127.0.0.1:{server.server_port}/{inception.NAME}",))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    return server


def test_downloaded_once_and_marked(served: Path, monkeypatch: pytest.MonkeyPatch, network: InceptionV3) -> None:
    server = _offer(monkeypatch, served.parent)
    try:
        load_inception(device="cpu", progress=False)
    finally:
        server.shutdown()
        server.server_close()
    extractor = load_inception(device="cpu", progress=False)  # nobody serves it any more
    assert extractor.mark == "unverified"
    assert extractor.sha256 == inception.SHA256
    images = np.random.default_rng(3).integers(0, 256, (1, 12, 12, 3), dtype=np.uint8)
    found = extractor(images)
    features, _ = network(transform(images))
    np.testing.assert_allclose(found.vectors, features.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(1), 1)


def test_other_content_is_refused(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "SHA256", "0" * 64)
    server = _offer(monkeypatch, served.parent)
    try:
        with pytest.raises(DataError, match="wrong content \\(SHA-256"):
            load_inception(device="cpu", progress=False)
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(CheckpointError, match="expected the Inception weights"):
        load_inception(served, device="cpu")
    with pytest.raises(CheckpointError, match="is not there"):
        load_inception(served.with_name("absent"), device="cpu")


def test_without_a_network_it_says_what_to_do(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "URLS", ("http://127.0.0.1:9/weights",))
    with pytest.raises(DataError, match="--extractor digits"):
        load_inception(device="cpu", progress=False)


def test_other_names_are_refused(tmp_path: Path, network: InceptionV3) -> None:
    file = tmp_path / "w.pth"
    weights = network.state_dict()
    for changed in (
        {**weights, "AuxLogits.fc.weight": torch.zeros(1)},
        {name: value for name, value in weights.items() if name != "fc.bias"},
        {**weights, "fc.bias": torch.zeros(1000)},
        [1, 2],
    ):
        torch.save(changed, file)
        with pytest.raises(CheckpointError, match="is not what the Inception network"):
            load_weights(InceptionV3(), file)
