"""Class-conditional models from configuration to picture; guidance itself is tested in tests/samplers/."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm
from ddpm import data, generate, run, speed
from ddpm.classes import class_numbers, grid_count, labels_of, page
from ddpm.cli import main
from ddpm.conditioning import NO_CLASS, Conditional
from ddpm.config import Config, load_config, to_yaml
from ddpm.data import ImageSet
from ddpm.errors import ConfigError, DDPMError, UsageError
from ddpm.generate import Model, claimable, load, sample, sample_to_folder, sampling_settings
from ddpm.images import read_png
from ddpm.interop.diffusers import unet_config, unet_weights_from, unet_weights_to
from ddpm.run import train
from ddpm.samplers import Guided
from ddpm.training_loop import build_network, draw_inputs, new_state, training_steps, validation_loss
from tests.test_run import _rows, _same_checkpoints
from tests.test_unet import batch, lively, small
from tests.tiny import tiny

CPU = torch.device("cpu")


def classy(**changes: object) -> Config:
    return tiny(network__classes=10, **changes)


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    config = classy(training__steps=40, training__save_every=40, training__learning_rate=1e-2)
    return train(config, folder / "run", progress=False).checkpoint


@pytest.fixture(scope="module")
def model(checkpoint_path: Path) -> Model:
    return load(checkpoint_path, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return data.load(tiny().data, "train", progress=False)


# The network


def test_the_class_enters_beside_the_timestep() -> None:
    """Without labels it answers for no class; each class differs; labels have no effect nowhere."""
    (x, t), net = batch(), lively(small(classes=3)).eval()
    with torch.no_grad():
        answers = [net(x, t, torch.full((3,), k)) for k in (NO_CLASS, 0, 1, 2)]
        assert torch.equal(net(x, t), answers[0])
        mixed = net(x, t, torch.tensor([2, NO_CLASS, 0]))
    for a in range(4):
        for b in range(a):
            assert float((answers[a] - answers[b]).abs().max()) > 1e-3
    expected = torch.stack([answers[3][0], answers[0][1], answers[1][2]])
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(IndexError):
        net(x, t, torch.full((3,), 3))
    with pytest.raises(ValueError, match="no effect"):
        small()(x, t, torch.zeros(3, dtype=torch.int64))


def test_a_zero_embedding_is_the_unconditional_network() -> None:
    (x, t), told, plain = batch(), lively(small(classes=3)).eval(), small().eval()
    weights = {name: value for name, value in told.state_dict().items() if name != "class_embedding.weight"}
    plain.load_state_dict(weights)
    assert told.class_embedding is not None
    with torch.no_grad():
        told.class_embedding.weight.zero_()
        torch.testing.assert_close(told(x, t, torch.tensor([0, 1, 2])), plain(x, t), rtol=0, atol=0)


# Training


def test_label_dropout_is_a_function_of_the_step(digits: ImageSet) -> None:
    """The right share, the data's own labels otherwise, fresh each step, the other draws as without classes."""
    config = classy(training__label_dropout=0.3, training__batch_size=64)
    source, shares, patterns = data.batches(digits, 64, seed=0), [], set()
    for step in range(60):
        drawn = next(source)
        inputs, again = (draw_inputs(config, drawn, step, 20) for _ in range(2))
        assert torch.equal(inputs.labels, again.labels)
        gone = inputs.labels == NO_CLASS
        assert drawn.labels is not None
        assert torch.equal(inputs.labels[~gone], torch.from_numpy(drawn.labels)[~gone])
        shares.append(float(gone.double().mean()))
        patterns.add(tuple(gone.tolist()))
        plain = draw_inputs(tiny(), drawn, step, 20)
        assert torch.equal(plain.t, inputs.t)
        assert torch.equal(plain.eps, inputs.eps)
    assert abs(np.mean(shares) - 0.3) < 4 * (0.3 * 0.7 / (60 * 64)) ** 0.5
    assert len(patterns) == 60


def test_accumulation_sees_the_same_labels(digits: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[int]] = {}
    for parts in (1, 4):
        config = classy(training__accumulation=parts, training__steps=2, training__label_dropout=0.5)
        state, told = new_state(config, device=CPU), seen.setdefault(parts, [])
        forward = state.network.forward

        def spy(x: Any, t: Any, labels: Any, told: list[int] = told, forward: Any = forward) -> Any:
            told.extend(labels.tolist())
            return forward(x, t, labels)

        monkeypatch.setattr(state.network, "forward", spy)
        list(training_steps(config, state, digits))
    assert len(seen[1]) == 16
    assert seen[1] == seen[4]
    assert NO_CLASS in seen[1]


def test_a_run_continues_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = classy(training__label_dropout=0.4)
    whole = train(config, tmp_path / "whole", progress=False)
    steps = run.training_loop.training_steps

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for step in steps(*arguments):
            if step.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(run.training_loop, "training_steps", interrupted)
        with pytest.raises(run.Interrupted):
            train(config, tmp_path / "parted", progress=False)
    parted = train(config, tmp_path / "parted", progress=False)
    _same_checkpoints(whole.checkpoint, parted.checkpoint)
    assert _rows(whole.folder) == _rows(parted.folder)
    for step in (3, 6):
        name = f"samples/step-{step}.png"
        assert (whole.folder / name).read_bytes() == (parted.folder / name).read_bytes()


def test_the_validation_loss_tells_the_class(digits: ImageSet) -> None:
    """Wrong labels change it, and for an unconditional network they do not."""
    wrong = replace(digits, labels=np.roll(digits.labels, 1))  # type: ignore[arg-type]
    for config, differs in ((classy(), True), (tiny(), False)):
        state = new_state(config, device=CPU)
        lively(state.ema)
        right, other = (validation_loss(config, state, images, limit=32) for images in (digits, wrong))
        assert (right != other) is differs


# Refusals


def test_other_classes_than_the_datas_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"network.classes: 7, but data.source: digits has 10 classes \(0, 1, 2"):
        train(tiny(network__classes=7), tmp_path / "run", progress=False)
    assert not list(tmp_path.rglob("*.pt"))


def _folder(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def test_folders_are_classes_and_none_without(tmp_path: Path) -> None:
    pictures = _folder(tmp_path / "a", "dog/1.png", "cat/1.png", "cat/2.png", "dog/2.png")
    settings: dict[str, Any] = {
        "data__source": "folder", "data__root": str(pictures), "data__held_out": 0.0, "training__steps": 1,
        "training__batch_size": 2,
    }  # fmt: skip
    done = train(tiny(network__classes=2, **settings), tmp_path / "run", progress=False)
    model = load(done.checkpoint, device="cpu")
    assert sampling_settings(model, classes="dog").classes == (1,)
    flat = _folder(tmp_path / "b", "1.png", "2.png", "3.png")
    with pytest.raises(ConfigError, match=r"network.classes: 2, but the images .* have no labels"):
        train(tiny(network__classes=2, **settings | {"data__root": str(flat)}), tmp_path / "flat", progress=False)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"training__label_dropout": 0.1}, "training.label_dropout: 0.1 has no effect"),
        ({"sampling__guidance": 2.0}, "sampling.guidance: 2.0 has no effect"),
        ({"sampling__classes": (1,)}, "sampling.classes: (1,) has no effect"),
        ({"network__classes": 10, "sampling__classes": (3, 10)}, "10 is no class: network.classes: 10 has 0 to 9"),
        ({"network__classes": 10, "sampling__guidance_interval": (0.2, 0.8)}, "no effect without guidance"),
        ({"network__classes": 10, "training__label_dropout": 0.0}, "training.label_dropout: found 0.0"),
        ({"network__classes": 1}, "network.classes: found 1"),
    ],
)
def test_configurations_without_effect_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        tiny(**changes)
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"classes": 10}, "10 is no class of this model. It has 10: 0, 1, 2"),
        ({"classes": "cat"}, "'cat' is no class"),
        ({"classes": [1, -1]}, "-1 is no class"),
        ({"classes": True}, "True is no class"),
        ({"classes": []}, "an empty list"),
        ({"guidance": 0.0}, "guidance: found 0.0"),
        ({"guidance": 2.0, "classes": "none"}, "guidance: 2.0 has no effect with classes: none"),
        ({"guidance_interval": (0.1, 0.9)}, "has no effect without guidance"),
        ({"guidance": 2.0, "guidance_interval": (0.9, 0.1)}, "is empty"),
    ],
)
def test_sampling_settings_without_effect_are_refused(model: Model, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        sampling_settings(model, **changes)
    assert complaint in str(refused.value)


@pytest.mark.parametrize("change", [{"classes": 1}, {"guidance": 2.0}, {"guidance_interval": (0, 1)}])
def test_unconditional_models_have_no_classes(model: Model, change: dict[str, Any]) -> None:
    plain = replace(model, config=tiny())
    with pytest.raises(UsageError, match=f"{next(iter(change))}: .* trained without classes"):
        sampling_settings(plain, **change)
    assert sampling_settings(plain).classes is None


def test_names_come_before_numbers() -> None:
    names = ("7", "a,b", "1")
    assert class_numbers("7", names) == (0,)
    assert class_numbers("1", names) == (2,)
    assert class_numbers(1, names) == (1,)
    assert class_numbers("a,b", names) == (1,)
    assert class_numbers("7, 0,1", names) == (0, 0, 2)
    assert class_numbers(["a,b", 2], names) == (1, 2)
    assert class_numbers(None, names) == "all"


# Sampling


def test_image_i_keeps_its_class_for_any_batch_size(model: Model) -> None:
    """In turn through the classes given, whatever image a set starts with."""
    whole = sample(model, 9, batch_size=9, classes=[4, 1, 7], guidance=2.0).astype(int)
    for size in (1, 4):
        parted = sample(model, 9, batch_size=size, classes="4,1,7", guidance=2.0).astype(int)
        assert np.abs(whole - parted).max() <= 1
    later = sample(model, 3, start=5, batch_size=2, classes=[4, 1, 7], guidance=2.0).astype(int)
    assert np.abs(whole[5:8] - later).max() <= 1
    alone = sample(model, 9, classes=1, guidance=2.0).astype(int)
    assert np.abs(whole[[1, 4, 7]] - alone[[1, 4, 7]]).max() <= 1
    assert np.abs(whole[0] - alone[0]).max() > 1


def test_every_option_changes_the_images(model: Model) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"classes": "none"},
        {"classes": 3},
        {"guidance": 2.0},
        {"guidance": 4.0},
        {"guidance": 4.0, "guidance_interval": (0.0, 0.5)},
        {"guidance": 4.0, "guidance_interval": (0.5, 1.0)},
    ]
    drawn = [ddpm.sample(model, 4, **option) for option in options]
    assert len({array.tobytes() for array in drawn}) == len(options)
    for same in ({"classes": "all"}, {"guidance": 1.0}, {"classes": list(range(10))}):
        assert np.array_equal(drawn[0], sample(model, 4, **same))
    assert np.array_equal(drawn[4], sample(model, 4, guidance=4.0, guidance_interval=(0, 1)))


def test_each_image_is_drawn_by_its_own_network(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call a step: of B images, and of 2 B with guidance."""
    calls: list[tuple[int, list[int]]] = []

    def counting(x: Any, t: Any, labels: Any = None) -> Any:
        calls.append((len(x), [] if labels is None else labels.tolist()))
        return model.network(x, t, labels)

    counted = replace(model, network=counting)
    sample(counted, 3, classes=[5, 6])
    assert calls == [(3, [5, 6, 5])] * 5
    calls.clear()
    sample(counted, 3, classes=[5, 6], guidance=3.0)
    assert calls == [(6, [5, 6, 5, -1, -1, -1])] * 5
    calls.clear()
    sample(counted, 3, classes="none")
    assert calls == [(3, [])] * 5


def test_a_learned_variance_and_bfloat16(tmp_path: Path) -> None:
    config = classy(
        diffusion__variance="learned_range",
        training__loss="hybrid",
        training__steps=20,
        training__save_every=20,
        training__learning_rate=1e-2,
        sampling__guidance=2.0,
    )
    done = train(config, tmp_path, progress=False)  # with a preview
    model = load(done.checkpoint, device="cpu")
    settings = sampling_settings(model)
    net = generate.condition(model.network, model.config, [0, 1], settings, CPU)
    assert isinstance(net, Guided)
    assert settings.guidance == 2.0
    images = sample(model, 2)
    fast = sample(load(done.checkpoint, device="cpu", precision="bfloat16"), 2)
    assert 0 < np.abs(images.astype(int) - fast.astype(int)).mean() < 10


def test_options_leave_the_checkpoints_own_behind(model: Model) -> None:
    own = model.config.sampling.model_copy(update={"classes": (3,), "guidance": 2.0, "guidance_interval": (0.1, 0.9)})
    other = replace(model, config=model.config.model_copy(update={"sampling": own}))
    same = sampling_settings(other)
    assert (same.classes, same.guidance, same.guidance_interval) == ((3,), 2.0, (0.1, 0.9))
    off = sampling_settings(other, guidance=1.0)
    assert (off.guidance, off.guidance_interval) == (1.0, None)
    none = sampling_settings(other, classes="none")
    assert (none.classes, none.guidance, none.guidance_interval) == ("none", None, None)


def test_random_classes_are_functions_of_seed_and_number(model: Model) -> None:
    settings = sampling_settings(model, classes="random")
    drawn = labels_of(model.config, range(500), settings)
    assert drawn is not None
    assert labels_of(model.config, [7, 3, 499], settings) == [drawn[7], drawn[3], drawn[499]]
    assert np.bincount(drawn, minlength=10).min() > 25  # 50 expected, with a deviation of 6.7
    assert len({tuple(drawn[i : i + 10]) for i in range(0, 500, 10)}) == 50  # not in turn
    other = labels_of(model.config, range(500), sampling_settings(model, classes="random", seed=1))
    assert other != drawn
    whole = sample(model, 6, classes="random", guidance=2.0).astype(int)
    for i, label in enumerate(drawn[:6]):
        alone = sample(model, 1, start=i, classes=label, guidance=2.0).astype(int)
        assert np.abs(alone[0] - whole[i]).max() <= 1
    assert page(np.zeros((9, 8, 8, 1), np.uint8), range(9), model.config, settings).shape[:2] == (3 * 69 + 5,) * 2


def test_the_grid_has_a_row_for_each_class(model: Model) -> None:
    settings = sampling_settings(model)
    assert grid_count(model.config) == 60
    assert grid_count(model.config, sampling_settings(model, classes="random")) == 64
    labels = labels_of(model.config, range(25), settings)
    assert labels is not None
    arrays = np.stack([np.full((8, 8, 1), 20 * k, np.uint8) for k in labels])
    picture = page(arrays, range(25), model.config, settings)
    side, gap = 64, 5  # 8x8 pixels enlarged
    assert picture.shape[:2] == (10 * (side + gap) + gap, 3 * (side + gap) + gap)
    centres = picture[gap + side // 2 :: side + gap, gap + side // 2 :: side + gap, 0]
    assert centres.tolist() == [[20 * k, 20 * k, 20 * k if k < 5 else 255] for k in range(10)]
    chosen = sampling_settings(model, classes=[1, 2])
    assert page(arrays[:16], range(16), model.config, chosen).shape[:2] == (4 * 69 + 5, 4 * 69 + 5)


def test_a_folder_says_its_classes(model: Model, tmp_path: Path) -> None:
    settings = sampling_settings(model, classes=[1, 2], guidance=2.0, guidance_interval=(0.2, 0.8))
    sample_to_folder(model, tmp_path / "a", 2, settings=settings, progress=False)
    recorded = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert (recorded["classes"], recorded["guidance"], recorded["guidance_interval"]) == ([1, 2], 2.0, [0.2, 0.8])
    assert claimable(model, tmp_path / "a", settings) == tmp_path / "a"  # the same again
    assert sample_to_folder(model, tmp_path / "a", 3, settings=settings, progress=False).made == 1
    for change in ({"classes": 1}, {"guidance": 3.0}, {"guidance": 1.0}, {"classes": "all"}):
        with pytest.raises(UsageError, match="other settings"):
            sample_to_folder(model, tmp_path / "a", 2, settings=sampling_settings(model, **change), progress=False)


# The command line


def test_commands(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("sample", str(checkpoint_path), "--device", "cpu")
    assert main([*common, "--class", "all", "--guidance", "2", "--out", "all"]) == 0
    assert "classes    all, guidance 2 (each call with the images twice)" in capsys.readouterr().out
    assert np.load("all/samples.npz")["arr_0"].shape == (60, 8, 8, 1)
    assert read_png(Path("all/grid.png")).shape[:2] == (10 * 69 + 5, 6 * 69 + 5)
    options = ("--num-samples", "5", "--class", "3,1", "--guidance", "3", "--guidance-interval", "0.1,0.6", "--json")
    assert main([*common, *options, "--out", "two"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["classes"], summary["guidance"], summary["count"]) == ([3, 1], 3.0, 5)
    assert summary["guidance_interval"] == [0.1, 0.6]
    assert summary["network_calls"] == 5
    assert main([*common, "--out", "turn"]) == 0
    assert "classes    all, not guided" in capsys.readouterr().out
    assert json.loads(Path("turn/settings.json").read_text())["classes"] == "all"
    assert main([*common, "--class", "cat", "--out", "x"]) == 2
    assert "'cat' is no class of this model" in capsys.readouterr().err
    for words in (("--guidance", "0"), ("--guidance-interval", "0.5"), ("--guidance-interval", "a,b")):
        with pytest.raises(SystemExit):
            main([*common, *words, "--out", "x"])
    assert not Path("x").exists()


def test_unconditional_models_refuse_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = train(tiny(training__steps=1), tmp_path / "run", progress=False)
    for option in (("--class", "3"), ("--guidance", "2.0")):
        assert main(["sample", str(done.checkpoint), *option, "--out", str(tmp_path / "x")]) == 2
        assert "trained without classes" in capsys.readouterr().err


# Elsewhere


def test_benchmarks_work() -> None:
    step = speed.training_step(classy(), CPU)
    assert step().loss > 0  # type: ignore[attr-defined]
    pictures = speed.random_pictures(classy())
    assert pictures.labels is not None
    assert np.bincount(pictures.labels).min() >= 409
    assert speed.network_call(classy(), 3, CPU)().shape == (3, 1, 8, 8)  # type: ignore[attr-defined]


def test_the_shipped_twin_differs_in_its_classes_and_its_length_alone() -> None:
    twin, plain = (load_config(f"image/mnist/ddpm_cpu{end}") for end in ("_classes", ""))
    network = twin.network.model_copy(update={"classes": None})
    length = {key: getattr(plain.training, key) for key in ("steps", "learning_rate", "ema_decay")}
    training = twin.training.model_copy(update={"label_dropout": None, **length})
    assert twin.model_copy(update={"network": network, "training": training}) == plain
    assert (twin.network.classes, twin.training.label_dropout) == (10, 0.1)
    assert to_yaml(twin).count("classes") == 2


def test_diffusers_is_told_no() -> None:
    config = classy()
    settings: dict[str, Any] = config.network.model_dump() | {"in_channels": 1, "out_channels": 1, "size": (8, 8)}
    weights = build_network(config).state_dict()
    for attempt in (
        lambda: unet_config(settings),
        lambda: unet_weights_to(weights, settings),
        lambda: unet_weights_from(weights, settings),
    ):
        with pytest.raises(DDPMError, match="classes: 10: UNet2DModel knows no null class"):
            attempt()


def test_a_bound_network_is_a_net(model: Model) -> None:
    """What the rest of the package asks of a network: (x_t, t) -> out."""
    x, t = torch.zeros(2, 1, 8, 8), torch.tensor([1, 20])
    labels = torch.tensor([3, 4])
    bound = Conditional(model.network, labels)
    with torch.no_grad():
        assert torch.equal(bound(x, t), model.network(x, t, labels))
        assert not torch.equal(bound(x, t), model.network(x, t))
