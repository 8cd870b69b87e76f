"""Sampling from a checkpoint: image i is image i, sets complete themselves, memory stays flat."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm import generate
from ddpm.choices import EFFECTIVE
from ddpm.errors import CheckpointError, UsageError
from ddpm.generate import Model, claimable, load, sample, sample_to_folder, sampling_settings
from ddpm.images import read_png
from ddpm.run import train
from tests.tiny import tiny


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return train(tiny(training__steps=40, training__save_every=40), folder / "run", progress=False).checkpoint


@pytest.fixture(scope="module")
def model(checkpoint_path: Path) -> Model:
    return load(checkpoint_path, device="cpu", precision="float32")


def test_images_are_eight_bit_nhwc(model: Model) -> None:
    images = sample(model, 5)
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8
    assert images.std() > 20
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5


def test_image_i_is_image_i(model: Model) -> None:
    """Any batch size and any start give the same noise, and images within one grey level."""
    all_at_once = sample(model, 20, batch_size=20).astype(int)
    one_by_one = sample(model, 20, batch_size=1).astype(int)
    from_seven = sample(model, 6, start=7, batch_size=4).astype(int)
    assert np.abs(all_at_once - one_by_one).max() <= 1
    assert np.abs(all_at_once[7:13] - from_seven).max() <= 1
    assert np.abs(all_at_once - sample(model, 20, seed=1).astype(int)).max() > 50


def test_a_learned_logarithm_of_the_variance_needs_all_steps_of_the_ancestral_sampler(tmp_path: Path) -> None:
    config = tiny(diffusion__variance="learned", training__loss="hybrid", training__steps=1, sampling__steps=None)
    model = load(train(config, tmp_path, progress=False).checkpoint, device="cpu")
    with pytest.raises(UsageError, match=r"steps: 5: .*longer steps.*all T = 20"):
        sampling_settings(model, steps=5)
    assert sample(model, 2).shape == (2, 8, 8, 1)
    assert sample(model, 2, steps=20).shape == (2, 8, 8, 1)
    assert sample(model, 2, steps=5, sampler="ddim").shape == (2, 8, 8, 1)  # asks for no variance


def test_a_learned_range_takes_any_steps(tmp_path: Path) -> None:
    config = tiny(diffusion__variance="learned_range", training__loss="hybrid", training__steps=1)
    model = load(train(config, tmp_path, progress=False).checkpoint, device="cpu")
    images = [sample(model, 2, steps=steps) for steps in (1, 5, 20)]
    assert all(len(np.unique(pair)) > 2 for pair in images)


def test_settings_come_from_the_checkpoint_and_can_be_changed(model: Model) -> None:
    assert sampling_settings(model).steps == 5
    assert sampling_settings(model, steps=7, seed=None).steps == 7
    states = list(generate.states(model, [0, 1], sampling_settings(model, steps=7)))
    assert len(states) == 7
    assert states[-1].t == 0


@pytest.mark.parametrize(
    "change", [{"steps": 21}, {"steps": 0}, {"sampler": "dadim"}, {"batch_size": -1}, {"stepps": 3}]
)
def test_impossible_settings_are_refused(model: Model, change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        sampling_settings(model, **change)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"eta": 0.5}, "eta: 0.5 has no effect on the sampler ancestral"),
        ({"sampler": "ddim", "order": 3}, "order: 3 has no effect on the sampler ddim"),
        ({"sampler": "heun", "clip_quantile": 0.9}, "clip_quantile: 0.9 has no effect"),
        ({"sampler": "pndm", "spacing": "quadratic"}, "does not suit"),
    ],
)
def test_idle_settings_are_refused(model: Model, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        sampling_settings(model, **changes)


def test_another_sampler_leaves_the_checkpoints_own_options_behind(model: Model) -> None:
    own = model.config.sampling.model_copy(update={"sampler": "ddim", "eta": 0.5, "clip": "dynamic"})
    own = own.model_copy(update={"clip_quantile": 0.9})
    other = replace(model, config=model.config.model_copy(update={"sampling": own}))
    assert (sampling_settings(other).eta, sampling_settings(other).clip_quantile) == (0.5, 0.9)
    settings = sampling_settings(other, sampler="heun", clip=False)
    assert (settings.sampler, settings.eta, settings.clip, settings.clip_quantile) == ("heun", None, False, None)


CASES: list[dict[str, object]] = [
    *({"sampler": name} for name in EFFECTIVE),
    {"sampler": "ddim", "eta": 0.5, "spacing": "quadratic", "clip": "dynamic", "clip_quantile": 0.9},
    {"sampler": "dpm_solver", "order": 3, "spacing": "karras", "clip": "dynamic"},
    {"sampler": "heun", "churn": 5.0, "spacing": "karras", "clip": False},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_every_sampler_draws_image_i_for_any_batch_size(model: Model, changes: dict[str, object]) -> None:
    settings = sampling_settings(model, steps=6, **changes)
    walked = list(generate.states(model, [0, 1], settings))
    assert len(walked) == 6
    assert walked[-1].t == 0
    assert not bool(walked[-1].x.isnan().any())
    together = sample(model, 9, steps=6, batch_size=9, **changes).astype(int)
    parted = sample(model, 9, steps=6, batch_size=2, **changes).astype(int)
    assert np.abs(together - parted).max() <= 1
    assert len(np.unique(together.reshape(9, -1), axis=0)) == 9


def test_every_option_changes_the_images(model: Model) -> None:
    plain: dict[str, dict[str, object]] = {
        "ddim": {"eta": 1.0},
        "dpm_solver": {"order": 3},
        "dpm_solver_sde": {"order": 1},
        "unipc": {"order": 1},
        "heun": {"churn": 4.0},
        "euler": {"churn": 4.0},
        "ancestral": {"spacing": "quadratic"},
        "pndm": {"clip": False},
        "plms": {"spacing": "linspace"},
    }
    assert set(plain) == set(EFFECTIVE)
    drawn = {name: sample(model, 2, sampler=name, steps=6) for name in plain}
    for name, option in plain.items():
        assert not np.array_equal(sample(model, 2, sampler=name, steps=6, **option), drawn[name]), name
    # Euler is DDIM, and so few steps of so short a schedule tell no PNDM from PLMS in eight bits.
    assert len({array.tobytes() for array in drawn.values()}) >= len(plain) - 2


def test_ema_and_raw_weights_differ(checkpoint_path: Path) -> None:
    ema, raw = (sample(load(checkpoint_path, weights=w, device="cpu"), 4) for w in ("ema", "raw"))
    assert not np.array_equal(ema, raw)
    content = torch.load(checkpoint_path, weights_only=True)
    network = load(checkpoint_path, weights="raw", device="cpu").network
    assert isinstance(network, torch.nn.Module)
    assert all(torch.equal(v, content["network"][k]) for k, v in network.state_dict().items())
    with pytest.raises(UsageError, match="ema or raw"):
        load(checkpoint_path, weights="EMA")  # type: ignore[arg-type]


def test_bfloat16_is_cast_once_and_close(checkpoint_path: Path) -> None:
    """Weights of convolutions in bfloat16, answers in float32 within bfloat16's rounding of the float32 network's."""
    exact, fast = (load(checkpoint_path, device="cpu", precision=p) for p in ("float32", "bfloat16"))
    x, t = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 5, 10, 20])
    with torch.no_grad():
        a, b = exact.network(x, t), fast.network(x, t)
    assert (exact.precision, fast.precision, b.dtype) == ("float32", "bfloat16", torch.float32)
    error = float((a - b).norm() / a.norm())
    assert 1e-5 < error < 0.03
    fine, coarse = sample(exact, 8).astype(int), sample(fast, 8).astype(int)
    assert 0 < np.abs(fine - coarse).mean() < 6


def test_dropout_is_off(model: Model) -> None:
    assert np.array_equal(sample(model, 3), sample(model, 3))


def test_a_folder_of_samples(model: Model, tmp_path: Path) -> None:
    done = sample_to_folder(model, tmp_path, 6, settings=sampling_settings(model), gif=True, progress=False)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "grid.png",
        "samples.npz",
        "settings.json",
        "reverse-process.gif",
        *(f"{i:05d}.png" for i in range(6)),
    }
    assert done.made == 6
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        array = file["arr_0"]
    assert array.shape == (6, 8, 8, 1)
    assert array.dtype == np.uint8
    for i in range(6):
        assert np.array_equal(read_png(tmp_path / f"{i:05d}.png"), array[i])
    assert np.abs(array.astype(int) - sample(model, 6).astype(int)).max() <= 1
    with Image.open(tmp_path / "reverse-process.gif") as gif:
        assert gif.n_frames == 5
        gif.seek(4)
        last = np.asarray(gif.convert("L"))
    assert last.shape == read_png(tmp_path / "grid.png").shape[:2] or last.shape[0] <= 280


def test_an_interrupted_set_is_completed(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = sampling_settings(model)
    whole = tmp_path / "whole"
    sample_to_folder(model, whole, 10, settings=settings, progress=False)
    real, calls = generate.states, []

    def breaks(*arguments: object) -> object:
        calls.append(arguments[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(generate, "states", breaks)
        with pytest.raises(KeyboardInterrupt):
            sample_to_folder(model, tmp_path / "parted", 10, settings=settings, progress=False)
    assert not (tmp_path / "parted" / "samples.npz").exists()
    done = sample_to_folder(model, tmp_path / "parted", 10, settings=settings, progress=False)
    assert done.made == 6
    for name in ("samples.npz", "grid.png"):
        assert (tmp_path / "parted" / name).read_bytes() == (whole / name).read_bytes()
    again = sample_to_folder(model, tmp_path / "parted", 10, settings=settings, progress=False)
    assert again.made == 0


def test_start_index_goes_on(model: Model, tmp_path: Path) -> None:
    settings = sampling_settings(model)
    sample_to_folder(model, tmp_path, 4, settings=settings, progress=False)
    sample_to_folder(model, tmp_path, 4, start=4, settings=settings, progress=False)
    assert len(list(tmp_path.glob("0*.png"))) == 8
    expected = sample(model, 8).astype(int)
    found = np.stack([read_png(tmp_path / f"{i:05d}.png") for i in range(8)]).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_a_set_with_other_settings_is_not_mixed(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    sample_to_folder(model, folder, 2, settings=sampling_settings(model), progress=False)
    other = sampling_settings(model, seed=9)
    with pytest.raises(UsageError, match="seed: 0 -> 9"):
        sample_to_folder(model, folder, 2, settings=other, progress=False)
    assert claimable(model, folder, other) == tmp_path / "set-2"
    assert claimable(model, folder, sampling_settings(model, batch_size=3)) == folder
    (folder / "settings.json").write_text("{")
    with pytest.raises(Exception, match="damaged"):
        claimable(model, folder, other)


def test_memory_does_not_grow_with_the_number(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming: twenty times the images, the same peak of Python's and NumPy's memory."""

    def fake(model: Model, indices: list[int], settings: object) -> object:
        from ddpm.samplers import State

        yield State(0, torch.zeros(len(indices), 1, 8, 8), None)

    monkeypatch.setattr(generate, "states", fake)
    peaks = []
    for count in (64, 64, 1280):
        tracemalloc.start()
        sample_to_folder(
            model, tmp_path / f"{len(peaks)}", count, settings=sampling_settings(model, batch_size=64), progress=False
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1] + 300_000  # a list of 1,280 numbers is allowed, 1,280 images with overhead not


def test_absent_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "none.pt")


def test_the_identity_is_recorded(model: Model, tmp_path: Path, checkpoint_path: Path) -> None:
    sample_to_folder(model, tmp_path, 1, settings=sampling_settings(model), progress=False)
    recorded = json.loads((tmp_path / "settings.json").read_text())
    assert recorded["checkpoint_sha256"] == generate.file_sha256(checkpoint_path)
    assert (recorded["weights"], recorded["steps"], recorded["seed"]) == ("ema", 5, 0)


def test_padding_is_cropped_back(tmp_path: Path) -> None:
    config = tiny(data__image_size=12, data__resize="pad", network__attention=(6,), training__steps=1)
    done = train(config, tmp_path, progress=False)
    assert sample(load(done.checkpoint, device="cpu"), 2).shape == (2, 8, 8, 1)
