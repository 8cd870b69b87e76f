"""Whole folders of diffusers' pipelines, in and out: the same images for the same noise."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm import checkpoint, generate
from ddpm.checkpoint import Checkpoint
from ddpm.commands.export import export_checkpoint
from ddpm.config import Config, load_config, parse_config
from ddpm.errors import CheckpointError, DDPMError, UsageError
from ddpm.images import Crop
from ddpm.interop.adopt import adopt
from ddpm.interop.bare import bare_checkpoint
from ddpm.interop.diffusers import _FIELDS, unet_settings, unet_weights_from
from ddpm.ops.plain import PLAIN
from ddpm.training_loop import build_network
from ddpm.unet import UNet
from tests.interop.test_diffusers import lively
from tests.reference import arrays, close, index
from tests.tiny import TINY, tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # not ours to mend
    from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel


def given_noise(patch: pytest.MonkeyPatch, start: Tensor, steps: Sequence[Tensor]) -> None:
    class Noise:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def start(self) -> Tensor:
            return start

        def __call__(self, k: int) -> Tensor:
            return steps[k]

    patch.setattr(generate, "ImageNoise", Noise)


def drawn(seed: int, count: int, shape: Sequence[int]) -> list[Tensor]:
    """What torch.Generator().manual_seed(seed) gives their pipelines: the start, then each step's."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddpm_3ch"])
def test_imported_folders_sample_as_recorded(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """All states of the recorded pipelines, through the file that an import writes."""
    facts = index(golden / "unet/pipelines_index.json")[name]
    tables = {
        key.partition(".")[2]: torch.from_numpy(a)
        for key, a in arrays(golden / "unet/pipelines_io.npz").items()
        if key.startswith(f"{name}.")
    }
    # An untrained network with DDIM makes 1e-6 of its input 1e-3: the fused convolutions' last digits are not theirs.
    monkeypatch.setattr(generate, "choose_kernels", lambda kernels, device: (PLAIN, "plain"))
    checkpoint.save(tmp_path / "model.pt", adopt(golden / "unet" / facts["folder"]).checkpoint)
    model = generate.load(tmp_path / "model.pt", device="cpu")
    settings = generate.sampling_settings(model, steps=facts["num_inference_steps"])
    given_noise(monkeypatch, tables["initial_noise"], list(tables.get("step_noise", torch.empty(0))))
    states = list(generate.states(model, range(facts["batch_size"]), settings))
    steps = generate._steps(model.diffusion, settings)
    assert [t - 1 for t, _ in steps] == tables["timesteps"].tolist()
    walked = torch.stack([tables["initial_noise"], *(s.x for s in states)])
    close(walked, tables["traj"], 1e-3)
    images = (states[-1].x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert (images - tables["images"]).abs().max() < 1e-3
    levels = generate.to_arrays(states[-1].x).astype(int)
    assert np.abs(levels - tables["images_u8"].numpy().astype(int)).max() <= 1


def saved_model(config: Config) -> Checkpoint:
    network = build_network(config)
    lively(network)
    return bare_checkpoint(network.state_dict(), config, step=7)


def exported(config: Config, folder: Path) -> Checkpoint:
    saved = saved_model(config)
    assert export_checkpoint(saved, "diffusers", folder, "ema")["lost"] == []
    return saved


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "v, quad, fixed_small": {"diffusion": {"prediction": "v", "schedule": "quad", "variance": "fixed_small"}},
    "sigmoid as a table, x0, dynamic": {
        "diffusion": {"prediction": "x0", "schedule": "sigmoid"},
        "sampling": {"clip": "dynamic", "clip_quantile": 0.8},
    },
    "learned range, cosine": {
        "diffusion": {"variance": "learned_range", "schedule": "cosine"},
        "training": {"loss": "hybrid"},
    },
    "rectangular, three colours": {"data": {"image_size": [8, 12], "channels": 3}},
    "improved's form": {"network": {"time": "scale_shift", "padding": "symmetric", "embedding": "improved"}},
}


def config_with(changes: dict[str, dict[str, Any]]) -> Config:
    base = {**TINY, "sampling": {}}
    return parse_config({k: {**base[k], **changes.get(k, {})} for k in base}, source="tiny")  # type: ignore[dict-item]


@pytest.mark.parametrize("case", CONFIGS)
def test_exported_folders_sample_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Theirs loads the folder and draws; ours draws from the checkpoint with the noise that theirs drew."""
    config = config_with(CONFIGS[case])
    checkpoint.save(tmp_path / "ours.pt", exported(config, tmp_path / "theirs"))
    model = generate.load(tmp_path / "ours.pt", device="cpu")
    T, shape = config.diffusion.timesteps, (2, config.data.channels, *config.data.size)
    draws = drawn(5, 1 + T, shape)
    given_noise(monkeypatch, draws[0], draws[1:])

    def of_theirs(pipeline: Any, **call: Any) -> Tensor:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(5)
        result = pipeline(2, generator, num_inference_steps=T, output_type="np", **call)
        return torch.from_numpy(result.images)

    def of_ours(**changes: Any) -> Tensor:
        settings = generate.sampling_settings(model, **changes)
        *_, last = generate.states(model, range(2), settings)
        return (last.x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    images = of_theirs(DDPMPipeline.from_pretrained(tmp_path / "theirs"))
    assert (of_ours() - images).abs().max() < 1e-3
    assert images.std() > 0.05  # not all of one colour
    if config.diffusion.learns_variance:
        return  # a DDIMPipeline takes no network that answers with a variance too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the folder's scheduler is a DDPMScheduler, of which it makes its own
        pipeline = DDIMPipeline.from_pretrained(tmp_path / "theirs")
        for eta in (0.0, 1.0):
            images = of_theirs(pipeline, eta=eta, use_clipped_model_output=True)
            assert (of_ours(sampler="ddim", eta=eta) - images).abs().max() < 1e-3
        images = of_theirs(pipeline, eta=0.0)
        assert (of_ours(sampler="ddim", conventions="diffusers") - images).abs().max() < 1e-3


@pytest.mark.parametrize("case", CONFIGS)
def test_exported_and_imported_again(tmp_path: Path, case: str) -> None:
    saved = exported(config_with(CONFIGS[case]), tmp_path)
    back = adopt(tmp_path).checkpoint
    assert back.ema.keys() == saved.ema.keys()
    assert all(torch.equal(value, back.ema[name]) for name, value in saved.ema.items())
    assert back.config.network == saved.config.network.model_copy(update={"dropout": back.config.network.dropout})
    assert back.config.data.size == saved.config.data.size
    assert (back.config.diffusion.prediction, back.config.diffusion.variance) == (
        saved.config.diffusion.prediction,
        saved.config.diffusion.variance,
    )
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: diffusers\n")
    assert f"num_inference_steps={saved.config.diffusion.timesteps}" in text


@pytest.mark.parametrize(
    "name", ["image/digits/ddpm_8x8", "image/cifar10/ddpm_32x32", "image/celebahq/ddpm_256x256", "image/mnist/ddpm_cpu"]
)
def test_shipped_configurations_are_exportable(name: str) -> None:
    """But for those whose network UNet2DModel is not, which say why."""
    from ddpm.interop.diffusers import unet_config
    from ddpm.interop.schedulers import scheduler_config
    from ddpm.interop.strict import unet_arguments
    from ddpm.training_loop import build_diffusion

    config = load_config(name)
    settings = unet_arguments(config)
    if config.network.patch > 1:
        with pytest.raises(DDPMError, match="patch"):
            unet_config(settings)
    else:
        assert unet_settings(unet_config(settings)).items() >= {"channels": config.network.channels}.items()
    _, lost = scheduler_config(
        config.diffusion.model_dump(), config.sampling.model_dump(), build_diffusion(config).schedule
    )
    assert lost == []


def test_what_a_folder_cannot_hold_is_refused_and_nothing_written(tmp_path: Path) -> None:
    saved = replace(saved_model(tiny()), data=replace(saved_model(tiny()).data, crop=Crop(0, 0, 6, 8)))
    with pytest.raises(DDPMError, match="cropped back to 6x8: a pipeline cannot crop"):
        export_checkpoint(saved, "diffusers", tmp_path / "out", "ema")
    for change, message in (
        ({"network": {"patch": 2, "attention": (4,), "multipliers": (1,)}}, "patch: 2"),
        ({"network": {"time_scale": 0.25}}, "time_scale: 0.25"),
        ({"network": {"classes": 10}}, "classes: 10: UNet2DModel knows no null class"),
        ({"diffusion": {"prediction": "mu"}}, "diffusion.prediction: mu"),
    ):
        with pytest.raises(DDPMError, match=message):
            export_checkpoint(saved_model(config_with(change)), "diffusers", tmp_path / "out", "ema")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        export_checkpoint(saved_model(tiny()), "diffusers", tmp_path / "file", "ema")


def test_paths_of_this_machine_are_not_published(tmp_path: Path) -> None:
    config = config_with({"data": {"source": "folder", "root": "/home/somebody/pictures"}})
    saved = saved_model(config)
    for to, out in (("diffusers", tmp_path / "d"), ("safetensors", tmp_path / "w.safetensors")):
        export_checkpoint(saved, to, out, "ema")
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(written) >= 5
    assert not any(b"somebody" in path.read_bytes() for path in written)


def theirs_saved(folder: Path) -> Path:
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=None,
    )
    model.save_pretrained(folder / "unet", safe_serialization=True)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    return folder


def test_the_layout_of_the_first_published_folders(tmp_path: Path) -> None:
    """Everything in one folder, the weights pickled: google/ddpm-*."""
    from safetensors.torch import load_file

    own = theirs_saved(tmp_path / "own")
    expected = adopt(own).checkpoint
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(own / "unet/config.json", flat)
    shutil.copy(own / "scheduler/scheduler_config.json", flat)
    torch.save(load_file(own / "unet/diffusion_pytorch_model.safetensors"), flat / "diffusion_pytorch_model.bin")
    found = adopt(flat).checkpoint
    assert found.config == expected.config
    assert all(torch.equal(value, found.ema[name]) for name, value in expected.ema.items())


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = theirs_saved(tmp_path) / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    assert {value.dtype for value in adopt(tmp_path).checkpoint.ema.values()} == {torch.float32}


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder of a diffusers pipeline"):
        adopt(tmp_path)
    theirs_saved(tmp_path)
    index_file, unet = tmp_path / "model_index.json", tmp_path / "unet"
    index_file.write_text('{"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}')
    with pytest.raises(DDPMError) as caught:
        adopt(tmp_path)
    for words in ("vqvae: unknown field", "unet: is missing", "_class_name: found 'LDMPipeline'"):
        assert words in str(caught.value)
    index_file.write_text("{")
    with pytest.raises(CheckpointError, match=r"model_index\.json: is not valid JSON"):
        adopt(tmp_path)
    index_file.unlink()
    scheduler = tmp_path / "scheduler/scheduler_config.json"
    text = scheduler.read_text()
    scheduler.write_text('{"_class_name": "DDPMScheduler", "variance_type": "learned_range"}')
    with pytest.raises(DDPMError, match="out_channels: found 1, but variance_type 'learned_range'"):
        adopt(tmp_path)
    scheduler.unlink()
    with pytest.raises(CheckpointError, match="neither scheduler/scheduler_config"):
        adopt(tmp_path)
    scheduler.write_text(text)
    weights = unet / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged or not safetensors"):
        adopt(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"has no diffusion_pytorch_model\.safetensors or"):
        adopt(tmp_path)
    torch.save([1], unet / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds no weights by name"):
        adopt(tmp_path)


BASE: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
}
NET_FOLLOWED: dict[str, dict[str, Any]] = {
    "sample_size": {"sample_size": [8, 12]},
    "in_channels, out_channels": {"in_channels": 3, "out_channels": 3},
    "flip_sin_to_cos, freq_shift": {"flip_sin_to_cos": False, "freq_shift": 1},
    "down_block_types, up_block_types": {
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
    },
    "block_out_channels": {"block_out_channels": [8, 24]},
    "layers_per_block": {"layers_per_block": 2},
    "downsample_padding": {"downsample_padding": 0},
    "attention_head_dim": {"attention_head_dim": 4},
    "norm_num_groups": {"norm_num_groups": 2},
    "resnet_time_scale_shift, attn_norm_num_groups": {
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
    },
    "norm_eps": {"norm_eps": 0.1},
}
NET_WITHOUT: dict[str, dict[str, Any]] = {
    "time_embedding_dim": {"time_embedding_dim": 32},  # four times the first width, as where it is absent
    "act_fn": {"act_fn": "swish"},  # another name
    "attn_norm_num_groups": {"attn_norm_num_groups": 4},
    "num_train_timesteps": {"num_train_timesteps": 1000},
    "dropout": {"dropout": 0.5},  # in sampling; see below
}


def outputs(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Theirs and ours, of the same weights."""
    model = UNet2DModel(**{k: v for k, v in config.items() if not k.startswith("_")}).eval()
    lively(model)
    settings = unet_settings(config)
    net = UNet(**settings).eval()
    net.load_state_dict(unet_weights_from(model.state_dict(), settings))
    x = torch.randn(2, settings["in_channels"], *settings["size"], generator=torch.Generator().manual_seed(2))
    t = torch.tensor([3, 700])
    with torch.no_grad():
        return model(x, t - 1).sample, net(x, t)


@pytest.mark.parametrize("case", NET_FOLLOWED)
def test_a_field_of_the_network_changes_ours_as_theirs(case: str) -> None:
    expected, found = outputs(BASE | NET_FOLLOWED[case])
    assert (found - expected).abs().max() < 2e-5
    base, _ = outputs(BASE)
    assert base.shape != expected.shape or (base - expected).abs().max() > 1e-3


@pytest.mark.parametrize("case", NET_WITHOUT)
def test_a_field_without_effect_there_has_none_here(case: str) -> None:
    expected, found = outputs(BASE | NET_WITHOUT[case])
    base, ours = outputs(BASE)
    assert torch.allclose(expected, base, atol=1e-6)
    assert torch.equal(found, ours)


def test_dropout_is_taken_over() -> None:
    settings = unet_settings(BASE | {"dropout": 0.5})
    net = UNet(**settings).train()
    lively(net)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([3, 700])
    with torch.no_grad():
        assert not torch.equal(net(x, t), net(x, t))


def test_every_field_of_the_network_has_a_case() -> None:
    from tests.interop.test_diffusers import REFUSED

    tried = {key for change in [*NET_FOLLOWED.values(), *NET_WITHOUT.values()] for key in change}
    tried |= {key for change, _ in REFUSED.values() for key in change}
    assert set(_FIELDS) <= tried


def test_an_imported_model_is_fine_tuned(tmp_path: Path) -> None:
    """Its weights are where training starts; there is no training of it to go on with."""
    from ddpm.run import train
    from ddpm.training_loop import restore_state

    adopted = adopt(theirs_saved(tmp_path / "d"), ["data.source=digits", "training.steps=5"]).checkpoint
    assert (adopted.config.data.source, adopted.config.training.steps) == ("digits", 5)
    path = tmp_path / "model.pt"
    checkpoint.save(path, adopted)
    network = adopted.config.network
    config = parse_config(
        TINY
        | {
            "network": network.model_dump(),
            "training": TINY["training"] | {"init_from": str(path), "steps": 1},
            "diffusion": adopted.config.diffusion.model_dump(),
            "sampling": {},
        },
        source="fine-tuning",
    )
    finished = train(config, tmp_path / "run", device="cpu", progress=False)
    tuned = checkpoint.load(finished.checkpoint)
    moved = max(float((tuned.network[n] - v).abs().max()) for n, v in adopted.ema.items())
    assert 0 < moved < 0.01  # one step of Adam away
    with pytest.raises(CheckpointError, match=r"Fine-tune from it with training\.init_from"):
        restore_state(adopted, adopted.config, device=torch.device("cpu"))
