"""Our network is UNet2DModel: the same outputs from the same weights, recorded and live, both ways."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ddpm.config import NetworkSection
from ddpm.errors import CheckpointError, DDPMError
from ddpm.interop.diffusers import unet_config, unet_settings, unet_weights_from, unet_weights_to, unwrap, wrap
from ddpm.unet import UNet
from tests.reference import arrays, close, index

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # not ours to mend
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

PAPER: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "size": (16, 24),
    "channels": 32,
    "multipliers": (1, 2, 2, 2),
    "blocks": 2,
    "attention": (8,),
}
"""The paper's form, narrow: 16x24 images, 2x3 in the middle."""

LIVE = {
    "paper, 3 channels": PAPER,
    "paper, 1 channel": PAPER | {"in_channels": 1, "out_channels": 1, "size": (16, 16), "attention": (16, 4)},
    "improved": PAPER | {"padding": "symmetric", "embedding": "improved", "norm_eps": 1e-5, "dropout": 0.1},
    "scale and shift, heads": PAPER | {"time": "scale_shift", "heads": 4, "norm_groups": 8, "blocks": 1},
    "learned variance, one level": PAPER | {"out_channels": 6, "multipliers": (1,), "attention": (), "heads": 2},
}


def lively(net: torch.nn.Module) -> None:
    """Weights from a generator of their own, none of them zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)


def batch(settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, settings["in_channels"], *settings["size"], generator=generator), torch.tensor([1, 700])


def theirs(config: dict[str, Any]) -> Any:
    return UNet2DModel(**{name: value for name, value in config.items() if not name.startswith("_")}).eval()


@pytest.fixture(params=["tiny_1ch", "tiny_3ch"])
def tiny(request: pytest.FixtureRequest, golden: Path) -> tuple[str, dict[str, Any], UNet]:
    name = request.param
    settings = unet_settings(index(golden / "unet" / name / "config.json"))
    net = UNet(**settings)
    weights = load_file(golden / "unet" / name / "diffusion_pytorch_model.safetensors")
    net.load_state_dict(unet_weights_from(weights, settings))
    return name, settings, net.eval()


def test_outputs_equal_the_recorded_ones(golden: Path, tiny: tuple[str, dict[str, Any], UNet]) -> None:
    name, _, net = tiny
    tables = {key: torch.from_numpy(a) for key, a in arrays(golden / "unet/diffusers_tiny_io.npz").items()}
    x, t, out = tables[f"{name}.x"], tables[f"{name}.t"], tables[f"{name}.out"]
    with torch.no_grad():
        assert (net(x, t + 1) - out).abs().max() < 2e-5
        for time in (37, 437.25):
            whole = torch.full((len(x),), time + 1)
            assert (net(x, whole) - tables[f"{name}.out_t{time}"]).abs().max() < 2e-5
        # The references count from 0: their t passed as it is gives another image at every one of them.
        assert ((net(x, t) - out).abs().amax((1, 2, 3)) > 1e-3).all()


def test_gradients_equal_the_recorded_ones(golden: Path, tiny: tuple[str, dict[str, Any], UNet]) -> None:
    name, settings, net = tiny
    tables = arrays(golden / "unet/diffusers_tiny_io.npz")
    recorded = index(golden / "unet/diffusers_tiny_index.json")[name]["grad_norms_of_loss_mean_sq"]
    loss = net(torch.from_numpy(tables[f"{name}.x"]), torch.from_numpy(tables[f"{name}.t"]) + 1).square().mean()
    loss.backward()
    close(loss.item(), tables[f"{name}.loss_mean_sq"], 1e-5)
    gradients = {key: p.grad for key, p in net.named_parameters() if p.grad is not None}
    norms = {key: grad.norm().item() for key, grad in unet_weights_to(gradients, settings).items()}
    assert norms.keys() == recorded.keys()
    for key, expected in recorded.items():
        assert norms[key] == pytest.approx(expected, rel=1e-3, abs=1e-6), key


def test_names_and_shapes_of_the_published_cifar_model(golden: Path) -> None:
    reference = index(golden / "unet/params_diffusers_ddpm_cifar10.json")
    settings = unet_settings(reference["constructor_args"])
    assert settings == {
        "in_channels": 3,
        "out_channels": 3,
        "size": (32, 32),
        **NetworkSection().model_dump(),  # the paper's form is the default
    }
    with torch.device("meta"):
        ours = UNet(**settings).state_dict()
        renamed = unet_weights_to(ours, settings)
        back = unet_weights_from(renamed, settings)
    assert {name: list(value.shape) for name, value in renamed.items()} == reference["parameters"]
    assert sum(value.numel() for value in renamed.values()) == reference["n_params"] == 35_746_307
    assert {n: v.shape for n, v in back.items()} == {n: v.shape for n, v in ours.items()}


@pytest.mark.parametrize("name", LIVE)
def test_their_network_is_ours(name: str) -> None:
    """Theirs built and filled, then taken over."""
    config = unet_config(LIVE[name])
    model = theirs(config)
    lively(model)
    settings = unet_settings(dict(model.config))
    NetworkSection(**{k: v for k, v in settings.items() if k not in ("in_channels", "out_channels", "size")})
    net = UNet(**settings).eval()
    net.load_state_dict(unet_weights_from(model.state_dict(), settings))
    x_t, t = batch(settings)
    with torch.no_grad():
        out = net(x_t, t)
        assert out.abs().max() > 0.1
        assert (wrap(model)(x_t, t) - out).abs().max() < 2e-5
        assert (wrap(model)(x_t, t + 0.25) - net(x_t, t + 0.25)).abs().max() < 2e-5


@pytest.mark.parametrize("name", LIVE)
def test_our_network_is_theirs(name: str) -> None:
    """Ours built and filled, then given to them; and back, without a bit of difference."""
    settings = LIVE[name]
    net = UNet(**settings).eval()
    lively(net)
    model = theirs(unet_config(settings))
    model.load_state_dict(unet_weights_to(net.state_dict(), settings))
    x_t, t = batch(settings)
    with torch.no_grad():
        assert (model(x_t, t - 1).sample - net(x_t, t)).abs().max() < 2e-5
    back = unet_weights_from(model.state_dict(), settings)
    assert list(back) == list(net.state_dict())
    assert all(torch.equal(value, back[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", LIVE)
def test_settings_come_back(name: str) -> None:
    config = json.loads(json.dumps(unet_config(LIVE[name])))
    settings = unet_settings(config)
    assert LIVE[name].items() <= settings.items()
    assert json.loads(json.dumps(unet_config(settings))) == config


def test_our_table_of_fields_is_their_constructor() -> None:
    """The same fields, and the same meaning of those that a config.json leaves out."""
    import inspect

    from ddpm.interop.diffusers import _FIELDS

    arguments = dict(inspect.signature(UNet2DModel).parameters)
    assert {n: a.default for n, a in arguments.items()} == {n: field.default for n, field in _FIELDS.items()}


def test_published_config_of_an_old_version() -> None:
    """google/ddpm-cifar10-32's config.json, written by diffusers 0.0.4, lacks the newer fields."""
    config = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }
    settings = unet_settings(config)
    assert settings == {"in_channels": 3, "out_channels": 3, "size": (32, 32), **NetworkSection().model_dump()}
    rectangular = unet_settings(config | {"sample_size": [64, 32]})
    assert (rectangular["size"], rectangular["attention"]) == ((64, 32), (16,))


def test_former_names_of_the_attention(golden: Path) -> None:
    """query, key, value, proj_attn: so are most published DDPMs stored."""
    folder = golden / "unet/tiny_1ch"
    settings = unet_settings(index(folder / "config.json"))
    modern = load_file(folder / "diffusion_pytorch_model.safetensors")
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"(?<=\.)(to_q|to_k|to_v|to_out\.0)(?=\.)")
    old = {pattern.sub(lambda m: former[m[0]], name): value for name, value in modern.items()}
    assert Counter(n.split(".")[-2] for n in old)["query"] == 8
    expected = unet_weights_from(modern, settings)
    assert all(torch.equal(value, expected[name]) for name, value in unet_weights_from(old, settings).items())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "class": ({"_class_name": "UNet2DConditionModel"}, "_class_name: found 'UNet2DConditionModel'"),
    "unknown field": ({"cross_attention_dim": 768}, "cross_attention_dim: unknown field"),
    "down block": (
        {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]},
        "down_block_types: found ['DownBlock2D', 'SkipDownBlock2D']",
    ),
    "up block": ({"up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"]}, "up_block_types: found"),
    "attention elsewhere": ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "up_block_types: attention is not at"),
    "lengths": ({"block_out_channels": [16, 32, 32]}, "block_out_channels, down_block_types, up_block_types: differ"),
    "widths": ({"block_out_channels": [16, 24]}, "block_out_channels: [16, 24] are not multiples"),
    "no middle": ({"mid_block_type": None}, "mid_block_type: found None"),
    "middle without attention": ({"add_attention": False}, "add_attention: found False"),
    "middle's scale": ({"mid_block_scale_factor": 2}, "mid_block_scale_factor: found 2"),
    "activation": ({"act_fn": "gelu"}, "act_fn: found 'gelu'"),
    "classes": ({"num_class_embeds": 10}, "num_class_embeds: found 10"),
    "class type": ({"class_embed_type": "timestep"}, "class_embed_type: found 'timestep'"),
    "centred": ({"center_input_sample": True}, "center_input_sample: found True"),
    "fourier": ({"time_embedding_type": "fourier"}, "time_embedding_type: found 'fourier'"),
    "time width": ({"time_embedding_dim": 100}, "time_embedding_dim: found 100, supported: None or 64"),
    "mixed embedding": ({"flip_sin_to_cos": True}, "flip_sin_to_cos, freq_shift: found (True, 1)"),
    "time form": ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift: found 'ada_group'"),
    "scale_shift": ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups: found None"),
    "attention's groups": ({"attn_norm_num_groups": 4}, "attn_norm_num_groups: found 4, supported: 8"),
    "downsampling": ({"downsample_type": "resnet"}, "downsample_type: found 'resnet'"),
    "upsampling": ({"upsample_type": "resnet"}, "upsample_type: found 'resnet'"),
    "padding": ({"downsample_padding": 2}, "downsample_padding: found 2"),
    "no size": ({"sample_size": None}, "sample_size: found None"),
    "odd size": ({"sample_size": 15}, "15x15 do not fit"),
    "groups": ({"norm_num_groups": None}, "norm_num_groups: found None"),
    "groups that do not divide": ({"norm_num_groups": 5}, "divisible by num_groups"),
    "head does not divide": ({"attention_head_dim": 12}, "attention_head_dim: 12 does not divide"),
    "different heads": (
        {
            "attention_head_dim": 8,
            "down_block_types": ["AttnDownBlock2D"] * 2,
            "up_block_types": ["AttnUpBlock2D"] * 2,
        },
        "attention_head_dim: 8 gives [2, 4] heads to the widths with attention, [16, 32]",
    ),
    "no number": ({"layers_per_block": "two"}, "layers_per_block: found 'two', supported: a positive number"),
    "no list": ({"block_out_channels": 32}, "block_out_channels: found 32, supported: a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_ours_cannot_express_is_refused_by_name(golden: Path, case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(DDPMError, match=re.escape(message)):
        unet_settings(index(golden / "unet/tiny_1ch/config.json") | change)


def test_all_that_is_refused_is_named_at_once(golden: Path) -> None:
    with pytest.raises(DDPMError) as caught:
        unet_settings(index(golden / "unet/tiny_1ch/config.json") | {"act_fn": "mish", "add_attention": False, "x": 1})
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "x",
        "act_fn",
        "add_attention",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 2, "attention": (4,)}, "patch: 2"),
        ({"resample": "pooled"}, "resample: pooled"),
        ({"outer_bias": False}, "outer_bias: False"),
        ({"multipliers": (2, 2, 2, 2)}, "multipliers: (2, 2, 2, 2) do not begin with 1"),
        ({"heads": 2, "attention": (16, 8)}, "heads: 2 at different widths, [32, 64]"),
    ],
)
def test_what_theirs_cannot_express_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DDPMError, match=re.escape(message)):
        unet_config(PAPER | change)


def test_keys_are_strict_both_ways(golden: Path) -> None:
    folder = golden / "unet/tiny_3ch"
    settings = unet_settings(index(folder / "config.json"))
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    ours = unet_weights_from(weights, settings)
    key = "mid_block.attentions.0.to_k.weight"
    with pytest.raises(CheckpointError, match=re.escape(f"{key}: found none, expected (16, 16)")):
        unet_weights_from({n: v for n, v in weights.items() if n != key}, settings)
    with pytest.raises(CheckpointError, match=re.escape("class_embedding.weight: found (10, 32), expected none")):
        unet_weights_from(weights | {"class_embedding.weight": torch.zeros(10, 32)}, settings)
    with pytest.raises(CheckpointError, match=re.escape(f"{key}: found (16, 8), expected (16, 16)")):
        unet_weights_from(weights | {key: torch.zeros(16, 8)}, settings)
    with pytest.raises(CheckpointError, match=re.escape("conv_in.bias: found none, expected (8,)")):
        unet_weights_to({n: v for n, v in ours.items() if n != "conv_in.bias"}, settings)
    with pytest.raises(CheckpointError, match="extra: found"):
        unet_weights_to(ours | {"extra": torch.zeros(1)}, settings)


def test_wrap_shifts_the_clock_and_unpacks_the_output() -> None:
    class Answer:
        def __init__(self, sample: Tensor) -> None:
            self.sample = sample

    x_t, t = torch.zeros(2, 1, 4, 4), torch.tensor([1, 1000])
    forms: list[Any] = [lambda y: y, lambda y: (y,), Answer]
    for form in forms:
        out = wrap(lambda x, t, form=form: form(x + t.view(-1, 1, 1, 1)))(x_t, t)
        assert out[:, 0, 0, 0].tolist() == [0, 999]


def test_unwrap_is_the_way_back() -> None:
    def net(x_t: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (2,)
        return x_t + t.view(-1, 1, 1, 1)

    x = torch.zeros(2, 1, 4, 4)
    for timestep in (999, 999.0, torch.tensor(999), torch.tensor([999, 999])):
        assert unwrap(net)(x, timestep).sample[:, 0, 0, 0].tolist() == [1000, 1000]
    assert torch.equal(wrap(unwrap(net))(x, torch.tensor([1, 7])), net(x, torch.tensor([1, 7])))


def test_exported_network_runs_in_their_pipeline(tmp_path: Path) -> None:
    """Through files, as they save and load them, up to an image."""
    settings = PAPER | {"channels": 8, "norm_groups": 4, "size": (16, 16)}
    net = UNet(**settings).eval()
    lively(net)
    model = theirs(unet_config(settings))
    model.load_state_dict(unet_weights_to(net.state_dict(), settings))
    model.save_pretrained(tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path)
    assert unet_settings(dict(loaded.config)) == unet_settings(unet_config(settings))
    assert unet_settings(json.loads((tmp_path / "config.json").read_text())) == unet_settings(unet_config(settings))
    pipeline = DDPMPipeline(loaded, DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (1, 16, 16, 3)


def test_diffusers_is_not_imported() -> None:
    code = "import sys, ddpm.interop.diffusers, ddpm.interop.xdiffusion; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
