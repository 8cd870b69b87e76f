"""The lesson's checkpoints load, and the network they hold is the one we build."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm.config import NetworkSection
from ddpm.diffusion import Diffusion
from ddpm.errors import CheckpointError, DDPMError
from ddpm.interop import xdiffusion
from ddpm.interop.xdiffusion import unet_settings, unet_weights_from
from ddpm.schedule import make_schedule
from ddpm.unet import UNet
from tests.reference import arrays, index

TINY = "unet/xdiffusion_tiny"


@pytest.fixture
def content(golden: Path) -> dict[str, Any]:
    """The checkpoint as it is in the file."""
    return torch.load(golden / TINY / "diffusion-10.pt", weights_only=True)  # type: ignore[no-any-return]


@pytest.fixture
def net(golden: Path) -> UNet:
    found = xdiffusion.load(golden / TINY / "diffusion-10.pt")
    assert found.step == 10
    net = UNet(**found.settings)
    net.load_state_dict(found.weights)
    return net.eval()


@pytest.fixture
def tables(golden: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(a) for name, a in arrays(golden / TINY / "io.npz").items()}


@torch.no_grad()
def test_outputs_equal_the_recorded_ones(net: UNet, tables: dict[str, Tensor]) -> None:
    out = tables["out"]
    assert (net(tables["x"], tables["t"] + 1) - out).abs().max() < 2e-5
    assert ((net(tables["x"], tables["t"]) - out).abs().amax((1, 2, 3)) > 1e-3).all()


@torch.no_grad()
def test_loss_equals_the_recorded_one(net: UNet, tables: dict[str, Tensor]) -> None:
    """Scaled images, Equation 4, Equation 14: their whole training step up to the gradient."""
    diffusion = Diffusion(schedule=make_schedule("linear", 1000))
    x0, eps, t = tables["loss.images"] * 2 - 1, tables["loss.eps"], tables["loss.t"] + 1
    loss = (eps - net(diffusion.q_sample(x0, t, eps), t)).square().mean()
    assert abs(loss - tables["loss.value"]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_heads_have_attention_channels(content: dict[str, Any], tables: dict[str, Tensor], heads: int) -> None:
    """64 channels in heads of `attention_channels` = 16: four, whatever `attention_heads` = 2 says."""
    settings = unet_settings(content["config"])
    assert settings["heads"] == 4
    net = UNet(**settings | {"heads": heads}).eval()
    net.load_state_dict(unet_weights_from(content["model_state_dict"], settings | {"heads": heads}))
    assert (net(tables["x"], tables["t"] + 1) - tables["out"]).abs().max() > 0.1


def test_names_and_shapes_of_the_mnist_model(golden: Path) -> None:
    reference = index(golden / "unet/params_xdiffusion_mnist.json")
    settings = unet_settings(reference["config"])
    lesson = NetworkSection(
        heads=4, dropout=0.1, time="scale_shift", resample="pooled", norm_eps=1e-5, outer_bias=False
    )
    assert settings == {"in_channels": 1, "out_channels": 1, "size": (32, 32), **lesson.model_dump()}
    with torch.device("meta"):
        ours = UNet(**settings).state_dict()
        theirs = {name: torch.empty(shape) for name, shape in reference["parameters"].items()}
        mapped = unet_weights_from(theirs, settings)
    assert {n: v.shape for n, v in mapped.items()} == {n: v.shape for n, v in ours.items()}
    assert len(theirs) == len(ours) == reference["n_tensors"]
    assert sum(v.numel() for v in mapped.values()) == reference["n_params"] == 35_204_480


def test_every_weight_is_used_once(content: dict[str, Any]) -> None:
    """Marked with numbers of their own, all elements arrive, each one once."""
    settings = unet_settings(content["config"])
    state = content["model_state_dict"]
    marked, start = {}, 0
    for name, value in state.items():
        if name.startswith("_score_network.") and "_context_transformers" not in name:
            marked[name] = torch.arange(start, start + value.numel()).view(value.shape)
            start += value.numel()
    arrived = torch.cat([value.flatten() for value in unet_weights_from(marked, settings).values()])
    assert torch.equal(arrived.sort().values, torch.arange(start))


def test_keys_are_strict(content: dict[str, Any]) -> None:
    settings, state = unet_settings(content["config"]), content["model_state_dict"]
    assert unet_weights_from(state, settings).keys() == UNet(**settings).state_dict().keys()
    key = "_score_network.middle.1._qkv.bias"
    with pytest.raises(CheckpointError, match=re.escape("middle.1._qkv.bias: found none, expected (192,)")):
        unet_weights_from({n: v for n, v in state.items() if n != key}, settings)
    with pytest.raises(CheckpointError, match=re.escape("middle.1._qkv.bias: found (64,), expected (192,)")):
        unet_weights_from(state | {key: torch.zeros(64)}, settings)
    for extra in ("_score_network.downs.1.0.conv.weight", "_noise_scheduler.sigmas", "_ema.decay"):
        with pytest.raises(CheckpointError, match=re.escape(f"{extra.removeprefix('_score_network.')}: found (1,)")):
            unet_weights_from(state | {extra: torch.zeros(1)}, settings)


def test_twins_must_agree(content: dict[str, Any]) -> None:
    """The timestep's layers are stored twice; which of two different ones to take is nobody's guess."""
    settings, state = unet_settings(content["config"]), content["model_state_dict"]
    twin = "_score_network._context_transformers.0._projections.timestep._projection.3.bias"
    with pytest.raises(CheckpointError, match=re.escape("_projection.3.bias differs")):
        unet_weights_from(state | {twin: state[twin] + 1}, settings)


REFUSED: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "network": (("target",), "xdiffusion.score_networks.dit.DiT", "target: found 'xdiffusion.score_networks.dit.DiT'"),
    "unknown": (("params", "patch_size"), 2, "patch_size: unknown field (found: 2)"),
    "time": (("params", "use_scale_shift_norm"), False, "use_scale_shift_norm: found False"),
    "resampling": (("params", "resamp_with_conv"), True, "resamp_with_conv: found True"),
    "resampling blocks": (("params", "resblock_updown"), True, "resblock_updown: found True"),
    "blocks": (("params", "resnet_block_type"), "ddpm", "resnet_block_type: found 'ddpm'"),
    "variance": (("params", "is_learned_sigma"), True, "is_learned_sigma: found True"),
    "classes": (("params", "is_class_conditional"), True, "is_class_conditional: found True"),
    "causal": (("params", "attention", "is_causal"), True, "is_causal: found True"),
    "no head width": (("params", "attention", "attention_channels"), -1, "attention_channels: found -1"),
    "odd head width": (("params", "attention", "attention_channels"), 24, "attention_channels: 24 does not divide"),
    "two head widths": (("params", "attention", "attention_channels"), 32, "32 is not dim_head: 16"),
    "different heads": (
        ("params", "attention", "attention_resolutions"),
        [16, 8],
        "attention_channels: 16 gives [2, 4] heads",
    ),
    "no such map": (("params", "attention", "attention_resolutions"), [4], "attention at [4]"),
    "signals": (("params", "conditioning", "signals"), ["timestep", "classes"], "signals: found"),
    "embedding": (
        ("params", "conditioning", "projections", "timestep", "params", "time_embedding_mult"),
        2,
        "timestep: found",
    ),
    "attention": (("params", "attention"), None, "attention: found None, supported: a section"),
    "groups": (("params", "num_features"), 48, "timestep: found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_ours_cannot_express_is_refused_by_name(content: dict[str, Any], case: str) -> None:
    path, value, message = REFUSED[case]
    config = copy.deepcopy(content["config"])
    section = config["diffusion"]["score_network"]
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    with pytest.raises(DDPMError, match=re.escape(message)):
        unet_settings(config)


def test_missing_and_other_sections_are_refused(content: dict[str, Any]) -> None:
    config = copy.deepcopy(content["config"])
    del config["diffusion"]["score_network"]["params"]["dropout"]
    with pytest.raises(DDPMError, match="dropout: is missing"):
        unet_settings(config)
    with pytest.raises(DDPMError, match="diffusion: found None, supported: a section"):
        unet_settings({})
    config = copy.deepcopy(content["config"])
    config["diffusion"]["input_preprocessing"]["target"] = "xdiffusion.context.Tokenizer"
    with pytest.raises(DDPMError, match=r"target: found 'xdiffusion\.context\.Tokenizer'"):
        unet_settings(config)


def test_files_that_are_no_such_checkpoints(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "diffusion-1.pt"
    with pytest.raises(CheckpointError, match=r"diffusion-1\.pt: cannot be read"):
        xdiffusion.load(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"diffusion-1\.pt: cannot be read"):
        xdiffusion.load(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of xdiffusion: found list"):
        xdiffusion.load(path)
    torch.save(content | {"ema_state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="ema_state_dict"):
        xdiffusion.load(path)
